"""What trains an RPN on pseudo-labels: where its weights start, its loss, and the loop."""
