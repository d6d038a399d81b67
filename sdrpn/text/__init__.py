"""From a question to token ids: chat templates, prompts and tokenizers that may come from anybody. Knows no model."""
