"""From probabilities to a finished mask, its objects and their outlines: pure functions on arrays.

An *object* is a set of foreground pixels that touch at sides or corners (8 neighbours), as in the
scores; a *hole* is background that touches at sides only and does not reach the image's edge.
"""

from binseg.postprocess.found_objects import (
    FoundObject,
    Polygon,
    coco,
    encode_rle,
    find_objects,
    find_objects_in_bands,
    geojson,
    imagej_rois,
    kaggle_runs,
    trace_polygons,
)
from binseg.postprocess.mask_cleaning import (
    NOTHING,
    PostProcessing,
    above,
    clean,
    clean_bands,
    label_objects,
    segment,
)
