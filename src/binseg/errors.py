"""Every error that binseg raises for a user, and nothing else.

    BinsegError            one clear line: what we got, what we accept, what to do
    ├── UsageError         an option, a recipe or a name that we don't accept (exit code 2)
    ├── DataError          a dataset as a whole: pairs, splits, manifests
    │   └── ImageError   one image or mask file that can't be read or used
    ├── BundleError        a model folder that is truncated, edited, foreign or too new
    ├── TrainingError      training can't go on: diverged, nothing to learn
    │   └── StoppedError   it was asked to stop, and can go on later (exit code 130 or 143)
    ├── ExportError        an exported model that doesn't answer like its origin; never written
    ├── OutputError        an answer that can't be written: disk full, no permission
    └── MissingExtraError  an optional part isn't installed; names the exact extra

A broken promise of our own code is an `assert`, never one of these.
"""

__all__ = [
    "BinsegError",
    "BundleError",
    "DataError",
    "ExportError",
    "ImageError",
    "MissingExtraError",
    "OutputError",
    "StoppedError",
    "TrainingError",
    "UsageError",
    "one_line",
    "training_extra_missing",
]


class BinsegError(Exception):
    """Anything that a user can mend; its text is one line, shown without a traceback."""

    exit_code: int = 1


class UsageError(BinsegError):
    """An option, a recipe or a name that binseg doesn't accept."""

    exit_code = 2


class DataError(BinsegError):
    """A dataset that can't be used as it is."""


class ImageError(DataError):
    """One image or mask that can't be read or used; the text names the file."""


class BundleError(BinsegError):
    """A bundle that is truncated, edited, foreign, or of a format that we don't know."""


class ExportError(BinsegError):
    """An export that failed its proof."""


class TrainingError(BinsegError):
    """Training that can't start or can't go on."""


class StoppedError(TrainingError):
    """Training that was asked to stop; the text tells how to go on.

    Args:
        text: one line.
        signal_number: that asked; the exit code follows from it, as in every shell.
    """

    def __init__(self, text: str, *, signal_number: int) -> None:
        super().__init__(text)
        self.exit_code = 128 + signal_number


class OutputError(BinsegError):
    """A result that can't be written."""


class MissingExtraError(BinsegError):
    """An optional part that isn't installed.

    Args:
        package: the import that failed, as users know it (`wandb`).
        extra: the extra of binseg that brings it (`wandb`).
        purpose: what it is needed for, a few words.
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed: "
            f'pip install "binseg[{extra}]"'
        )


_OF_TRAINING = frozenset({"torch", "lightning_fabric", "matplotlib"})


def training_extra_missing(error: ModuleNotFoundError, *, purpose: str) -> MissingExtraError | None:
    """Turn the absence of a part that training brings into a sentence; None for other modules.

    Args:
        error: of an import.
        purpose: what was asked for.
    """
    package = (error.name or "").split(".")[0]
    if package not in _OF_TRAINING:
        return None
    return MissingExtraError(package, extra="train", purpose=purpose)


def one_line(text: str, *, limit: int = 300) -> str:
    r"""Make another's text fit into our message: one line, no control characters, cut at `limit`.

    >>> one_line("two\nlines \x1b[2J")
    'two lines ?[2J'
    """
    line = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."
