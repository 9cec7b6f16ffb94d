"""Every error that binseg raises for a user, and the hint that ends a message about a typo.

    BinsegError            one line: what we got, what we accept, what to do (exit code 1)
    ├── UsageError         an option, a recipe or a name that binseg doesn't accept (exit code 2)
    ├── DataError          a data set as a whole: pairs, splits, manifests
    │   └── ImageError     one image or mask file that can't be read or used
    ├── BundleError        a model folder that is truncated, edited, foreign or too new
    ├── TrainingError      training that can't start or can't go on
    │   └── StoppedError   training that was asked to stop and can be resumed (130 or 143)
    ├── ExportError        an exported model that predicts differently; it is never written
    ├── OutputError        a result that can't be written: disk full, no permission
    └── MissingExtraError  an optional dependency that isn't installed; names the extra

A broken promise of our own code is an `assert`, never one of these.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_TRAINING_PACKAGES = frozenset({"torch", "lightning_fabric", "matplotlib"})


class BinsegError(Exception):
    """An error that the user can fix; its text is one line, shown without a traceback."""

    exit_code: int = 1


class UsageError(BinsegError):
    """An option, a recipe or a name that binseg doesn't accept."""

    exit_code = 2


class DataError(BinsegError):
    """A data set that can't be used as it is."""


class ImageError(DataError):
    """One image or mask that can't be read or used; the text names the file."""


class BundleError(BinsegError):
    """A bundle that is truncated, edited, foreign, or in a format we don't know."""


class ExportError(BinsegError):
    """An export that failed its comparison with the original model."""


class TrainingError(BinsegError):
    """Training that can't start or can't go on."""


class StoppedError(TrainingError):
    """Training that was asked to stop; the exit code follows from the signal, as in shells."""

    def __init__(self, text: str, *, signal_number: int) -> None:
        super().__init__(text)
        self.exit_code = 128 + signal_number


class OutputError(BinsegError):
    """A result that can't be written."""


class MissingExtraError(BinsegError):
    """An optional `package` (as users know it) of an `extra` isn't installed, for a `purpose`."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        self.facts = {"package": package, "extra": extra, "purpose": purpose}
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed: "
            f'pip install "binseg[{extra}]"'
        )


@contextmanager
def needing(package: str, *, extra: str, purpose: str) -> Iterator[None]:
    """Raise MissingExtraError where this very package, imported within, isn't installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = {"scikit-image": "skimage"}.get(package, package.replace("-", "_"))
        if (error.name or module).partition(".")[0] != module:
            raise
        raise MissingExtraError(package, extra=extra, purpose=purpose) from None


def training_extra_missing(error: ModuleNotFoundError, *, purpose: str) -> MissingExtraError | None:
    """Turn a failed import into the error that names `binseg[train]`; None for other modules."""
    package = (error.name or "").partition(".")[0]
    if package not in _TRAINING_PACKAGES:
        return None
    return MissingExtraError(package, extra="train", purpose=purpose)


def one_line(text: str, *, limit: int = 300) -> str:
    r"""Make another's text fit into our message: one line, no control characters, cut at `limit`.

    >>> one_line("two\nlines \x1b[2J")
    'two lines ?[2J'
    """
    line = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."


def suggest(name: str, accepted: Iterable[str]) -> str:
    """Return the hint that ends every message about an unknown name.

    >>> suggest("resnet34unet", ["unet", "resnet34-unet"])
    'did you mean resnet34-unet? accepted: resnet34-unet, unet'
    >>> suggest("x", ["unet"])
    'accepted: unet'
    """
    from difflib import get_close_matches

    names = sorted(accepted)
    near = get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)
    listed = f"accepted: {', '.join(names)}"
    return f"did you mean {near[0]}? {listed}" if near else listed
