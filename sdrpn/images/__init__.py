"""Untrusted pictures: opened within limits, turned upright, and prepared as the vision tower reads them."""
