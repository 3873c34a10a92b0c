"""The paper's figures from records: curves, grids of test images with boxes, and one image's way through the method."""
