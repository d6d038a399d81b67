"""From a question to token ids: prompts, and untrusted chat templates and tokenizers. Knows no model."""
