import json
from pathlib import Path

from typer.testing import CliRunner

from binseg.cli import app
from binseg.pipelines.bench_training import PHASES

TINY = ("--model", "unet-compact", "--size", "32", "--set", "model.options.width=4")


def run(*argv: object, code: int = 0) -> str:
    """Run `binseg bench train` quietly; the exit code must be `code`."""
    result = CliRunner().invoke(app, ["--quiet", "bench", "train", *map(str, argv)])
    assert result.exit_code == code, result.output
    return result.output


def test_bench_shows_where_a_step_goes(discs: Path) -> None:
    """The verb gives the phases and the slowest operations."""
    asked = ("--data", discs, *TINY, "--steps", "2", "--profile")
    answer = json.loads(run(*asked, "--json"))
    assert set(answer["seconds"]) == set(PHASES)
    assert answer["operations"]
    assert 0 <= answer["data_share"] < 1


def test_bench_prints_a_table(discs: Path) -> None:
    """People see phases, throughput and memory."""
    text = run("--data", discs, *TINY, "--steps", "1")
    for part in ("whole step", "inputs a second", "memory: about"):
        assert part in text
