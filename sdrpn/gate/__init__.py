"""Gates: from a model's own answers to labels of whether a second look helps, and from these to a trained gate.

Knows no family by name: what a model's looks are, its spec says. Imports nothing of the stages.
"""
