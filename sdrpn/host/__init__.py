"""The machine and its files: installed libraries, hardware, atomic writes. Knows no model."""
