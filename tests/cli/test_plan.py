"""`binseg plan` and the plan of `binseg train`."""

import json
import shlex
from pathlib import Path

from typer.testing import CliRunner

from binseg.cli import app
from binseg.config import load_recipe

QUICK = ("--set", "model.name=unet", "--set", "model.options={width: 4, depth: 2}")


def test_a_plan_is_a_table_a_file_and_json(discs: Path, tmp_path: Path) -> None:
    """Setting, value, because; a recipe to edit; and the same for programs."""
    path = tmp_path / "my.yaml"
    data = ("plan", "--data", str(discs), "--budget", "1m", *QUICK)
    table = CliRunner().invoke(app, [*data, "--out", str(path)])
    assert table.exit_code == 0, table.stderr
    for text in ("setting", "reason", "input.size", "you said so", f"binseg train {path}"):
        assert text in table.stdout
    assert load_recipe(path).train.budget_minutes == 1
    assert CliRunner().invoke(app, [*data, "--out", str(path)]).exit_code == 2
    answer = CliRunner().invoke(app, [*data, "--json"])
    facts = json.loads(answer.stdout)
    assert facts["expected_seconds"] == 60
    minute = ["plan", str(discs), "--border", "ignore", *QUICK]
    minute += ["--set", "train.budget_minutes=1"]
    again = CliRunner().invoke(app, minute)
    command = again.stdout[again.stdout.index("next:") + 5 :]
    words = shlex.split(command)
    assert words[:2] == ["binseg", "train"]
    assert sorted(words[2:]) == sorted(minute[1:])
    assert "about 1 min" in again.stdout
    assert {"settings", "fingerprint", "machine", "recipe", "warnings"} <= set(facts)


def test_a_recipe_takes_a_budget_and_a_bad_one_is_refused(discs: Path, tmp_path: Path) -> None:
    """One line, exit code 2; nothing is planned where a recipe is given."""
    asked = ["train", "--recipe", "demo", "--data", str(discs), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*asked, "--budget", "soon"])
    assert result.exit_code == 2
    assert "20m, 2h, 2m30s, 90s or none" in result.stderr
    assert not (tmp_path / "run").exists()
