"""What a finished run is used for: predictions, other formats, exported files, score maps."""
