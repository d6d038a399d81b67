"""From a bundle's graphs to TensorRT engines. Knows nothing about checkpoints or answers."""
