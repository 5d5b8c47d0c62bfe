"""Reports in HTML and Markdown: rendering of templates, and pictures embedded in a page.

An HTML page is self-contained: no network and no other file. Its only script, `page.js`, makes tables of the class
`sortable` sortable; the page allows it by its hash, and is complete without it. A template extends `page.html.jinja`,
which has the light and the dark style, and fills the blocks `title`, `style` (optional) and `body`.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from vesalius.language import current, translate, translate_note
from vesalius.names import count_of

JPEG_QUALITY = 80
HTML = ".html.jinja"
SCRIPT = Path(__file__).with_name("page.js")


def render(template: Path, values: Mapping[str, Any], **filters: Callable[..., Any]) -> str:
    """The template rendered with `values`; `filters` are functions for `value | name` in the template.

    In a `.html.jinja` template every value is escaped, since ids, phrases and paths may contain HTML. The filters `t`
    and `note` translate a text and a note into the current language; `colon` is its colon. Raises jinja2.UndefinedError for a name without a
    value.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=template.name.endswith(HTML),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(plural=plural, counted=counted, t=translate, note=translate_note, **filters)
    script = SCRIPT.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    environment.globals.update(
        language=current(),
        colon="：" if current() == "zh" else ": ",
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )
    return environment.get_template(template.name).render(values)


def plural(n: int, one: str) -> str:
    """Singular or plural of a noun: `image` for n = 1, else `images`."""
    return one if n == 1 else one + "s"


def counted(n: int, one: str) -> str:
    """A count with its noun in the current language: `1 image`, `2 images`."""
    return translate_note(count_of(n, one))


def as_data_url(picture: Image.Image, width: int | None = None, format: Literal["jpeg", "png"] = "jpeg") -> str:
    """The picture as a `data:` URL for an `img` element, downscaled to at most `width` pixels.

    JPEG is written without chroma subsampling, so that thin colored lines stay visible.
    """
    if format == "jpeg":
        picture = picture.convert("RGB")
    if width is not None:
        picture = picture.copy()
        picture.thumbnail((width, 4 * width), Image.Resampling.LANCZOS)
    memory = io.BytesIO()
    options: dict[str, Any] = {"quality": JPEG_QUALITY, "subsampling": 0} if format == "jpeg" else {}
    picture.save(memory, format=format, **options)
    return f"data:image/{format};base64,{base64.b64encode(memory.getvalue()).decode('ascii')}"
