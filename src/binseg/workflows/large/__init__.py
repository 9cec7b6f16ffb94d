"""Masks for pictures of any size: huge ones, stacks of many pages, OME-Zarr folders.

predicting.py   `predict_large`: from a picture on disk to a mask on disk, band by band
journal.py      the finished bands of an unfinished picture; how interrupted work goes on
assembly.py     finished bands become one TIFF file or OME-Zarr folder
estimate.py     memory, disk and time, told before the start
"""

from binseg.imageio import needs_windows
from binseg.workflows.large.predicting import LargeResult, ProbabilityType, predict_large

__all__ = ["LargeResult", "ProbabilityType", "needs_windows", "predict_large"]
