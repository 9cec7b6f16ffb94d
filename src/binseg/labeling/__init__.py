"""Labelling: from a folder of images without masks to masks and a model; nothing here is HTTP.

project.py        the project on disk: one log of strokes and decisions, and the masks
strokes.py        from strokes to pixels, the same whenever they are replayed
working_image.py  an image as people and engines see it: stretched to 8 bits, at a bounded size
cold_engine.py    trees on filters and ready-made features, from the first stroke on
warm_engine.py    ready-made features, and a network that learns in rounds (torch)
guidance.py       which image to label next, how good the engines are, and when to stop
session.py        a project that is open: predictions, and what runs behind them
foreign_masks.py  masks that others made, taken in; label_files.py writes those of other tools
"""
