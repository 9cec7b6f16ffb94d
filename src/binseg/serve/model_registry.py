"""The models of a server, each with its card and its batches."""

import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

from binseg.errors import BundleError, UsageError
from binseg.inference import ModelPredictor, load, verify_reference
from binseg.inference.pretrained import default_bundle_path
from binseg.serve.batching import Batcher, SharedBackend
from binseg.serve.refusals import Refusal

_DEMO = Path("runs/demo/bundle")
_MAX_MESSAGE = 1000
_INPUT = ("height", "width", "channels", "resize", "scale", "intensity")


class ServedModel:
    """A model with its batches.

    Args:
        predictor: the model.
        is_default: whether it answers where no model is named.
        name: of its run; the card's if left out.
    """

    def __init__(self, predictor: ModelPredictor, *, is_default: bool, name: str = "") -> None:
        assert predictor.card is not None, "only bundles are served"
        self.predictor = copy(predictor)
        self.predictor.backend = SharedBackend(predictor.backend)
        self.card = predictor.card
        self.id = predictor.bundle_id
        self.name = name or predictor.card.name
        self.finds = self.card.data.note or self.card.data.kind
        """The things that it was trained to find, as far as its card says."""
        self.is_default = is_default
        self._batcher: Batcher | None = None

    @property
    def batcher(self) -> Batcher:
        """The thread that computes the model's inputs; after `open`."""
        assert self._batcher is not None, "models are open while the server runs"
        return self._batcher

    def open(self, expected: Callable[[], int], told: Callable[[int], None]) -> None:
        """Start the model's thread."""
        self._batcher = Batcher(
            self.predictor.probability_of_inputs,
            batch_size=self.predictor.batch_size,
            expected=expected,
            told=told,
        )

    def close(self) -> None:
        """Finish what was submitted, and end the thread."""
        if self._batcher is not None:
            self._batcher.close()
            self._batcher = None

    def facts(self) -> dict[str, Any]:
        """The card, for clients; the recipe stays here, as it names the trainer's folders."""
        card = self.card
        about = card.recipe.get("about")
        summary = about.get("summary") if isinstance(about, dict) else None
        return {
            "id": self.id,
            "name": self.name,
            "finds": self.finds,
            "summary": summary if isinstance(summary, str) else "",
            "is_default": self.is_default,
            "threshold": card.threshold.value,
            "threshold_method": card.threshold.method,
            "postprocess": card.postprocess.as_dict(),
            "tta": card.tta,
            "input": {name: getattr(card.preprocessing, name) for name in _INPUT},
            "architecture": card.architecture.model_dump(mode="json"),
            "border": card.border,
            "scores": card.scores,
            "data": card.data.model_dump(mode="json"),
            "licence": card.licence,
            "created": card.created.isoformat(),
            "versions": card.versions,
            "runtime": f"{self.predictor.backend.name} {self.predictor.backend.precision}",
        }


class ModelRegistry:
    """All models of a server; the first is the default.

    Args:
        predictors: opened bundles.
        names: of their runs; the cards' if left out.

    Raises:
        UsageError: no model, or one of them twice.
    """

    def __init__(self, predictors: Sequence[ModelPredictor], names: Sequence[str] = ()) -> None:
        self._models = [
            ServedModel(one, is_default=i == 0, name=names[i] if names else "")
            for i, one in enumerate(predictors)
        ]
        ids = [one.id for one in self._models]
        if not ids:
            raise UsageError("a server needs a model")
        if len(set(ids)) < len(ids):
            raise UsageError(f"the same model twice ({', '.join(ids)}): give each bundle once")

    @property
    def default(self) -> ServedModel:
        """The model that answers where none is named."""
        return self._models[0]

    def find(self, name: str | None) -> ServedModel:
        """Find a model by its id or its name.

        Raises:
            Refusal: 404, as there is none, or several of that name.
        """
        if name is None:
            return self.default
        found = [one for one in self._models if one.id == name]
        found = found or [one for one in self._models if name in (one.name, one.card.name)]
        if len(found) == 1:
            return found[0]
        ids = ", ".join(f"{one.id} ({one.name})" for one in self._models)
        raise Refusal(
            404, "no_such_model", f"There is no such model; choose one of {ids}."[:_MAX_MESSAGE]
        )

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)


def choose_bundles(paths: Sequence[Path], *, demo: bool) -> list[Path]:
    """Choose the bundles to serve: where nothing is named, the one that comes with binseg.

    Args:
        paths: what the user named.
        demo: add the bundle that `binseg demo` makes.

    Raises:
        UsageError: the demo's isn't there.
    """
    if not demo:
        return [*paths] or [default_bundle_path()]
    if not _DEMO.exists():
        raise UsageError(
            f"{_DEMO} isn't there: make it with `make demo`, or `binseg demo --out "
            f"{_DEMO.parent}` (a few minutes), then serve it"
        )
    return [*paths, _DEMO]


def run_name(path: Path) -> str:
    """Name a model after its run, as people do; "" for the built-in one, whose card has a name.

    >>> run_name(Path("runs/first")), run_name(Path("runs/demo/bundle")), run_name(Path("cats.zip"))
    ('first', 'demo', 'cats')
    """
    if path == default_bundle_path():
        return ""
    whole = Path(os.path.abspath(path))  # noqa: PTH100 - `.` has a name, a link keeps its own
    run = whole.parent if whole.name == "bundle" else whole
    return run.name.removesuffix(".zip")[:80]


def open_models(
    paths: Sequence[Path], *, backend: str, device: str, precision: str, batch_size: int
) -> list[ModelPredictor]:
    """Load bundles and try each on its reference sample, which also warms it up.

    Raises:
        BundleError: one is damaged, or doesn't compute here what it should.
    """
    predictors = []
    for path in paths:
        predictor = load(
            path, backend=backend, device=device, precision=precision, batch_size=batch_size
        )
        assert predictor.bundle is not None
        check = verify_reference(predictor, predictor.bundle)
        if not check.passed:
            raise BundleError(
                f"{path}: its reference sample comes out differently here, by "
                f"{check.largest_difference:.3g} (up to {check.tolerance:g} is rounding); try "
                "--precision fp32 or another --backend"
            )
        predictors.append(predictor)
    return predictors
