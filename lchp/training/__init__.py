"""Training a run: its chain of links, the loop that trains each, and the run folder that comes of it. Free of Ray."""
