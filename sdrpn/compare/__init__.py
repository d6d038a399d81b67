"""Does a bundle still say what its checkpoint says? Against the model in PyTorch; knows no inference library."""
