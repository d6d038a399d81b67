"""Compare a bundle with its checkpoint, as a model in PyTorch. Knows no inference library."""
