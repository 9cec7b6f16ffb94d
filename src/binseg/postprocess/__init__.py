"""What is done with a finished mask: cleaning it, counting its objects, tracing their outlines.

Pure functions on arrays. An *object* is a set of foreground pixels that touch at sides or corners
(8 neighbours), as in the scores; a *hole* is background that touches at sides only and does not
reach the image's edge.
"""

from binseg.postprocess.interchange import coco, encode_rle, geojson
from binseg.postprocess.objects import FoundObject, find_objects, label_objects
from binseg.postprocess.polygons import Polygon, trace_polygons
from binseg.postprocess.steps import NOTHING, PostProcessing, clean

__all__ = [
    "NOTHING",
    "FoundObject",
    "Polygon",
    "PostProcessing",
    "clean",
    "coco",
    "encode_rle",
    "find_objects",
    "geojson",
    "label_objects",
    "trace_polygons",
]
