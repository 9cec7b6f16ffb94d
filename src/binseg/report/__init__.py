"""Images that people read: curves, histograms, galleries, overlays and cut-outs.

    figure.py      the one door to matplotlib: style, colours, saving
    pixels.py      any image as 8-bit RGB for the eye
    overlay.py     mask over image, image cut out by a mask
    errors.py      what was missed and what was added, in colours
    curves.py      a run: loss, Dice and learning rate by epoch
    histogram.py   an evaluation: Dice of every image
    gallery.py     images beside truth, prediction and error map
    page/          an evaluation as one HTML file

Matplotlib is imported when the first figure is drawn, never before.
"""

from binseg.report.curves import draw_curves
from binseg.report.errors import error_map
from binseg.report.gallery import GalleryItem, draw_gallery
from binseg.report.histogram import draw_histogram
from binseg.report.overlay import cutout, overlay
from binseg.report.pixels import for_display

__all__ = [
    "GalleryItem",
    "cutout",
    "draw_curves",
    "draw_gallery",
    "draw_histogram",
    "error_map",
    "for_display",
    "overlay",
]
