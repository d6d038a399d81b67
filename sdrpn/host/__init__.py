"""The machine and its files: what is installed, what hardware there is, how files appear whole. Knows no model."""
