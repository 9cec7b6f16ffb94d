"""The check of a data set: what is wrong with it, before a model learns it.

intake.py           opening what can be opened of data that is partly wrong
looks.py            one look at each image: a few numbers, then its pixels are gone
near_duplicates.py  images that are nearly the same, and kept in one split
alignment.py        masks that lie beside their object
findings.py         the finders: the same content in two places, odd masks and images
checks.py           the table of all checks, and the examination that runs them
"""

from binseg.datacheck.checks import CHECKS, LEAKS, Examination, examine, ranked, training_checks
from binseg.datacheck.findings import foreground_share
from binseg.datacheck.intake import Intake, take_in
from binseg.datacheck.looks import Look
from binseg.datacheck.near_duplicates import keep_together
