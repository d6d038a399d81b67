"""A question's picture: decoded in parts, cropped, resized and normalised, on the CPU or on a GPU."""
