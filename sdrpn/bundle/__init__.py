"""The folder that passes a model from stage to stage, read and checked. Runs nothing."""
