"""The method without a model: sizes of a model, cells and pixels, from an RoI map to crops. NumPy only."""
