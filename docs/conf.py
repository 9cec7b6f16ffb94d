"""Sphinx settings: plain Markdown pages, no warnings allowed."""

from importlib.metadata import version as version_of

project = "binseg"
author = "the binseg authors"
copyright = "2026, the binseg authors"
version = release = version_of("binseg")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "generate.py"]
html_theme = "furo"
html_static_path = ["_static"]
html_title = "binseg"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
smartquotes = False  # options and what is to be copied keep their dashes and quotes
autodoc_typehints = "none"
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r".*")]
# Signatures name types of numpy, torch and jaxtyping, whose inventories we can't fetch offline.
