"""Qwen2.5-VL and Qwen3-VL with region proposal networks of SD-RPN and Q-Zoom: pictures of any shape within a budget."""
