"""The method without a model: model sizes, cells and pixels, crops from an RoI map. NumPy only."""
