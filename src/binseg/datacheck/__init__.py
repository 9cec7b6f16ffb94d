"""The doctor: what is wrong with a data set, before a model learns it.

intake.py       opening what can be opened of data that is partly wrong
looks.py        one look at each image: a few numbers, then its pixels are gone
likeness.py     images that are nearly the same
alignment.py    masks that lie beside their object
outlines.py     masks unlike all others
neighbours.py   patches of one source beside each other
leaks.py        findings on what is in two places
verdicts.py     findings on masks and images
examination.py  all of it together, and the quick part that training runs
"""

from binseg.datacheck.examination import LEAKS, Examination, examine, quick_checks, ranked
from binseg.datacheck.intake import Intake, take_in
from binseg.datacheck.looks import Look
from binseg.datacheck.verdicts import foreground_share

__all__ = [
    "LEAKS",
    "Examination",
    "Intake",
    "Look",
    "examine",
    "foreground_share",
    "quick_checks",
    "ranked",
    "take_in",
]
