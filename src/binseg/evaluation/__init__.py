"""Judging a model: scores of a split, the choices that validation makes, comparison, the report.

origin.py        the run and data of a model, and so the images that may score it
scoring.py       every image predicted and measured, into one `Report`
tuning.py        threshold, temperature, tta and post-processing, chosen on validation
comparison.py    two models on the same images: better, or noise
report_files.py  report.html, report.json, per_image.csv and images
"""
