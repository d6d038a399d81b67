"""A question's picture: decoded by parts, cropped, resized and normalised, on the CPU or on a GPU."""
