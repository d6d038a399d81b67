"""How a program speaks to a person or a pipe: streams, tables, JSON, files, progress, failures. Knows no verb."""
