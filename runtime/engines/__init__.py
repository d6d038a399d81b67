"""The engines of a bundle: list them, check whether they fit this machine, and run them once. Builds nothing."""
