"""HTML pages from the templates in `assets/`, one file each; no text of strangers is markup."""

import base64
import io
import unicodedata
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image


def render(template: str, **values: object) -> str:
    """Fill in a template of the folder `assets`."""
    return environment().get_template(template).render(values)


@cache
def environment() -> Environment:
    """Set up Jinja; `0.98765|fixed` is 0.9877, and `1234|comma` is 1,234."""
    found = Environment(
        loader=PackageLoader("binseg.report", "assets"),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else readable(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["fixed"] = lambda value, digits=4: f"{value:.{digits}f}"
    found.filters["comma"] = lambda value: f"{value:,}"
    # Scripts stand alone; no figure may be NaN, which isn't JSON.
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return found


def readable(text: str) -> str:
    r"""Replace what can't be written or shown: control characters, bytes that were no UTF-8.

    >>> readable("cat\x1b[31m\udcff")
    'cat\ufffd[31m\\udcff'
    """
    whole = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(
        "\ufffd" if unicodedata.category(letter) == "Cc" and letter not in "\n\t" else letter
        for letter in whole
    )


@cache
def asset(name: str) -> Markup:
    """Read a style or a script, which goes into a page as it is."""
    return Markup(resources.files(__package__).joinpath("assets", name).read_text("utf-8"))


def data_uri(image: Image.Image, kind: str, **options: object) -> str:
    """Encode an image, as "jpeg" or "png" with Pillow's options, as an address that holds it."""
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
