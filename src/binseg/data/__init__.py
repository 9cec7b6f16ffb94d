"""From files to samples: records, mask rules, splits."""

from binseg.data.dataset import SPLITS, Dataset
from binseg.data.masks import MaskRule, detect_rule
from binseg.data.samples import read_sample
from binseg.data.sources import open_dataset
from binseg.data.splits import assign_splits, read_split, write_split
