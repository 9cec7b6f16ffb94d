"""Images and pages that people read.

overlay.py    any image as RGB, mask over image, cut-out, error map; galleries of them
plots.py      the one door to matplotlib; a run's curves, scores of images
page.py       an evaluation as one HTML file; charts.py holds its charts
rendering.py  templates (assets/) become such files: checks of data, runs of predictions
"""

from binseg.report.overlay import GalleryItem, cutout, error_map, for_display, overlay, plot_gallery
from binseg.report.plots import plot_curves, plot_histogram
