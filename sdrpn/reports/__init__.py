"""Figures that were measured, as CSV, Markdown and HTML. Runs nothing."""
