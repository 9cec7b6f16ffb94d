"""POST /v1/predict answers as the predictor does, in every form."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from pycocotools import mask as coco_mask
from starlette.testclient import TestClient

from binseg.imageio import decode_image
from binseg.imageio.metadata import PixelSize
from binseg.inference import ModelPredictor, PredictOptions
from binseg.postprocess import PostProcessing, clean
from binseg.serve.app import create_app
from binseg.serve.limits import Limits
from binseg.serve.service import Service

from .conftest import decoded, png

URL = "/v1/predict"


@pytest.fixture
def probability_HW(predictor: ModelPredictor, image: bytes) -> np.ndarray:
    return predictor.predict(decode_image(image, name="p")).probability


def test_the_mask_is_that_of_the_predictor(
    client: TestClient, image: bytes, probability_HW: np.ndarray, predictor: ModelPredictor
) -> None:
    """Over HTTP and in Python an image has one mask, and the headers say what made it."""
    answer = client.post(URL, content=image)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert np.array_equal(decoded(answer.content) > 0, probability_HW > predictor.threshold)
    assert answer.headers["X-Binseg-Model"] == predictor.bundle_id
    assert float(answer.headers["X-Binseg-Threshold"]) == predictor.threshold
    assert answer.headers["X-Binseg-Size"] == "44x36"
    assert float(answer.headers["X-Binseg-Seconds"]) >= 0


@pytest.mark.parametrize("output", ["mask", "probability", "overlay", "cutout", "json"])
def test_every_output_says_how_good_the_mask_probably_is(
    client: TestClient, image: bytes, predictor: ModelPredictor, output: str
) -> None:
    """A header has the quality that Python gives, so that no doubtful mask comes without a word."""
    answer = client.post(URL, content=image, params={"output": output})
    quality = predictor.predict(decode_image(image, name="p")).quality
    assert quality is not None
    assert json.loads(answer.headers["X-Binseg-Quality"]) == quality.as_dict()
    unjudged = client.post(URL, content=image, params={"output": output, "quality": False})
    assert "X-Binseg-Quality" not in unjudged.headers
    if output == "json":
        assert answer.json()["quality"] == quality.as_dict()
        assert unjudged.json() == {**answer.json(), "quality": None}
    else:
        assert unjudged.content == answer.content


def test_units_go_with_the_image(
    client: TestClient, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TIFF that knows its pixels is scaled by them, as elsewhere, and measured in micrometres."""
    out, asked = io.BytesIO(), []
    metadata = {"unit": "um"}
    tifffile.imwrite(out, decoded(image), imagej=True, resolution=(4.0, 2.0), metadata=metadata)
    scaled_to = ModelPredictor.scaled_to

    def noted(self: ModelPredictor, size: Any, options: PredictOptions) -> Any:
        asked.append(size)
        return scaled_to(self, size, options)

    monkeypatch.setattr(ModelPredictor, "scaled_to", noted)
    answer = client.post(URL, content=out.getvalue(), params={"output": "json", "threshold": 0.2})
    assert answer.headers["X-Binseg-Pixel-Um"] == "0.25x0.5"
    assert asked == [PixelSize(height=0.5, width=0.25)]
    found = answer.json()["objects"]
    assert found
    assert all(one["area_um2"] == pytest.approx(one["area_px"] / 8) for one in found)
    assert "X-Binseg-Pixel-Um" not in client.post(URL, content=image).headers


def test_a_form_and_a_body_are_alike(client: TestClient, image: bytes) -> None:
    """The field `file` of a form is answered as the bytes alone are."""
    plain = client.post(URL, content=image)
    form = client.post(URL, files={"file": ("a.png", image)})
    assert form.status_code == 200
    assert form.content == plain.content


def test_probability_is_the_map_times_255(
    client: TestClient, image: bytes, probability_HW: np.ndarray
) -> None:
    """The page draws any threshold from it: value = round(probability x 255)."""
    answer = client.post(URL, content=image, params={"output": "probability"})
    assert np.array_equal(decoded(answer.content), np.rint(probability_HW * 255))


@pytest.mark.parametrize(
    ("query", "postprocessing"),
    [
        ({"min_area": 40}, PostProcessing(min_area=40)),
        ({"fill_holes": 30}, PostProcessing(fill_holes=30)),
        ({"largest_only": True}, PostProcessing(largest_only=True)),
    ],
)
def test_threshold_and_clean_up_are_parameters(
    client: TestClient,
    image: bytes,
    probability_HW: np.ndarray,
    query: dict[str, Any],
    postprocessing: PostProcessing,
) -> None:
    """The mask is what `clean` makes of the probability above the threshold."""
    threshold = float(np.median(probability_HW))
    answer = client.post(URL, content=image, params={"threshold": threshold, **query})
    expected = clean(probability_HW > threshold, postprocessing)
    assert np.array_equal(decoded(answer.content) > 0, expected)
    with Image.open(io.BytesIO(answer.content)) as mask:
        notes = json.loads(mask.info["binseg"])
    assert notes["threshold"] == threshold
    assert notes["postprocess"] == postprocessing.as_dict()


def test_a_models_own_corrections_are_made_unless_asked_otherwise(
    predictor: ModelPredictor, image: bytes, probability_HW: np.ndarray, tmp_path: Path
) -> None:
    """The server gives the mask that Python and the command line give."""
    threshold = float(np.median(probability_HW))
    own = PostProcessing(min_area=40, fill_holes=30)
    served = predictor.with_options(PredictOptions(threshold=threshold, min_area=40, fill_holes=30))
    app = create_app(Service([served], state=tmp_path / "state", limits=Limits()), access=None)
    with TestClient(app) as client:
        for query, postprocessing in (
            ({}, own),
            ({"min_area": 0}, PostProcessing(fill_holes=30)),
            ({"largest_only": True}, replace(own, largest_only=True)),
        ):
            answer = client.post(URL, content=image, params=query)
            expected = clean(probability_HW > threshold, postprocessing)
            assert np.array_equal(decoded(answer.content) > 0, expected), query
            with Image.open(io.BytesIO(answer.content)) as mask:
                assert json.loads(mask.info["binseg"])["postprocess"] == postprocessing.as_dict()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_json_describes_the_mask(client: TestClient, image: bytes) -> None:
    """Run lengths, polygons and objects all say the mask; pycocotools reads the run lengths."""
    mask = decoded(client.post(URL, content=image).content) > 0
    answer = client.post(URL, content=image, headers={"Accept": "application/json"}).json()
    rle = answer["rle"]
    assert np.array_equal(coco_mask.decode(rle) > 0, mask)
    assert answer["num_objects"] == len(answer["objects"])
    assert sum(one["area_px"] for one in answer["objects"]) == mask.sum()
    assert answer["foreground_share"] == pytest.approx(mask.mean())
    assert (answer["width"], answer["height"]) == (44, 36)
    assert answer["polygons"]["type"] == "FeatureCollection"
    assert len(answer["polygons"]["features"]) == answer["num_objects"]


def test_overlay_and_cutout_have_the_image_in_them(client: TestClient, image: bytes) -> None:
    """The cut-out's alpha is the mask and its colours the image's; the overlay is RGB."""
    mask = decoded(client.post(URL, content=image).content)
    cutout = decoded(client.post(URL, content=image, params={"output": "cutout"}).content)
    assert np.array_equal(cutout[:, :, 3] > 127, mask > 127)
    whole = np.isin(cutout[:, :, 3], (0, 255))
    assert np.array_equal(cutout[:, :, :3][whole], decoded(image)[whole])
    overlay = decoded(client.post(URL, content=image, params={"output": "overlay"}).content)
    assert overlay.shape == (36, 44, 3)
    assert np.array_equal(overlay[mask == 0].astype(int), decoded(image)[mask == 0]) or mask.any()


def test_cutouts_keep_transparency_and_profile(client: TestClient, image: bytes) -> None:
    """What was transparent in an upload stays so, and its colours keep their profile."""
    pixels = decoded(image)
    opacity = np.full(pixels.shape[:2], 255, np.uint8)
    opacity[:, :20] = 0
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    out = io.BytesIO()
    Image.fromarray(np.dstack([pixels, opacity])).save(out, format="PNG", icc_profile=icc)
    answer = client.post(URL, content=out.getvalue(), params={"output": "cutout"})
    with Image.open(io.BytesIO(answer.content)) as cutout:
        assert cutout.info["icc_profile"] == icc
        alpha = np.asarray(cutout)[:, :, 3]
    plain = decoded(client.post(URL, content=image, params={"output": "cutout"}).content)
    assert alpha[:, :20].max() == 0
    assert np.array_equal(alpha[:, 20:], plain[:, 20:, 3])
    assert alpha.max() == 255


def test_turned_photos_are_answered_as_they_are_seen(client: TestClient, image: bytes) -> None:
    """A camera's EXIF turn swaps the sides: the mask fits what viewers show."""
    photo = Image.fromarray(decoded(image))
    exif = photo.getexif()
    exif[274] = 6
    out = io.BytesIO()
    photo.save(out, format="PNG", exif=exif)
    answer = client.post(URL, content=out.getvalue())
    assert answer.headers["X-Binseg-Size"] == "36x44"
    assert decoded(answer.content).shape == (44, 36)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("application/json;q=0.4, image/png;q=0.2", "application/json"),
        ("application/*", "application/json"),
        ("text/html, */*;q=0.1", "image/png"),
    ],
)
def test_accept_chooses_where_no_parameter_does(
    client: TestClient, image: bytes, accept: str, kind: str
) -> None:
    """The header Accept is read as RFC 9110 says, by exactness and quality."""
    answer = client.post(URL, content=image, headers={"Accept": accept})
    assert answer.headers["content-type"] == kind


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"model": "none"}, 404, "no_such_model"),
        ({"model": "../../etc/passwd"}, 404, "no_such_model"),
        ({"threshold": 1.5}, 422, "bad_parameter"),
        ({"threshold": "nan"}, 422, "bad_parameter"),
        ({"min_area": -1}, 422, "bad_parameter"),
        ({"output": "bmp"}, 422, "bad_parameter"),
        ({"treshold": 0.5}, 422, "bad_parameter"),
    ],
)
def test_wrong_parameters_are_refused(
    client: TestClient, image: bytes, query: dict[str, Any], status: int, code: str
) -> None:
    """Each with its status, a stable code and one sentence; a misspelt name isn't passed over."""
    answer = client.post(URL, content=image, params=query)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["message"].endswith(".")
    assert "\n" not in error["message"]


def test_what_accept_excludes_is_not_sent(client: TestClient, image: bytes) -> None:
    """406 rather than an image that the client said it can't read."""
    answer = client.post(URL, content=image, headers={"Accept": "text/html"})
    assert answer.status_code == 406


@pytest.mark.parametrize("body", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"{}"])
def test_what_is_no_image_is_refused(client: TestClient, body: bytes) -> None:
    """422 with a sentence that doesn't blame the server."""
    answer = client.post(URL, content=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "unreadable_image"


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ({"image": ("a.png", b"x")}, 422),
        ([("file", ("a.png", b"x")), ("file", ("b.png", b"x"))], 400),
        ({}, 400),
    ],
)
def test_wrong_forms_are_refused(client: TestClient, files: Any, status: int) -> None:
    """Another field, several files, or no form at all."""
    headers = {} if files else {"Content-Type": "multipart/form-data"}
    assert client.post(URL, files=files or None, headers=headers).status_code == status


def test_masks_of_noise_have_no_json(
    client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    image: bytes,
    probability_HW: np.ndarray,
) -> None:
    """Outlines that would take minutes and gigabytes are refused; the mask is still to be had."""
    monkeypatch.setattr("binseg.serve.pipeline._MOST_OUTLINE", 10)
    middle = {"threshold": float(np.median(probability_HW))}
    answer = client.post(URL, content=image, params={"output": "json", **middle})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "too_many_outlines"
    assert client.post(URL, content=image, params=middle).status_code == 200


def test_previews_are_what_browsers_show(client: TestClient) -> None:
    """A 16-bit TIFF of 5000 pixels comes as an 8-bit PNG of 4096; the header has its own size."""
    import tifffile

    out = io.BytesIO()
    tifffile.imwrite(out, np.tile(np.arange(5000, dtype=np.uint16), (40, 1)))
    answer = client.post("/v1/preview", content=out.getvalue())
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Binseg-Size"] == "5000x40"
    shown = decoded(answer.content)
    assert shown.shape == (33, 4096, 3)
    assert shown.dtype == np.uint8
    assert shown.max() == 255


def test_several_files_come_back_as_zip_or_json(client: TestClient, image: bytes) -> None:
    """Names are kept but made harmless and unlike; what can't be read is listed, not hidden."""
    import zipfile

    files = [
        ("files", ("../../a.png", image)),
        ("files", ("A.jpg", image)),
        ("files", ("bad.png", b"nonsense")),
    ]
    answer = client.post("/v1/batch", files=files)
    assert answer.status_code == 200, answer.text
    archive = zipfile.ZipFile(io.BytesIO(answer.content))  # in memory: nothing to close
    assert archive.namelist() == ["a.png", "A_2.png", "errors.json", "quality.json"]
    alone = client.post(URL, content=image)
    assert np.array_equal(decoded(archive.read("a.png")), decoded(alone.content))
    assert json.loads(archive.read("quality.json")).keys() == {"a.png", "A_2.png"}
    (error,) = json.loads(archive.read("errors.json"))
    assert error["name"] == "bad.png"
    assert error["error"]["code"] == "unreadable_image"
    lines = client.post("/v1/batch", files=files, headers={"Accept": "application/json"}).json()
    assert [line["name"] for line in lines["results"]] == ["a.png", "A.jpg", "bad.png"]
    assert lines["results"][0]["rle"] == lines["results"][1]["rle"]
    only_bad = client.post("/v1/batch", files=files[2:])
    assert only_bad.status_code == 422


def test_models_have_cards(client: TestClient, predictor: ModelPredictor) -> None:
    """The card is there without the recipe, which names the trainer's folders."""
    answer = client.get("/v1/models").json()
    (model,) = answer["models"]
    assert model["id"] == predictor.bundle_id
    assert model["is_default"] is True
    assert model["input"]["height"] == 32
    assert "recipe" not in model
    assert answer["limits"]["max_bytes"] == 50_000_000
    assert client.get(f"/v1/models/{model['name']}").json() == model
    assert client.get("/v1/models/none").status_code == 404


def test_examples_can_be_predicted(client: TestClient) -> None:
    """Each example that is listed is an image that the model answers."""
    listed = client.get("/v1/examples").json()
    assert [one["name"] for one in listed[-2:]] == ["cat.png", "drawn.png"]
    assert len(listed) == 3, "and the model's own sample"
    for one in listed:
        example = client.get(f"/v1/examples/{one['name']}")
        assert example.headers["content-type"] == "image/png"
        assert client.post(URL, content=example.content).status_code == 200
    assert client.get("/v1/examples/..%2F..%2Fcard.json").status_code == 404


def test_a_grey_image_of_one_pixel_is_an_image(client: TestClient) -> None:
    """The smallest there is."""
    answer = client.post(URL, content=png(np.zeros((1, 1), np.uint8)))
    assert decoded(answer.content).shape == (1, 1)
