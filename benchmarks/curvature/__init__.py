"""What it costs to measure curvature, with flatmin and with its peers."""
