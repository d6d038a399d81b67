"""LLaVA-1.5 and what is built like it: a CLIP tower over one square, a projector, a LLaMA or Mistral decoder."""
