"""Documentation: nothing in it may promise what the program doesn't have."""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from binseg.cli import app
from binseg.config import load_recipe, recipe_names
from binseg.data.sources import SOURCES
from binseg.imageio.formats import FORMATS
from binseg.inference.predict_options import EXTRA_OUTPUTS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)]
)
TRANSLATION = re.compile(r"\.[a-z]{2}(-[A-Z]{2})?$")
TAKES_NOTHING = {"--help", "-h"}
FOREIGN = re.compile(
    r"\b(mend|kin|amid|whilst|thereby|hereby|merely|simply|obviously|easily|ought|must bear"
    r"|(is|are) (told|said)(?! apart)|(that|which|what \w+) is (said|told))\b|\b(e\.g|i\.e|etc)\.",
    re.IGNORECASE,
)
"""Words that a native technical writer doesn't write."""
LONGEST_PAGE = 2500
"""Words; references may be longer."""


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _verbs(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """List every verb with its command, the parts of `recipes` included."""
    for name, command in getattr(group, "commands", {}).items():
        yield (*before, name), command
        yield from _verbs(command, (*before, name))


APP = get_command(app)
VERBS: Mapping[tuple[str, ...], Any] = dict(_verbs(APP))


def _prose(text: str) -> str:
    """Leave out fenced code, in which brackets are no links."""
    return re.sub(r"^(```+|~~~+).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page", [one for one in PAGES if not TRANSLATION.search(one.stem)], ids=_name
)
def test_pages_are_short_and_plain(page: Path) -> None:
    """No page but references is too long to be read, and none has words of another century."""
    text = _prose(page.read_text("utf-8"))
    is_reference = DOCS / "reference" in page.parents or page.name == "design.md"
    assert is_reference or len(text.split()) <= LONGEST_PAGE
    plain = re.sub(r"`[^`\n]*`", "", text)
    assert [found[0] for found in FOREIGN.finditer(plain)] == []


def test_messages_are_plain() -> None:
    """No text that the program shows has such words either; docstrings are for its authors."""
    for path in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        shown = {id(one) for one in ast.walk(tree) if isinstance(one, ast.Constant)}
        shown -= {id(one.value) for one in ast.walk(tree) if isinstance(one, ast.Expr)}
        for one in ast.walk(tree):
            if id(one) in shown and isinstance(one.value, str):  # type: ignore[attr-defined]
                assert not FOREIGN.search(one.value), f"{path.name}:{one.lineno}"  # type: ignore[attr-defined]


def _links(page: Path) -> list[str]:
    """List the relative links of a page, images included."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _prose(page.read_text("utf-8")))
    return [t for t in targets if not re.match(r"[a-z]+:", t)]


def _anchors(page: Path) -> set[str]:
    """Name the headings as code hosts and MyST do."""
    heads = re.findall(r"^#+ (.+)$", _prose(page.read_text("utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def _code_lines(text: str) -> Iterator[str]:
    """List the lines of a page's code: fenced and not marked as text, or indented by four."""
    fence = info = ""
    for line in text.splitlines():
        mark = re.match(r"(```+)(.*)", line)
        if fence:
            if mark and mark[1] == fence:
                fence = ""
            elif info in {"", "sh", "bash", "shell", "console"}:
                yield line
        elif mark:
            fence, info = mark[1], mark[2].strip()
        elif line.startswith("    "):
            yield line


def _command_lines(page: Path) -> list[str]:
    """List the `binseg ...` lines of a page's code, and those in backticks within a sentence."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in _code_lines(text)]
    lines += re.findall(r"`(binseg [a-z]+(?: [^`\n]*)?)`", _prose(text))
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("binseg ")]


def _problem(line: str) -> str | None:
    """Say what is wrong with a command line, without running it; None where nothing is."""
    words = shlex.split(re.split(r"\s[|>]\s?", line)[0])[1:]
    while words and words[0] in {"--quiet", "-q"}:
        words = words[1:]
    if words and words[0] in {"--version", "--help"}:
        return None
    if not words or (words[0],) not in VERBS:
        return f"there is no verb {words[0] if words else ''!r}"
    path: tuple[str, ...] = (words[0],)
    if len(words) > 1 and (*path, words[1]) in VERBS:
        path = (*path, words[1])
    takes_value = {
        flag: not param.is_flag
        for param in VERBS[path].params
        if param.param_type_name == "option"
        for flag in (*param.opts, *param.secondary_opts)
    }
    for place, word in enumerate(words):
        flag, _, glued = word.partition("=")
        if not re.match(r"--?[a-z]", flag) or flag in TAKES_NOTHING:
            continue
        if flag not in takes_value:
            return f"{' '.join(path)} has no option {flag}"
        if takes_value[flag] and not glued and place + 1 == len(words):
            return f"{flag} needs a value"
    return _problem_of_settings(words)


def _problem_of_settings(words: list[str]) -> str | None:
    """Try the recipe and the `--set` of a command line on the recipe's own checks."""
    given = list(pairwise(words))
    names = [value for flag, value in given if flag == "--recipe"]
    if any(name not in recipe_names() and not name.endswith(".yaml") for name in names):
        return f"there is no recipe {names[0]}"
    overrides = [value for flag, value in given if flag == "--set"]
    known = names[0] if names and names[0] in recipe_names() else None
    try:
        load_recipe(known, overrides=overrides)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the page's mistake
        return str(error)
    return None


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    """Links to files, and to headings in them, work on a code host as in the built pages."""
    for link in _links(page):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{_name(page)} links to {link}"
        assert path.is_relative_to(ROOT), f"{_name(page)}: {link} leads out of the project"
        if anchor and path.suffix == ".md":
            assert anchor in _anchors(path), f"{_name(page)}: no heading for {link}"


@pytest.mark.parametrize("page", [one for one in PAGES if one.name != "mistakes.md"], ids=_name)
def test_every_command_line_could_be_run(page: Path) -> None:
    """Verbs, options, recipes and settings exist, but for the mistakes; nothing is run."""
    wrong = {line: why for line in _command_lines(page) if (why := _problem(line))}
    assert not wrong


def test_wrong_command_lines_are_seen() -> None:
    """The check above does find an unknown verb, option, recipe and setting."""
    assert _problem("binseg train --data x/ --epochs 3 --set train.seed=1") is None
    assert _problem("binseg recipes show demo > mine.yaml") is None
    assert _problem("binseg trian --data x/") == "there is no verb 'trian'"
    assert _problem("binseg train --epoch 3") == "train has no option --epoch"
    assert _problem("binseg train --epochs") == "--epochs needs a value"
    assert "report-x" in str(_problem("binseg train --recipe report-x"))
    assert "train.epoch" in str(_problem("binseg train --set train.epoch=3"))


def test_the_readme_has_command_lines_that_are_checked() -> None:
    """The pages' commands are found at all: indented in the README, fenced elsewhere."""
    assert len(_command_lines(ROOT / "README.md")) >= 5
    assert len(_command_lines(DOCS / "getting-started.md")) >= 4


def test_the_reference_has_every_verb() -> None:
    """Each verb, and each part of one, has its heading with its own help below."""
    heads = re.findall(r"^#+ binseg (.+)$", (DOCS / "reference/cli.md").read_text("utf-8"), re.M)
    assert set(heads) == {" ".join(path) for path in VERBS}


def test_generated_pages_are_what_the_code_says() -> None:
    """`docs/generate.py --check` passes; if it fails, run it without --check."""
    command = [sys.executable, str(DOCS / "generate.py"), "--check"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "60"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_index_names_every_page() -> None:
    """A page that no index names is a page that nobody finds."""
    index = (DOCS / "index.md").read_text("utf-8")
    blocks = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    listed = {
        line for block in blocks for line in block.splitlines() if line and not line.startswith(":")
    }
    there = {
        page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES if DOCS in page.parents
    } - {"index"}
    assert listed == there


def _rows(page: str) -> Iterator[tuple[str, str]]:
    """List first and last cells of the page's tables of formats, whose last column is a test."""
    for table in re.findall(r"(?:^\|.*\n)+", (DOCS / "how-to" / page).read_text("utf-8"), re.M):
        head, _, *lines = [
            [c.strip() for c in x.strip("|\n").split("|")] for x in table.splitlines()
        ]
        if head[-1] == "test":
            yield from ((line[0], line[-1].strip("`")) for line in lines)


def test_tables_of_formats_are_whole_and_each_row_is_held_by_a_test() -> None:
    """Every kind of dataset, image format and output is in a table with its reference reader."""
    rows, outputs = dict(_rows("prepare-your-data.md")), dict(_rows("outputs.md"))
    own = {"synthetic", "patterns", "labelled", "oxford-pet", "manifest"}
    assert {*SOURCES} - own == {name.strip("`") for name in rows if name.strip("`") in SOURCES}
    named = re.sub(r"[^A-Z0-9,]", "", " ,".join(rows).upper())
    assert [name for name in FORMATS if name not in named] == []
    assert {f"`--{name}`" for name in EXTRA_OUTPUTS} <= outputs.keys()
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in {*rows.values(), *outputs.values()}:
        assert f"def {name}(" in tests, name


def test_translations_have_an_original() -> None:
    """A page NAME.zh-TW.md stands beside NAME.md."""
    for page in PAGES:
        stem = page.with_suffix("").name
        if TRANSLATION.search(stem):
            assert (page.parent / f"{TRANSLATION.sub('', stem)}.md").is_file(), _name(page)
