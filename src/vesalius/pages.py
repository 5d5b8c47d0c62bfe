"""HTML pages and their Markdown twins: templates of every report, and pictures inside a page.

An HTML page is one file that needs no network, no script and no other file. Its template extends `page.html.jinja`, which
has the style in light and dark, and fills the blocks `title`, `style` (optional) and `body`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

JPEG_QUALITY = 80
HTML = ".html.jinja"


def render(template: Path, values: Mapping[str, Any], **filters: Callable[..., Any]) -> str:
    """The template with these values; `filters` are functions that it may call as `value | name`.

    In a template that ends in `.html.jinja` every value is escaped, since ids, phrases and paths may hold HTML. Raises
    jinja2.UndefinedError for a name without a value.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=template.name.endswith(HTML),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(plural=plural, **filters)
    return environment.get_template(template.name).render(values)


def plural(n: int, one: str) -> str:
    """The noun for `n` things: `image` for 1, else `images`."""
    return one if n == 1 else one + "s"


def as_data_url(
    picture: Image.Image, width: int | None = None, format: Literal["jpeg", "png"] = "jpeg"
) -> str:
    """The picture as a `data:` URL, for an `img` inside a page; reduced to at most `width` pixels.

    JPEG keeps color at full resolution, so that thin colored lines stay visible.
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
