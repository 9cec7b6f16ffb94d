"""The models of a server, each with its card and its batches, and images to try them with."""

import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from binseg.errors import BundleError, UsageError
from binseg.imageio import encode_image, read_image
from binseg.inference import LoadSettings, ModelPredictor, load, verify_reference
from binseg.inference.pretrained import default_bundle_path, photo_path
from binseg.packaging import Card
from binseg.report import for_display
from binseg.serve.batching import Batcher, SharedBackend
from binseg.serve.refusals import Refusal

_DEMO = Path("runs/demo/bundle")
_MAX_MESSAGE = 1000
_INPUT = ("height", "width", "channels", "resize", "scale", "intensity")
_SHOWN = {"tta", "architecture", "border", "scores", "data", "licence", "versions"}
_FOUND_IN = {"oxford-pet": "cats and dogs", "synthetic": "shapes that binseg draws"}
_SIZE, _SEED = 384, 11
_MOST_SAMPLES = 4


class ServedModel:
    """A model with its batches; the one that `is_default` answers where no model is named."""

    def __init__(self, predictor: ModelPredictor, *, is_default: bool, name: str = "") -> None:
        assert predictor.card is not None, "only bundles are served"
        self.predictor = copy(predictor)
        self.predictor.backend = self._backend = SharedBackend(predictor.backend)
        self.card = predictor.card
        self.id = predictor.bundle_id
        self.name = name or predictor.card.name
        self.finds = finds(self.card)  # The things that it was trained to find, by its card
        self.is_default = is_default
        self.batcher: Batcher | None = None  # While the server runs

    def open(self, expected: Callable[[], int], told: Callable[[int], None]) -> None:
        """Start the model's threads."""
        self._backend.open()
        compute, size = self.predictor.probability_of_inputs, self.predictor.batch_size
        self.batcher = Batcher(compute, batch_size=size, expected=expected, told=told)

    def close(self) -> None:
        """Finish what was begun, and end the threads."""
        if self.batcher is not None:
            self.batcher.close()
        self._backend.close()

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
            "input": {name: getattr(card.preprocessing, name) for name in _INPUT},
            **card.model_dump(mode="json", include=_SHOWN),
            "created": card.created.isoformat(),
            "runtime": f"{self.predictor.backend.name} {self.predictor.backend.precision}",
        }

    def sample_png(self) -> bytes:
        """Encode the model's reference sample."""
        assert self.predictor.bundle is not None, "only bundles are served"
        return encode_image(for_display(self.predictor.bundle.reference().input_NHWC[0]))


def finds(card: Card) -> str:
    """Name the things that a model was trained to find: its labels, or those of known data."""
    data = card.recipe.get("data")
    labels = data.get("labels") if isinstance(data, dict) else None
    named = ", ".join(str(one) for one in labels) if isinstance(labels, list) else ""
    return named or _FOUND_IN.get(card.data.kind, "")


class ModelRegistry:
    """All models of a server; the first is the default. UsageError for none, or one twice."""

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
        """Find a model by its id or its name, or refuse with 404."""
        if name is None:
            return self.default
        found = [one for one in self._models if one.id == name]
        found = found or [one for one in self._models if name in (one.name, one.card.name)]
        if len(found) == 1:
            return found[0]
        ids = ", ".join(f"{one.id} ({one.name})" for one in self._models)
        told = f"There is no such model; choose one of {ids}."
        raise Refusal(404, "no_such_model", told[:_MAX_MESSAGE])

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)


class Example(NamedTuple):
    """An image that may be shown to anyone, by its `facts`."""

    facts: dict[str, str]
    png: Callable[[], bytes]


def _example(make: Callable[[], bytes], name: str, title: str, credit: str) -> Example:
    return Example({"name": name, "title": title, "credit": credit}, cache(make))


def examples_for(registry: ModelRegistry) -> dict[str, Example]:
    """List images to try the models with; those of grey or colour bring their samples."""
    source = "from the model's own data, at the size that it looks at"
    shown = [one for one in registry if one.card.preprocessing.channels in (1, 3)]
    samples = [
        _example(one.sample_png, f"sample-{one.id}.png", f"A sample of {one.name}", source)
        for one in shown[:_MOST_SAMPLES]
    ]
    photo = "Chelsea, photographed by Stefan van der Walt (CC0)"
    cat = _example(lambda: encode_image(read_image(photo_path())), "cat.png", "A cat", photo)
    drawn = _example(_drawn, "drawn.png", "Striped shapes", "drawn by binseg")
    return {one.facts["name"]: one for one in (*samples, cat, drawn)}


def _drawn() -> bytes:
    from binseg.data.sources.synthetic import draw_synthetic

    return encode_image(draw_synthetic(0, size=_SIZE, seed=_SEED)[0])


def choose_bundles(paths: Sequence[Path], *, demo: bool) -> list[Path]:
    """Choose the bundles to serve: the named ones, the demo's (or UsageError), or binseg's own."""
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


def open_models(paths: Sequence[Path], **settings: Unpack[LoadSettings]) -> list[ModelPredictor]:
    """Load bundles and try each on its reference sample, which also warms it up; or BundleError."""
    predictors = []
    for path in paths:
        predictor = load(path, **settings)
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
