"""Images and pages that people read.

figure.py       the one door to matplotlib: style, colours, saving overlay.py      any image as RGB,
mask over image, cut-out, error map plots.py        a run's curves, the scores of all images, the
learning-rate test gallery.py      images beside truth, prediction and error map page.py         an
evaluation as one HTML file; charts.py holds its charts doctor_page.py  a dataset check as one HTML
file; predictions_page.py a run of predictions rendering.py    templates and images become such
files; assets/ holds the templates
"""

from binseg.report.gallery import GalleryItem, plot_gallery
from binseg.report.overlay import cutout, error_map, for_display, overlay
from binseg.report.plots import plot_curves, plot_histogram

__all__ = [
    "GalleryItem",
    "cutout",
    "error_map",
    "for_display",
    "overlay",
    "plot_curves",
    "plot_gallery",
    "plot_histogram",
]
