"""Images and pages that people read.

overlay.py    any image as RGB, mask over image, cut-out, error map
plots.py      the one door to matplotlib; a run's curves, scores of images, learning-rate test
gallery.py    images beside truth, prediction and error map
page.py       an evaluation as one HTML file; charts.py holds its charts
rendering.py  templates (assets/) become such files: checks of data, runs of predictions
"""

from binseg.report.gallery import GalleryItem, plot_gallery
from binseg.report.overlay import cutout, error_map, for_display, overlay
from binseg.report.plots import plot_curves, plot_histogram
