"""Labelling: from a folder of images without masks to masks and a model; nothing here is HTTP.

project.py      the project on disk, and the masks
label_log.py    one log of strokes and decisions, and from strokes to pixels
open_image.py   an image as people and engines see it, with its labels and predictions
cold_engine.py  trees on filters and ready-made features, from the first stroke on
warm_engine.py  ready-made features, and a network that learns in rounds (torch)
guidance.py     which image to label next, how good the engines are, and when to stop
session.py      a project that is open: predictions, and what runs behind them
label_files.py  masks that others made, taken in; labels written as files of other tools
"""
