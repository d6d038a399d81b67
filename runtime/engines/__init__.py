"""The engines of a bundle: which there are, whether they fit this machine, and one trial run. Builds nothing."""
