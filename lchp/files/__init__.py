"""What lies on disk: run folders and what their records hold, locks, and paths that a user names."""
