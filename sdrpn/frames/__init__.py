"""Frames: where they come from, one after the other, and what is drawn on them. Knows no model and no question.

A source is named as users of object detectors name it: a picture, a folder, a pattern, a list, a video, a camera or a
URL. Each is read by its own thread; the consumer takes frames from all of them in turn.
"""
