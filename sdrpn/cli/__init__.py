"""The command line: one module per verb, which imports what it needs when it runs."""
