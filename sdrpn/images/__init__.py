"""Pictures that may come from anybody, opened within limits; upright; as the vision tower reads them."""
