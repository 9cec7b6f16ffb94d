"""The tutorial notebook runs from top to bottom, and shows what it says."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


def _run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does, and give the value of its last expression."""
    tree = ast.parse(source)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        return exec(compile(tree, "cell", "exec"), names)
    tree.body.pop()
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report is shown as its headline, a prediction as a PNG image."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    names: dict[str, Any] = {}
    shown = [
        _run_cell("".join(cell["source"]), names) for cell in cells if cell["cell_type"] == "code"
    ]
    report, prediction = shown[1], shown[3]
    assert len(repr(report)) < 300
    assert "dice" in repr(report)
    assert prediction._repr_png_().startswith(b"\x89PNG")
    assert (tmp_path / "runs" / "notebook" / "overlay.png").is_file()
    assert 0 <= shown[-1].mean["original"]["dice"] <= 1
