"""The parameters that can come with an image."""

from typing import Annotated, Literal

from fastapi import Query, Request
from pydantic import BaseModel, ConfigDict, Field

from binseg.inference.predict_options import PredictOptions
from binseg.serve.refusals import Refusal

Output = Literal["mask", "probability", "overlay", "cutout", "json"]
_MOST_AREA = 10**12


class Wanted(BaseModel):
    """The parameters that all routes of prediction share."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    model: Annotated[str | None, Field(max_length=200)] = None
    """Id or name of a model (`/v1/models`); the first one if left out."""
    threshold: Annotated[float | None, Field(ge=0, le=1)] = None
    """A pixel is in the mask where its probability is above this; the model's own if left out."""
    min_area: Annotated[int | None, Field(ge=0, le=_MOST_AREA)] = None
    """Smaller objects are removed, in pixels; the model's own if left out, as with the next two."""
    fill_holes: Annotated[int | None, Field(ge=0, le=_MOST_AREA)] = None
    """Holes of up to so many pixels are filled."""
    largest_only: bool | None = None
    """Only the largest object stays."""

    def options(self) -> PredictOptions:
        """The settings that were asked for; the rest is left to the model."""
        return PredictOptions(
            threshold=self.threshold,
            min_area=self.min_area,
            fill_holes=self.fill_holes,
            largest_only=self.largest_only,
        )


class PredictQuery(Wanted):
    """The parameters of `/v1/predict`."""

    output: Output | None = None
    """The result: a PNG (mask: 0 and 255; probability: times 255; overlay; cutout with
    transparency), or JSON with objects, polygons and run lengths. If left out, `Accept` decides:
    application/json gives json, anything else the mask."""


class JobQuery(Wanted):
    """The parameters of `/v1/jobs`."""

    output: Output = "mask"
    """As for `/v1/predict`. Stacks, and images above 64 megapixels, come as a TIFF of mask or
    probability."""


Predicting = Annotated[PredictQuery, Query()]
Working = Annotated[JobQuery, Query()]
Asking = Annotated[Wanted, Query()]


def output_of(query: PredictQuery, request: Request) -> Output:
    """Tell what comes back, by the parameter or else by the header Accept."""
    if query.output is not None:
        return query.output
    kind = media_of(request, ("image/png", "application/json"))
    return "json" if kind == "application/json" else "mask"


def media_of(request: Request, offered: tuple[str, ...]) -> str:
    """Choose the offered media type that a client likes best; the first one where all are alike.

    Raises:
        Refusal: 406, as it takes none of them.
    """
    accept = request.headers.get("accept", "").strip() or "*/*"
    best, chosen = 0.0, None
    for media in offered:
        quality = _quality(accept, media)
        if quality > best:
            best, chosen = quality, media
    if chosen is None:
        raise Refusal(
            406, "not_acceptable", f"This comes as {' or '.join(offered)}; Accept excludes those."
        )
    return chosen


def _quality(accept: str, media: str) -> float:
    """Tell how much a client likes a media type, from 0 to 1: the most exact mention counts."""
    found = (-1, 0.0)
    for part in accept.lower().split(","):
        kind, *settings = (piece.strip() for piece in part.split(";"))
        quality = 1.0
        for setting in settings:
            if setting.startswith("q="):
                try:
                    quality = min(1.0, max(0.0, float(setting[2:])))
                except ValueError:
                    quality = 0.0
        main = media.split("/", maxsplit=1)[0]
        exact = {media: 2, f"{main}/*": 1, "*/*": 0}.get(kind, -1)
        if exact > found[0]:
            found = (exact, quality)
    return found[1]
