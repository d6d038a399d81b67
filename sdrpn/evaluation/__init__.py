"""How well a model answers with different second passes: tasks, metrics, methods, and tables of results.

A task has questions with known answers; a method decides what the second pass sees; an answerer is a model on some
library. None of them knows the others. Only scores and the oracle methods may read the true answers and boxes.
"""
