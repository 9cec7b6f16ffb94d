"""Images to try a model with: drawn on the spot, and the one that its bundle brings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

from binseg.imageio import encode_image, read_image
from binseg.inference.pretrained import photo_path
from binseg.report import for_display
from binseg.serve.model_registry import ModelRegistry, ServedModel

_SIZE, _SEED = 384, 11
_MOST_SAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image that may be shown to anyone."""

    name: str
    title: str
    credit: str
    make: Callable[[], bytes]

    def as_dict(self) -> dict[str, str]:
        """The facts as plain data, for lists."""
        return {"name": self.name, "title": self.title, "credit": self.credit}

    @cached_property
    def png(self) -> bytes:
        """The image, as PNG."""
        return self.make()


class Examples:
    """The examples of a server.

    Args:
        registry: its models; each one of grey or colour images brings its reference sample.
    """

    def __init__(self, registry: ModelRegistry) -> None:
        found = [
            Example(
                name=f"sample-{model.id}.png",
                title=f"A sample of {model.name}",
                credit="from the model's own data, at the size that it looks at",
                make=partial(_reference, model),
            )
            for model in registry
            if model.card.preprocessing.channels in (1, 3)
        ][:_MOST_SAMPLES]
        found += [
            Example(
                name="cat.png",
                title="A cat",
                credit="Chelsea, photographed by Stefan van der Walt (CC0)",
                make=lambda: encode_image(read_image(photo_path())),
            ),
            Example(
                name="drawn.png", title="Striped shapes", credit="drawn by binseg", make=_drawn
            ),
        ]
        self._by_name = {one.name: one for one in found}

    def list(self) -> list[Example]:
        """All examples."""
        return list(self._by_name.values())

    def find(self, name: str) -> Example | None:
        """Find an example by its name."""
        return self._by_name.get(name)


def _reference(model: ServedModel) -> bytes:
    assert model.predictor.bundle is not None, "listed for bundles alone"
    return encode_image(for_display(model.predictor.bundle.reference().input_NHWC[0]))


def _drawn() -> bytes:
    from binseg.data.sources.synthetic import draw_synthetic

    return encode_image(draw_synthetic(0, size=_SIZE, seed=_SEED)[0])
