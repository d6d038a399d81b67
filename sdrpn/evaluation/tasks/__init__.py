"""Tasks: one module per data set, which reads its official files or renders its scenes. None of them knows a model."""
