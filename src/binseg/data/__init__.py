"""From files to samples: records, mask rules, splits."""

from binseg.data.dataset import SPLITS, Dataset
from binseg.data.masks import MaskRule, detect_rule
from binseg.data.samples import read_sample
from binseg.data.sources import open_dataset
from binseg.data.splits import assign_splits, read_split, write_split

__all__ = [
    "SPLITS",
    "Dataset",
    "MaskRule",
    "assign_splits",
    "detect_rule",
    "open_dataset",
    "read_sample",
    "read_split",
    "write_split",
]
