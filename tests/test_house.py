"""The house's rules about its own code, read from `src/`; docs/design.md says why."""

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "binseg"
MAX_LINES, MAX_MODULES = 43_297, 180
"""Lines and modules of the whole package; the aim is 42,000 and 200, so these only go down."""
MAX_MODULE, MAX_FUNCTION = 450, 80
"""Lines of a module, and of a function; a command line's signature doesn't count."""
HANGING = re.compile(r"(Of|What|How|Whether|Where|Which)\b")
"""First words of docstrings that are no sentences."""
FOLDER_NAMES = re.compile(r"\"pictures?\"")
"""Names of folders that people use, which `data/sources` knows."""


@cache
def modules() -> dict[str, tuple[str, ast.Module]]:
    """Return text and syntax tree of every module, by its path below `src/binseg`."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text("utf-8")
        found[path.relative_to(SOURCE).as_posix()] = (text, ast.parse(text))
    return found


def long_modules() -> Iterator[str]:
    """Modules of too many lines."""
    for name, (text, _) in modules().items():
        if len(text.splitlines()) > MAX_MODULE:
            yield name


def long_functions() -> Iterator[str]:
    """Functions of too many lines; signature and help of a verb aside."""
    for name, (_, tree) in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                start = node.lineno
                if name.startswith("cli/") and ast.get_docstring(node):
                    start = (node.body[0].end_lineno or 0) + 1
                if (node.end_lineno or 0) - start + 1 > MAX_FUNCTION:
                    yield f"{name}: {node.name}"


def repeated_names() -> Iterator[str]:
    """File names that stand for more than one module."""
    numbers = Counter(name.rpartition("/")[2] for name in modules())
    for name, num in numbers.items():
        if num > 1 and name != "__init__.py":
            yield name


def hanging_docstrings() -> Iterator[str]:
    """Docstrings of modules, classes and functions that are no sentences."""
    for name, (_, tree) in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if HANGING.match(text):
                    yield f"{name}: {text[:50]}"


def hanging_attributes() -> Iterator[str]:
    """Strings below an assignment, which document it, that are no sentences."""
    for name, (_, tree) in modules().items():
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if not isinstance(body, list):
                continue
            for before, after in pairwise(body):
                if (
                    isinstance(before, ast.Assign | ast.AnnAssign)
                    and isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                    and HANGING.match(str(after.value.value))
                ):
                    yield f"{name}: {str(after.value.value)[:50]}"


def trainer_imports() -> Iterator[str]:
    """Modules that need Lightning's Trainer; Fabric is the engine."""
    for name, (text, _) in modules().items():
        if "lightning.pytorch" in text:
            yield name


def pictures() -> Iterator[str]:
    """Lines that say picture where the word is image."""
    for name, (text, _) in modules().items():
        for number, line in enumerate(text.splitlines(), 1):
            if re.search("picture", FOLDER_NAMES.sub("", line), re.I):
                yield f"{name}:{number}"


STILL_BROKEN: tuple[tuple[Callable[[], Iterator[str]], int], ...] = (
    (long_modules, 0),
    (long_functions, 0),
    (repeated_names, 0),
    (hanging_docstrings, 0),
    (hanging_attributes, 0),
    (trainer_imports, 0),
    (pictures, 0),
)
"""Each rule with the number of places that still break it: the numbers only ever go down."""


@pytest.mark.parametrize(("find", "most"), STILL_BROKEN, ids=[f.__name__ for f, _ in STILL_BROKEN])
def test_the_rule_is_kept(find: Callable[[], Iterator[str]], most: int) -> None:
    """No more places break a rule than its number says."""
    places = list(find())
    assert len(places) <= most, f"{find.__name__}: {len(places)} > {most}: " + ", ".join(places)


def test_the_package_stays_small() -> None:
    """Lines and modules of the whole package have a limit."""
    assert sum(len(text.splitlines()) for text, _ in modules().values()) <= MAX_LINES
    assert len(modules()) <= MAX_MODULES
