"""Releases: a model as one signed archive, and how a device keeps and changes them. Runs no model.

Depends on bundles and the host; the runtime asks it whether a release is signed.
"""
