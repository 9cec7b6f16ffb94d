"""What the page says when something goes wrong, and how it goes on."""

from pathlib import Path
from typing import Any

import numpy as np

from .drawings import TEXT, decode, encode, png
from .driving import Open, give, save, settle, show, shows, until
from .server import Service, serving


def test_not_an_image(open_page: Open, service: Service) -> None:
    """A text file is refused in words, under a strict policy; removing it brings the start back."""
    tab = open_page()
    assert "unsafe" not in tab.request.get(service.url).headers["content-security-policy"]
    assert tab.locator("[style], script:not([src]), style").count() == 0
    tab.locator("#card-body .facts").wait_for()
    give(tab, TEXT)
    tab.locator("#trouble").wait_for()
    assert "image" in tab.locator("#trouble-title").text_content()
    assert "not an image" in tab.locator("#trouble-text").text_content()
    assert tab.locator("#alert").text_content().startswith("This isn")
    assert tab.locator("#save-mask").is_disabled()
    assert not tab.locator("#retry").is_visible(), "again would change nothing"
    tab.locator("#trouble-remove").click()
    assert tab.locator("#start").is_visible()


def test_busy_server_is_asked_again(open_page: Open, service: Service) -> None:
    """After 429 the page waits as long as it is told, says so, and then shows the mask."""
    tab = open_page()
    tab.locator("#card-body .facts").wait_for()
    busy = {"error": {"code": "busy", "message": "All places are taken."}}
    tab.route(
        "**/v1/predict?*",
        lambda route: route.fulfill(status=429, headers={"Retry-After": "1"}, json=busy),
        times=1,
    )
    give(tab, png())
    tab.get_by_text("The server is busy; trying again in 1 s").wait_for()
    settle(tab)
    threshold = (int(tab.locator("#threshold").input_value()) + 0.5) / 255
    shows(tab, service.mask(png()[2], threshold=threshold))


def test_lost_connection(open_page: Open) -> None:
    """Where no answer comes the image stays, and Try again works once the way is free."""
    tab = open_page()
    tab.locator("#card-body .facts").wait_for()
    tab.route("**/v1/predict?*", lambda route: route.abort("connectionreset"), times=1)
    give(tab, png())
    tab.locator("#trouble").wait_for()
    tab.locator("#retry").click()
    settle(tab)
    assert not tab.locator("#trouble").is_visible()


def stumble(tab: Any) -> list[str]:
    """Let the first look at a job's state, and at its result, end at a proxy; tell which did."""
    stumbled: list[str] = []

    def answer(route: Any) -> None:
        asked = "result" if route.request.url.endswith("/result") else "state"
        if route.request.method != "GET" or asked in stumbled:
            route.continue_()
            return
        stumbled.append(asked)
        route.fulfill(status=502, body="<h1>Bad Gateway</h1>")

    tab.route("**/v1/jobs/**", answer)
    return stumbled


def test_token_limits_and_end(open_page: Open, trained: Path, tmp_path: Path) -> None:
    """A token stays in memory; what is too large can be a job; and the server's end is said."""
    limits = ("--max-bytes", "0.04", "--max-pixels", "0.01")
    with serving(trained, *limits, state=tmp_path, token="open-sesame-open") as guarded:
        tab = open_page(url=guarded.url)
        field = tab.locator("#token")
        field.fill("wrong")
        field.press("Enter")
        until(tab, "document.getElementById('alert').textContent.includes('token')")
        field.fill("open-sesame-open")
        field.press("Enter")
        show(tab, png())
        noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
        give(tab, ("heavy.png", "image/png", encode(noise)))
        tab.locator("#trouble").wait_for()
        assert tab.locator("#trouble-title").text_content() == "This image is too large"
        assert "up to 40 kB" in tab.locator("#trouble-text").text_content()
        give(tab, ("wide.png", "image/png", encode(np.zeros((120, 100, 3), np.uint8))))
        until(tab, "document.getElementById('trouble-text').textContent.includes('megapixels')")
        stumbled = stumble(tab)
        name, content = save(tab, "#as-job")
        assert name == "wide_mask.png"
        assert decode(content).shape == (120, 100)
        assert stumbled == ["state", "result"], "a proxy's hiccups cost no finished job"
        until(tab, "document.getElementById('trouble-title').textContent === 'Done'")
        assert tab.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])") == "[{},{}]"
        guarded.stop()
        give(tab, png(1))
        until(tab, "document.getElementById('trouble-title').textContent.includes('be reached')")
        assert "still here" in tab.locator("#trouble-text").text_content()
