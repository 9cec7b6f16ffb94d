"""The nouns keep their promises and show themselves in notebooks."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
from PIL import Image

import binseg
from binseg.inference import Prediction
from binseg.postprocess import PostProcessing
from binseg.types import Counts, ImageScores, Report


def _prediction() -> Prediction:
    probability_HW = np.array([[0.1, 0.5, 0.9]], dtype=np.float32)
    return Prediction(probability_HW=probability_HW, threshold=0.5, bundle_id="abc")


def test_a_mask_is_what_lies_above_the_threshold() -> None:
    """A pixel exactly at the threshold is background: the rule is `>`, everywhere."""
    assert _prediction().mask.tolist() == [[False, False, True]]


def test_a_mask_has_the_corrections_that_belong_to_it() -> None:
    """The one pixel is smaller than what may stay."""
    corrected = replace(_prediction(), postprocessing=PostProcessing(min_area=2))
    assert not corrected.mask.any()


def _shown(html: str) -> np.ndarray:
    """The pixels of the image that a notebook shows."""
    found = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert found is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))))


def test_a_prediction_shows_itself_as_an_overlay_or_as_its_mask() -> None:
    """A notebook's image has the image's size and the mask's colour; without an image, the mask."""
    prediction = replace(_prediction(), name="<a>.jpg")
    html = prediction._repr_html_()
    assert _shown(html).tolist() == [[0, 0, 255]]
    assert "&lt;a&gt;.jpg" in html
    with_image = replace(prediction, image_HWC=np.full((1, 3, 3), 7, np.uint8))
    assert np.array_equal(_shown(with_image._repr_html_()), with_image.overlay())
    assert not np.array_equal(with_image.overlay()[0, 2], [7, 7, 7])


def test_a_report_shows_itself_as_a_table_with_its_rules() -> None:
    """The HTML holds each score, the border rule and the notes, with markup escaped."""
    counts = Counts(tp=1, fp=0, fn=0, tn=3)
    scores = {"dice": 0.75}
    report = Report(
        title="test <split>",
        bundle_id="abc",
        split="test",
        threshold=0.4,
        border="foreground",
        images=(ImageScores(id="a", counts={"original": counts}, scores={"original": scores}),),
        mean={"original": scores},
        pooled={"original": scores},
        num_empty_truth=0,
        notes=("empty means 1",),
    )
    html = report._repr_html_()
    assert "mean dice 0.7500 at original size" in html
    assert "border: foreground" in html
    assert "empty means 1" in html
    assert "test &lt;split&gt;" in html
    # A report of a thousand images has megabytes of figures; its repr is the headline.
    assert repr(report) == (
        "<Report 'test <split>': mean dice 0.7500 at original size, images: 1, threshold 0.400>"
    )


def test_every_public_name_resolves_and_is_listed() -> None:
    """`binseg.__all__` and `dir` name the same things, and the lazy homes only such."""
    for name in binseg.__all__:
        assert getattr(binseg, name) is not None
    assert sorted(binseg.__all__) == sorted(dir(binseg))
    assert set(binseg._HOMES) <= set(binseg.__all__)
