"""LLaVA-1.5 and models with its structure: a CLIP tower over one square, a projector, a LLaMA or Mistral decoder."""
