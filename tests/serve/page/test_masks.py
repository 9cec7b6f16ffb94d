"""What the page shows and saves is what the server answers, to the pixel."""

import io
import json
import zipfile
from typing import Any

import numpy as np
import pytest

from binseg.postprocess import PostProcessing, clean, find_objects

from .drawings import HEIGHT, TEXT, WIDTH, decode, draw_discs, png
from .driving import Open, levels_of, save, set_level, show, shows, until
from .server import Service


def test_pasted_image_gets_its_mask(open_page: Open, service: Service) -> None:
    """A pasted image is shown with the server's area and number of objects at its threshold."""
    tab = open_page()
    show(tab, png(0, "image.png"), kind="paste")
    threshold = (int(tab.locator("#threshold").input_value()) + 0.5) / 255
    assert f"{threshold:.3f}" == tab.locator("#threshold-value").text_content()
    shows(tab, service.mask(png()[2], threshold=threshold))
    assert f"of {WIDTH} \u00d7 {HEIGHT}" in tab.locator("#facts").text_content()
    assert tab.locator("#image-name").text_content() == "pasted-1.png"


def test_slider_is_the_servers_threshold(open_page: Open, service: Service) -> None:
    """At each step figures and file are those of the server's mask at that threshold."""
    tab = open_page()
    show(tab, png())
    areas = set()
    for share in (0.6, 0.3, 0.1):
        threshold = set_level(tab, levels_of(service, png()[2], share))
        mask_HW = service.mask(png()[2], threshold=threshold)
        shows(tab, mask_HW)
        areas.add(int((mask_HW > 0).sum()))
    name, content = save(tab, "#save-mask")
    assert name == "discs0_mask.png"
    assert np.array_equal(decode(content), mask_HW)
    assert len(areas) == 3
    tab.locator("#threshold-reset").click()
    own = tab.locator("#threshold").input_value()
    tab.locator("#threshold").press("ArrowRight")
    assert int(tab.locator("#threshold").input_value()) == int(own) + 1


def test_clean_up_is_the_servers(open_page: Open, service: Service) -> None:
    """With each switch the figures and the file are the server's with the same post-processing."""
    tab = open_page()
    show(tab, png())
    threshold = set_level(tab, levels_of(service, png()[2], 0.3))
    query: dict[str, Any] = {"threshold": threshold}
    for name, value, switch in (
        ("fill_holes", 30, "#holes"),
        ("min_area", 12, "#specks"),
        ("largest_only", True, "#largest"),
    ):
        tab.locator(switch).check()
        if name != "largest_only":
            tab.locator(f"{switch}-area").fill(str(value))
        query[name] = value
        mask_HW = service.mask(png()[2], **query)
        shows(tab, mask_HW)
        assert np.array_equal(decode(save(tab, "#save-mask")[1]), mask_HW), name


def test_cleaning_rule(open_page: Open) -> None:
    """On 150 random masks the browser's rule gives pixel for pixel what Python's gives."""
    random = np.random.default_rng(0)
    tab = open_page()
    cases, expected = [], []
    for _ in range(150):
        height, width = random.integers(1, 24, 2)
        mask_HW = random.random((height, width)) < random.uniform(0.2, 0.8)
        rule: dict[str, Any] = {
            "min_area": int(random.integers(0, 8)),
            "fill_holes": int(random.integers(0, 6)),
            "largest_only": bool(random.random() < 0.3),
        }
        cases.append([(mask_HW * 255).ravel().tolist(), int(width), int(height), rule])
        cleaned_HW = clean(mask_HW, PostProcessing(**rule))
        pixels = (cleaned_HW * 255).ravel().tolist()
        expected.append([pixels, int(cleaned_HW.sum()), len(find_objects(cleaned_HW))])
    found = tab.evaluate(
        """async (cases) => {
          const { clean } = await import(new URL("static/postprocessing.js", document.baseURI));
          return cases.map(([values, width, height, rule]) => {
            const mask = Uint8Array.from(values);
            const { area, count } = clean(mask, width, height, rule);
            return [[...mask], area, count];
          });
        }""",
        cases,
    )
    assert found == expected


def test_cut_out_and_overlay(open_page: Open, service: Service) -> None:
    """The cut-out has the image's pixels inside the mask, the overlay those outside it."""
    tab = open_page()
    show(tab, png())
    threshold = set_level(tab, levels_of(service, png()[2], 0.3))
    inside_HW = service.mask(png()[2], threshold=threshold) > 0
    shows(tab, inside_HW)
    name, content = save(tab, "#save-cutout")
    assert name == "discs0_cutout.png"
    cut_HW4 = decode(content)
    assert np.array_equal(cut_HW4[:, :, 3] == 255, inside_HW)
    assert np.array_equal(cut_HW4[inside_HW][:, :3], draw_discs()[inside_HW])
    assert not cut_HW4[~inside_HW].any()
    painted_HW3 = decode(save(tab, "#save-overlay")[1])
    assert np.array_equal(painted_HW3[~inside_HW], draw_discs()[~inside_HW])
    assert (painted_HW3[inside_HW] != draw_discs()[inside_HW]).any(axis=1).mean() > 0.9


def test_polygons(open_page: Open, service: Service) -> None:
    """The GeoJSON is the server's at the page's threshold and post-processing."""
    tab = open_page()
    show(tab, png())
    threshold = set_level(tab, levels_of(service, png()[2], 0.3))
    tab.locator("#largest").check()
    shows(tab, service.mask(png()[2], threshold=threshold, largest_only=True))
    name, content = save(tab, "#save-polygons")
    answer = service.ask(png()[2], output="json", threshold=threshold, largest_only=True).json()
    assert name == "discs0.geojson"
    assert json.loads(content) == answer["polygons"]
    assert len(answer["polygons"]["features"]) == 1


def test_several_images(open_page: Open, service: Service) -> None:
    """Each image keeps its own state; what fails stops no other; the ZIP holds every mask."""
    tab = open_page()
    show(tab, png(1), TEXT, png(2, "discs1.png"))
    until(tab, "document.querySelectorAll('.tile[data-state=done]').length === 2")
    assert (
        tab.locator(".tile[data-state=failed]").get_attribute("aria-label") == "notes.txt, failed"
    )
    threshold = set_level(tab, levels_of(service, png(1)[2], 0.3))
    _, packed = save(tab, "#save-all")
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.testzip() is None
        names = ["discs1_mask.png", "discs1_2_mask.png"]
        assert archive.namelist() == [*names, "failed.txt"]
        for seed, name in zip((1, 2), names, strict=True):
            expected = service.mask(png(seed)[2], threshold=threshold)
            assert np.array_equal(decode(archive.read(name)), expected)
    failed = tab.locator(".tile[data-state=failed] span")
    assert failed.text_content() == "\u2715 notes.txt", "it keeps its name"
    _, packed = save(tab, "#save-all-cutouts")
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.namelist() == ["discs1_cutout.png", "discs1_2_cutout.png", "failed.txt"]
        cut_HW4 = decode(archive.read("discs1_cutout.png"))
        inside_HW = service.mask(png(1)[2], threshold=threshold) > 0
        assert np.array_equal(cut_HW4[:, :, 3] > 127, inside_HW)
        solid_HW = cut_HW4[:, :, 3] == 255
        assert np.array_equal(cut_HW4[solid_HW][:, :3], draw_discs(1)[solid_HW])
    _, packed = save(tab, "#save-everything")
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        stems, kinds = ("discs1", "discs1_2"), ("mask", "cutout", "overlay")
        images = [f"{stem}_{kind}.png" for stem in stems for kind in kinds]
        assert archive.namelist() == [*images, "failed.txt"]
        assert archive.read("failed.txt").startswith(b"notes.txt: ")
    tab.locator(".tile").nth(2).click()
    shows(tab, service.mask(png(2)[2], threshold=threshold))


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("ok", "Expected Dice 0.91 (0.85 to 0.96)"),
        ("look", "Look closely. Expected Dice 0.91 (0.85 to 0.96): darker."),
        ("unlike the training data", "unlike the training data (darker)"),
    ],
)
def test_the_expected_quality_stands_beside_the_mask(open_page: Open, flag: str, told: str) -> None:
    """A doubtful mask is warned of beside its figures and on its tile; a good one is not."""
    quality = {"expected_dice": 0.91, "low": 0.85, "high": 0.96, "flag": flag, "reason": "darker"}
    tab = open_page()

    def judge(route: Any) -> None:
        answer = route.fetch()
        headers = {**answer.headers, "x-binseg-quality": json.dumps(quality)}
        route.fulfill(response=answer, headers=headers)

    tab.route("**/v1/predict?*", judge)
    show(tab, png(0))
    shown = tab.locator("#quality")
    until(tab, "!document.getElementById('quality').hidden")
    assert told in shown.text_content()
    assert ("warn" in (shown.get_attribute("class") or "").split()) == (flag != "ok")
    assert tab.locator(".tile").get_attribute("data-flag") == ("" if flag == "ok" else flag)
