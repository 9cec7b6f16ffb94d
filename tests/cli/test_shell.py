"""The shell: help that is quick, failures that are one line, exit codes that mean something."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from binseg.cli import app
from binseg.cli.console import LiveProgress, PlainProgress, Shell
from binseg.errors import DataError, MissingExtraError, StoppedError, UsageError

VERBS = (
    "check",
    "train",
    "evaluate",
    "compare",
    "predict",
    "pack",
    "augment",
    "bench",
    "models",
    "recipes",
    "demo",
)
HEAVY = {"torch", "numpy", "lightning_fabric", "matplotlib", "PIL", "scipy", "yaml"}


def modules_after(code: str) -> set[str]:
    """Return what a fresh interpreter has imported after running some code."""
    listing = "\nimport sys; print('\\nMODULES', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code + listing], capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_importing_binseg_is_cheap() -> None:
    """`import binseg` brings neither torch nor numpy."""
    assert not modules_after("import binseg") & HEAVY


def test_help_of_every_verb_imports_nothing_heavy() -> None:
    """Help is printed without torch, numpy or recipes, so it takes a blink."""
    code = (
        "from binseg.cli import app\n"
        f"for verb in {VERBS}: app([verb, '--help'], standalone_mode=False)"
    )
    assert not modules_after(code) & HEAVY


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples(verb: str) -> None:
    """Every verb's help ends with commands to copy, and fits into 80 columns."""
    result = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    examples = result.stdout.rpartition("Examples:")[2]
    assert max(map(len, result.stdout.partition("Examples:")[0].splitlines())) <= 80
    assert f"binseg {verb}" in examples
    for line in examples.splitlines() if "Examples" in result.stdout else ():
        assert not line.strip() or line.split()[0].startswith(("binseg", "torchrun", "BINSEG_")), (
            f"broken at 80 columns: {line}"
        )


WITHOUT_TORCH = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("torch", "lightning_fabric", "kornia"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def test_an_install_for_predicting_says_what_training_needs() -> None:
    """One sentence with the extra, from the shell and from Python, and no traceback."""
    shell = "from binseg.cli import main\nsys.argv = {}\nmain()"
    for code in (
        "import binseg\nbinseg.train(out='x', recipe='demo')",
        shell.format(["binseg", "train", "--data", "synthetic"]),
        shell.format(["binseg", "encoders"]),
    ):
        command = [sys.executable, "-c", WITHOUT_TORCH + code]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert last.endswith('which is not installed: pip install "binseg[train]"'), done.stderr
        if "main()" in code:
            assert "Traceback" not in done.stderr


def test_help_shows_no_type_for_switches() -> None:
    """A switch takes no value, so help names none."""
    for argv in (["--help"], ["train", "--help"], ["recipes", "--help"]):
        assert "bool" not in CliRunner().invoke(app, argv).stdout


def test_version() -> None:
    """--version says name and number, and nothing else happens."""
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("binseg ")


def failing(error: BaseException) -> typer.Typer:
    """Make an app whose only verb fails."""
    broken = typer.Typer(cls=Shell, pretty_exceptions_enable=False)

    @broken.command()
    def fail() -> None:
        raise error

    @broken.command()
    def other() -> None: ...

    return broken


def full_disk() -> OSError:
    """What writing to a full disk raises."""
    return OSError(28, "No space left on device", "/data/mask.png")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("no\nimages"), 1, "binseg: no images"),
        (UsageError("no such split"), 2, "binseg: no such split"),
        (full_disk(), 1, "binseg: /data/mask.png: no space left on device"),
        (KeyboardInterrupt(), 130, "binseg: stopped by Ctrl-C"),
        (StoppedError("interrupted", signal_number=15), 143, "binseg: interrupted"),
        (
            MissingExtraError("wandb", extra="wandb", purpose="logging"),
            1,
            "binseg: logging needs the package wandb, which is not installed: "
            'pip install "binseg[wandb]"',
        ),
    ],
)
def test_failure_is_one_line(error: BaseException, code: int, line: str) -> None:
    """What a user can mend is one line on stderr, with an exit code of its kind."""
    result = CliRunner().invoke(failing(error), ["fail"])
    assert result.exit_code == code
    assert result.stderr == f"{line}\n"
    assert result.stdout == ""


def test_bug_shows_traceback() -> None:
    """What we did not foresee is shown whole, and called a bug."""
    result = CliRunner().invoke(failing(RuntimeError("surprise")), ["fail"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "RuntimeError: surprise" in result.stderr
    assert "this is a bug" in result.stderr.splitlines()[-1]


def test_debug_shows_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """BINSEG_DEBUG=1 shows where a user's error was raised."""
    monkeypatch.setenv("BINSEG_DEBUG", "1")
    result = CliRunner().invoke(failing(DataError("no images")), ["fail"])
    assert "Traceback" in result.stderr


def test_wrong_verb_names_the_nearest() -> None:
    """A typo in a verb is a usage error with a hint, on one line."""
    result = CliRunner().invoke(app, ["evalute"])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "evaluate" in result.stderr


def test_models_as_json() -> None:
    """`binseg models --json` is pure JSON with the parameters of report D's U-Net."""
    result = CliRunner().invoke(app, ["models", "--json"])
    models = {line["name"]: line["num_parameters"] for line in json.loads(result.stdout)}
    assert models["unet"] == 31_037_633


def test_encoders_as_json() -> None:
    """`binseg encoders --json` is pure JSON with each encoder's parameters and options."""
    result = CliRunner().invoke(app, ["encoders", "--json"])
    encoders = {line["name"]: line for line in json.loads(result.stdout)}
    assert encoders["resnet34"]["num_parameters"] == 21_284_672
    assert encoders["efficientnet_lite0"]["options"] == {"width": 32}


def test_recipes_list_show_schema() -> None:
    """Recipes are listed, shown as YAML that loads again, and described as a JSON schema."""
    runner = CliRunner()
    listed = json.loads(runner.invoke(app, ["recipes", "list", "--json"]).stdout)
    assert "demo" in {line["name"] for line in listed}
    assert "demo" in runner.invoke(app, ["recipes"]).stdout
    assert "synthetic" in runner.invoke(app, ["recipes", "show", "demo"]).stdout
    assert json.loads(runner.invoke(app, ["recipes", "schema"]).stdout)["title"] == "Recipe"


def test_plain_progress_is_brief(capsys: pytest.CaptureFixture[str]) -> None:
    """In a log, a thousand quick steps leave no line; a fact leaves one."""
    progress = PlainProgress()
    with progress.task("counting", total=1000) as task:
        for _ in range(1000):
            task.advance(1, loss=0.5)
    progress.say("done")
    assert capsys.readouterr().err == "done\n"


def test_plain_progress_tells_long_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a log, long work says how far it is, now and then."""
    monkeypatch.setattr("binseg.cli.console.SECONDS_BETWEEN_LINES", 0.0)
    with PlainProgress().task("counting", total=2) as task:
        task.advance(1, loss=0.25)
    assert "counting: 1/2" in capsys.readouterr().err


def test_live_progress_nests() -> None:
    """Bars may be opened inside each other, and facts said between."""
    progress = LiveProgress()
    with progress.task("outer", total=2) as outer, progress.task("inner", total=None) as inner:
        inner.advance(1, loss=0.5)
        progress.say("a fact")
        outer.advance()


def test_smoke_in_a_real_process(discs: Path, tmp_path: Path) -> None:
    """A real process checks a real folder, and fails by exit code and one line elsewhere."""
    binseg = [sys.executable, "-m", "binseg"]
    good = subprocess.run(
        [*binseg, "check", "--data", str(discs), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(good.stdout)["facts"]["images"] == "16"
    bad = subprocess.run(
        [*binseg, "check", "--data", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert bad.returncode == 1
    assert "Traceback" not in bad.stderr


@pytest.mark.parametrize("verb", ["check", "train"])
def test_an_option_given_twice_is_refused(verb: str) -> None:
    """Two folders would train on the second alone; options that repeat go on repeating."""
    done = CliRunner().invoke(app, [verb, "--data", "a", "--data", "b"])
    assert done.exit_code == 2
    assert "--data is given 2 times; it takes one value" in done.output
