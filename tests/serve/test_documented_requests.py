"""The requests in the documentation are run, against a server, as they stand there."""

import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from binseg.inference import ModelPredictor, PredictOptions
from binseg.serve.app import Access

from .conftest import Listen, decoded

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "serve.md"
URL = "http://127.0.0.1:8000"


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)


@pytest.fixture
def folder(tmp_path: Path, image: bytes) -> Path:
    """A folder with the files that the page speaks of."""
    Image.fromarray(decoded(image)).save(tmp_path / "photo.jpg", quality=95)
    Image.fromarray(decoded(image)).save(tmp_path / "other.png")
    tifffile.imwrite(tmp_path / "slide.tif", np.zeros((2, 40, 50), np.uint8))
    return tmp_path


def test_every_curl_line_runs(listen: Listen, folder: Path, predictor: ModelPredictor) -> None:
    """In the page's order, each ends well, and the files are what the page says."""
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    lines = [
        line for block in _blocks("sh") for line in block.splitlines() if line.startswith("curl ")
    ]
    assert len(lines) >= 9
    with listen() as server:
        for line in lines:
            command = line.replace(URL, server.url.rstrip("/"))
            done = subprocess.run(
                ["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"
    mask = decoded((folder / "mask.png").read_bytes())
    assert np.array_equal(mask > 0, predictor.predict(folder / "photo.jpg").mask)
    assert decoded((folder / "cutout.png").read_bytes()).shape == (36, 44, 4)
    assert json.loads((folder / "prediction.json").read_bytes())["width"] == 44
    with zipfile.ZipFile(folder / "masks.zip") as archive:
        assert archive.namelist() == ["photo.png", "other.png", "quality.json"]


def test_the_python_client_is_ten_lines_and_works(
    listen: Listen, folder: Path, predictor: ModelPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives the predictor's mask, and raises what the server says."""
    (code,) = _blocks("python")
    function = re.search(r"^def .*\n(?:    .*\n)*", code, re.M)
    assert function is not None
    assert len(function[0].splitlines()) == 10
    monkeypatch.chdir(folder)
    with listen() as server:
        names: dict[str, Any] = {}
        exec(code.replace(URL, server.url.rstrip("/")), names)
        expected = predictor.predict(
            folder / "photo.jpg", options=PredictOptions(threshold=0.5)
        ).mask
        assert np.array_equal(names["mask"], expected)
        with pytest.raises(RuntimeError, match="Threshold"):
            names["predict"]("photo.jpg", threshold=7)


def test_the_token_line_makes_a_token(listen: Listen, folder: Path) -> None:
    """What the page says to export is taken by the server that it was made for."""
    (line,) = [
        one for block in _blocks("sh") for one in block.splitlines() if "BINSEG_TOKEN" in one
    ]
    made = subprocess.run(
        ["bash", "-c", f"{line}; echo $BINSEG_TOKEN"], capture_output=True, text=True, check=True
    )
    token = made.stdout.strip()
    assert len(token) >= 32
    with listen(access=Access(token=token)) as server:
        command = f'curl -s -o /dev/null -w "%{{http_code}}" {server.url}v1/models'
        header = f' -H "Authorization: Bearer {token}"'
        for line, status in ((command, "401"), (command + header, "200")):
            done = subprocess.run(
                ["bash", "-c", line], cwd=folder, capture_output=True, text=True, check=True
            )
            assert done.stdout == status
