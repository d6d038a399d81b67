"""Write measured figures as CSV, Markdown and HTML. Runs nothing."""
