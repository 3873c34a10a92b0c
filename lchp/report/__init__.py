"""What is made from run folders: tables beside the paper's, figures, the report page. No training, no Ray, and torch
only where a figure needs a network."""
