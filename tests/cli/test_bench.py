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


def test_bench_shows_where_a_step_goes(discs: Path, tmp_path: Path) -> None:
    """The verb gives the phases, the slowest operations and an image of the rate test."""
    curve = tmp_path / "rates.png"
    asked = ("--data", discs, *TINY, "--steps", "2", "--profile", "--find-lr", "--curve", curve)
    answer = json.loads(run(*asked, "--json"))
    assert set(answer["seconds"]) == set(PHASES)
    assert answer["operations"]
    assert 0 <= answer["data_share"] < 1
    assert curve.read_bytes().startswith(b"\x89PNG")


def test_bench_prints_a_table(discs: Path) -> None:
    """People see phases, throughput, memory and the batch that pays."""
    text = run("--data", discs, *TINY, "--steps", "1", "--find-batch")
    for part in ("whole step", "inputs a second", "memory: about", "--set train.batch_size="):
        assert part in text


def test_a_curve_without_its_test_is_refused(discs: Path, tmp_path: Path) -> None:
    """An option that would do nothing is a usage error."""
    assert "--find-lr" in run("--data", discs, "--curve", tmp_path / "c.png", code=2)
