"""`binseg serve` at the shell: what it says when it can't start, and how containers start it."""

import io
import re
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from binseg.cli import app
from binseg.cli.serve import _say_started, read_token
from binseg.errors import BinsegError
from binseg.inference import ModelPredictor
from binseg.inference.pretrained import default_bundle_path
from binseg.serve import model_registry
from binseg.serve.limits import Limits
from binseg.serve.model_registry import choose_bundles, finds
from binseg.serve.server import is_loopback, network_address
from binseg.serve.service import Service

ROOT = Path(__file__).parents[2]


def _run(*words: str, env: dict[str, str] | None = None) -> Any:
    return CliRunner().invoke(app, ["serve", *words], env=env)


def test_without_a_model_the_built_in_one_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says so, and how to get one's own."""

    def opened(bundles: list[Path], **_: object) -> None:
        assert bundles == [default_bundle_path()]
        raise BinsegError("this far and no further")

    monkeypatch.setattr(model_registry, "open_models", opened)
    result = _run("--port", "0")
    line, last = result.stderr.splitlines()
    assert "this far" in last
    for words in ("cats and dogs", "binseg serve runs/first", "binseg train", "--demo"):
        assert words in line
    assert choose_bundles([Path("own")], demo=False) == [Path("own")]


def test_the_demo_must_be_made_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with what to run; where it is there, it is served."""
    monkeypatch.chdir(tmp_path)
    result = _run("--demo")
    assert result.exit_code == 2
    assert "make demo" in result.stderr
    (tmp_path / "runs" / "demo" / "bundle").mkdir(parents=True)
    assert choose_bundles([], demo=True) == [Path("runs/demo/bundle")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--queue", "0"), "queue 0"),
        (("--max-pixels", "0"), "max-pixels 0"),
        (("--max-seconds", "-1"), "max-seconds -1"),
    ],
)
def test_limits_of_nothing_are_refused(words: tuple[str, ...], said: str) -> None:
    """Before a model is loaded."""
    result = _run("runs/none", *words)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_port_in_use_is_said_in_a_line(trained: Path, tmp_path: Path) -> None:
    """With the address, and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = _run(str(trained), "--port", port, "--state", str(tmp_path))
    assert result.exit_code == 2
    assert f"port {port}" in result.stderr
    assert "--port" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_tokens_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never from the command line, which everyone on the machine can read."""
    monkeypatch.delenv("BINSEG_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("BINSEG_TOKEN", "from-the-environment")
    assert read_token(None) == "from-the-environment"
    path = tmp_path / "token"
    path.write_text("from-a-file-of-mine\n", "utf-8")
    assert read_token(path) == "from-a-file-of-mine"
    for text in ("", "two words of sixteen", "two\nlines of sixteen", "too-short"):
        path.write_text(text, "utf-8")
        assert _run("x", "--token-file", str(path)).exit_code == 2
        assert _run("x", env={"BINSEG_TOKEN": text}).exit_code == 2, "blank ones too"
    assert _run("x", "--token-file", str(tmp_path / "none")).exit_code == 1
    assert "--token" not in {name for one in _options() for name in one.opts}


def test_loopback_is_told_from_the_rest() -> None:
    """Names that reach other machines too are not loopback."""
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.org")))


def _options() -> list[Any]:
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return list(command.params)


def test_the_container_starts_the_verb_with_options_that_exist() -> None:
    """The Dockerfile's command line, its user, and its look at /readyz."""
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    entry = re.search(r"^ENTRYPOINT (\[.*\])$", text, re.M)
    assert entry is not None
    words = shlex.split(entry[1].strip("[]").replace(",", " "))
    assert words[:2] == ["binseg", "serve"]
    known = {name for one in _options() for name in one.opts}
    assert {word for word in words if word.startswith("--")} <= known
    assert re.search(r"^USER (?!root)\w+$", text, re.M)
    assert "HEALTHCHECK" in text
    assert "/readyz" in text
    assert "TOKEN=" not in text
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M)
    allowed = (ROOT / ".dockerignore").read_text("utf-8")
    for name in " ".join(copied).split():
        assert f"!{name}" in allowed
        assert (ROOT / name).exists()


def test_other_machines_are_told_where_to_look(
    predictor: ModelPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Models by run and what they find; an address that a phone can take, where there is one."""
    service = Service([predictor], state=tmp_path, limits=Limits(), names=["first"])
    service.registry.default.finds = "discs"
    _say_started(service, "http://127.0.0.1:8000/", "192.168.1.7")
    said = capsys.readouterr().err
    assert "first finds discs" in said
    assert "http://127.0.0.1:8000/" in said
    assert "http://192.168.1.7:8000/" in said
    _say_started(service, "http://127.0.0.1:8000/", None)
    assert "network" not in capsys.readouterr().err
    assert service.registry.find("first") is service.registry.default
    assert service.registry.find(predictor.card.name if predictor.card else "") is not None
    service.close()
    assert network_address("127.0.0.1") is None
    assert network_address("192.168.1.7") == "192.168.1.7"
    assert network_address("0.0.0.0") not in ("0.0.0.0", "127.0.0.1")


def test_on_a_terminal_there_is_a_code_to_photograph(
    predictor: ModelPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A QR code of the address, drawn in half blocks, on stderr alone."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    service = Service([predictor], state=tmp_path, limits=Limits())
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    _say_started(service, "http://127.0.0.1:8000/", "192.168.1.7")
    monkeypatch.undo()
    service.close()
    assert "\u2580" in screen.getvalue() or "\u2584" in screen.getvalue()


@pytest.mark.parametrize(
    ("kind", "labels", "expected"),
    [
        ("folder", None, ""),
        ("coco", ["leaf", "stem"], "leaf, stem"),
        ("oxford-pet", None, "cats and dogs"),
    ],
)
def test_a_model_says_what_it_finds(
    predictor: ModelPredictor, kind: str, labels: list[str] | None, expected: str
) -> None:
    """Its labels, or the things of known data; the kind of a folder would say nothing."""
    card = predictor.card
    assert card is not None
    data = card.data.model_copy(update={"kind": kind})
    recipe = {**card.recipe, "data": {"labels": labels}}
    assert finds(card.model_copy(update={"data": data, "recipe": recipe})) == expected
