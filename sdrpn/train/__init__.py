"""Train an RPN on pseudo-labels: its initial weights, its loss, and the training loop."""
