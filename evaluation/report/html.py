"""Common parts of all pages: self-contained HTML files with a strict content-security policy.

Style and scripts are embedded and their hashes listed in the content-security policy. A page can be opened from disk
or any network share and sends no network requests.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.errors import counted
from ..figures.mosaic import webp
from ..figures.plot import DARK, LIGHT, Plot
from ..metrics.bootstrap import Estimate


def write_page(
    path: Path,
    template: str,
    *,
    styles: Sequence[str],
    scripts: Sequence[str],
    later_scripts: Sequence[str] = (),
    **content: object,
) -> Path:
    """Render a template and write the page atomically.

    Parameters
    ----------
    path : Path
    template : str
        Name of an HTML file, as for `template_text`.
    styles, scripts : sequence of str
        Names of the style and script files of the page.
    later_scripts : sequence of str
        Text of scripts that the page unpacks and runs itself.
    **content
        Variables of the template.
    """
    style = "".join(template_text(name) for name in styles)
    script = "".join(template_text(name) for name in scripts)
    hashes = " ".join(f"'sha256-{_hash(text)}'" for text in (script, *later_scripts))
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_hash(style)}'; script-src {hashes}; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template(template).render(style=style, script=script, policy=policy, **content)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def template_text(name: str) -> str:
    """Text of a file in ``templates/`` or, for names such as "benchmarks.mnist_c:page.html", in another package."""
    package, _, file = name.rpartition(":")
    return (resources.files(package or "voxout.evaluation.report.templates") / file).read_text(encoding="utf-8")


def packed(content: bytes) -> str:
    """Reproducible gzip in base64, to be unpacked in the browser."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def json_block(value: object) -> str:
    """JSON that is safe inside a script element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def data_uri(content: bytes, kind: str) -> str:
    """Encode content of a media type, such as ``image/webp``, as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture_uri(picture: np.ndarray, most_bytes: int) -> str:
    """Encode a picture, (H, W, 3) uint8, as a data URI: WebP of approximately at most `most_bytes`."""
    return data_uri(webp(picture, most_bytes), "image/webp")


def picture_file_uri(path: Path, most_bytes: int, *, most_px: int = 1100) -> str:
    """Encode a picture file as a data URI, reduced to at most `most_px` pixels per side."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        image.thumbnail((most_px, most_px))
        return picture_uri(np.asarray(image), most_bytes)


def plot_uris(plot: Plot) -> tuple[str, str]:
    """Return the data URIs of a plot for light and dark backgrounds."""
    light, dark = (data_uri(plot.svg(theme), "image/svg+xml") for theme in (LIGHT, DARK))
    return light, dark


def number_text(value: float | int | None) -> str:
    """Format a number with about three significant digits, avoiding exponents where possible."""
    if value is None:
        return "–"
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e6):
        return f"{int(value):,}".replace(",", " ")
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    if abs(value) >= 1:
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.2g}"


def estimate_text(estimate: Estimate) -> str:
    """Format a value with its interval, if it has one."""
    if estimate.value is None:
        return "not defined"
    if estimate.ci_low is None:
        return number_text(estimate.value)
    return f"{number_text(estimate.value)} ({number_text(estimate.ci_low)} to {number_text(estimate.ci_high)})"


def duration_text(value: float) -> str:
    """Format a duration given in seconds."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(template_text),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": number_text,
        "seconds": duration_text,
        "estimate": estimate_text,
        "counted": counted,
    }
    return environment
