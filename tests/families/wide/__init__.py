"""A family that is nothing like LLaVA: grids as wide as the picture, cells without a tower, positions on three axes."""
