"""Shares of the work: each image is in one, and gathered they are what one process gives."""

import contextvars
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from binseg.cli import app
from binseg.config import DataConfig
from binseg.errors import OutputError, UsageError
from binseg.evaluation.scoring import SavedMask
from binseg.inference import ModelPredictor, PredictOptions
from binseg.inference.engine import predict_files
from binseg.inference.pretrained import default_bundle_path
from binseg.pipelines.check_data import check, look_at_shard
from binseg.pipelines.cluster import gather
from binseg.pipelines.evaluate_model import evaluate, measure_shard
from binseg.shards import Shard, read_shards
from binseg.storage import held
from binseg.types import Preprocessing


@pytest.fixture
def model(bright: Callable[[Preprocessing], ModelPredictor]) -> ModelPredictor:
    """A predictor that answers with the brightness of the input."""
    return bright(Preprocessing(height=8, width=8))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images, two of which want one name, and a file that is none."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(["a.jpg", "a.png", "b.png", "c.png", "deep/a.png", "deep/d.png"]):
        Image.new("RGB", (12, 10), (40 * number, 90, 200)).save(folder / name)
    (folder / "bad.png").write_bytes(b"none")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Read all that isn't hidden."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".shards" not in path.parts
    }


def test_shares_gathered_are_the_whole(model: ModelPredictor, images: Path, tmp_path: Path) -> None:
    """Masks, names, tables and COCO of three shards are those of one process, byte for byte."""
    options = PredictOptions(outputs=("coco", "table"))
    whole = predict_files(model, [images], out=tmp_path / "one", options=options)
    out = tmp_path / "shared"
    results = []
    for number in (3, 1, 2):
        shard = Shard(number=number, of=3)
        results.append(predict_files(model, [images], out=out, options=options, shard=shard))
        if number == 1:
            assert gather(out).missing_shards == ("2/3",)
    assert sum(len(one.written) for one in results) == len(whole.written) == 6
    assert [failure.reason for one in results for failure in one.failures] == [
        failure.reason for failure in whole.failures
    ]
    found = gather(out)
    assert files(out) == files(tmp_path / "one")
    assert (found.num_images, len(found.failures), found.missing) == (7, 1, ())
    again = predict_files(model, [images], out=out, options=options, shard=Shard(number=1, of=3))
    assert not again.written
    mask = next(path for path in sorted(out.rglob("*.png")))
    mask.write_bytes(mask.read_bytes()[:-5])
    assert len(gather(out).missing) == 1


def test_one_shard_holds_its_place_alone(tmp_path: Path) -> None:
    """Two processes of one shard don't meet; those of two shards do."""
    first, second = (Shard(number=number, of=2).place(tmp_path) for number in (1, 2))
    with held(first):
        with held(second):
            pass
        with pytest.raises(OutputError, match="another command"):
            contextvars.Context().run(lambda: held(first).__enter__())


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("3/100", {}, "3/100"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "9"}, "8/9"),
        (
            "auto",
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            "4/4",
        ),
        ("auto/5", {"JOB_COMPLETION_INDEX": "0"}, "1/5"),
    ],
)
def test_shards_are_read(
    text: str, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number, or what the system says of the job."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(Shard.parse(text)) == expected


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "auto", "-1/3", "1/0"])
def test_odd_shards_are_refused(text: str) -> None:
    """One line says what is taken."""
    with pytest.raises(UsageError, match="shard"):
        Shard.parse(text)


def test_every_name_is_in_one_shard() -> None:
    """Shares are disjoint, complete, about equal, and the same on any machine."""
    names = [f"folder/image {number}.jpg" for number in range(3000)]
    held_by = [[Shard(number=one, of=7).holds(name) for one in range(1, 8)] for name in names]
    assert all(sum(one) == 1 for one in held_by)
    assert np.ptp(np.sum(held_by, axis=0)) < 150
    assert held_by[0].index(True) == 4


def test_scores_and_findings_of_shards_are_those_of_all(discs: Path, tmp_path: Path) -> None:
    """What shards measured and saw gives the same report and the same findings."""
    data = DataConfig(path=str(discs))
    masks = SavedMask(None, name=str(discs / "masks"))
    shards = [Shard(number=number, of=3) for number in (1, 2, 3)]
    known: list[Any] = [measure_shard(masks, one, data=data, split="all") for one in shards]
    parts = json.loads(json.dumps(known))
    whole = evaluate(masks, data=data, split="all")
    assert evaluate(masks, data=data, split="all", known=parts) == whole
    seen = json.loads(json.dumps([look_at_shard(data, one) for one in shards]))
    assert check(data, known=seen) == check(data)


def test_the_shell_shares_and_gathers(discs: Path, tmp_path: Path) -> None:
    """`check --shard` twice does nothing twice; `gather` waits for all shards."""
    run, out = CliRunner().invoke, str(tmp_path / "out")
    first = ["check", str(discs), "--shard", "1/2", "--out", out]
    assert run(app, first).exit_code == 0
    assert "already" in run(app, first).output
    assert "have not ended" in run(app, ["gather", out]).output
    assert run(app, [*first[:3], "2/2", *first[4:]]).exit_code == 0
    answer = json.loads(run(app, ["gather", out, "--json"]).stdout)
    assert (answer["verb"], answer["is_whole"]) == ("check", True)
    assert answer["num_images"] == sum(len(one["found"]) for one in read_shards(Path(out))[0])
    bad = run(app, ["predict", "--model", str(default_bundle_path()), str(discs), "--out", out,
                    "--shard", "1/2", "--workers", "2"])  # fmt: skip
    assert bad.exit_code == 2
    assert "two ways" in bad.output
