"""One function a verb: check, train, evaluate, predict, augment, demo; and the run folder.

A pipeline joins the rooms below. It prints nothing (it tells a `Progress`), knows no
argv, and holds no algorithm of its own.
"""
