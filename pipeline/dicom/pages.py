"""Report of a subject on a few pages, once as PDF and once as pictures for archives that show no PDF."""

import io
from collections.abc import Mapping, Sequence
from textwrap import wrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from ...evaluation.figures.mosaic import point_picture, subject_mosaic
from ...evaluation.figures.slices import PLANES, Head
from ...evaluation.report.cluster_table import smallest_p_words, where
from .objects import RESEARCH_USE
from .results import Results

_SIZE_INCH, _DPI = (11.69, 8.27), 110
_LINE = 0.024
"""Height of a line of text, as a share of the page."""
MOST_LISTED, MOST_PICTURES = 14, 8
_COLUMNS = {"": 0.03, "place": 0.07, "ml": 0.4, "peak z": 0.48, "p": 0.56, "flags": 0.63}
"""Columns of the table, with their left edges as shares of the width."""


def draw_pages(results: Results) -> list[Figure]:
    """Draw all pages: the findings, the slices of three planes, the findings one by one."""
    head = results.head()
    mosaics = {plane: subject_mosaic(head, plane)[0] for plane in PLANES}
    pages = [_first_page(results, mosaics["axial"])]
    pages.append(_page_of(results, "Coronal and sagittal slices", [mosaics["coronal"], mosaics["sagittal"]]))
    points = _points(results, head)
    for first in range(0, len(points), 4):
        pages.append(_page_of(results, "The findings one by one", points[first : first + 4], columns=2))
    for number, page in enumerate(pages, start=1):
        page.text(0.97, 0.025, f"{results.key}   page {number} of {len(pages)}", size=8, color="0.4", ha="right")
    return pages


def as_pdf(pages: Sequence[Figure]) -> bytes:
    """Return the pages as a PDF file."""
    stream = io.BytesIO()
    with PdfPages(stream, metadata={"Title": "voxout anomaly map", "CreationDate": None}) as pdf:
        for page in pages:
            pdf.savefig(page, dpi=200)
    return stream.getvalue()


def as_pictures(pages: Sequence[Figure]) -> np.ndarray:
    """Return the pages as pictures: (pages, rows, columns, 3) of uint8."""
    pictures = []
    for page in pages:
        canvas = FigureCanvasAgg(page)
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return np.stack(pictures)


def _first_page(results: Results, mosaic: np.ndarray) -> Figure:
    page = _page(results, "Anomaly map")
    lines = wrap(results.headline, 130)
    page.text(0.03, 0.86, "\n".join(lines), size=10, va="top")
    top = 0.83 - _LINE * len(lines)
    bottom = _table(page, results.rows, top) if results.rows else top
    _place(page, mosaic, (0.03, 0.06, 0.94, bottom - 0.08))
    return page


def _table(page: Figure, rows: Sequence[Mapping[str, str]], top: float) -> float:
    """Write the findings as a table, and return where it ends."""
    for title, left in _COLUMNS.items():
        page.text(left, top, title, size=8, color="0.4", va="top")
    for row in rows[:MOST_LISTED]:
        top -= _LINE
        cells = (
            row["rank"],
            where(row),
            f"{float(row['volume_mm3']) / 1000:.2f}",
            f"{float(row['peak_score']):.1f}",
            _p_text(row),
            row["flags"],
        )
        for cell, left in zip(cells, _COLUMNS.values(), strict=True):
            page.text(left, top, cell[:60], size=8, va="top")
    if len(rows) > MOST_LISTED:
        top -= _LINE
        rest = f"and {len(rows) - MOST_LISTED} more findings, numbered in the segmentation"
        page.text(0.07, top, rest, size=8, color="0.4", va="top")
    smallest = {row["smallest_p"] for row in rows[:MOST_LISTED] if row["p_value"] and _is_smallest(row)}
    for p_value, why in map(smallest_p_words, map(float, smallest)):
        top -= _LINE
        page.text(0.07, top, f"p = {p_value} is {why}", size=8, color="0.4", va="top")
    return top - _LINE


def _is_smallest(row: Mapping[str, str]) -> bool:
    return bool(row.get("smallest_p")) and float(row["p_value"]) <= float(row["smallest_p"])


def _p_text(row: Mapping[str, str]) -> str:
    """Return the p-value of a finding; of the later parts of a cluster, where it stands."""
    first = row["part_of"].split("+")[0]
    if not row["p_value"] or first not in ("", row["rank"]):
        return f"as {first}" if row["p_value"] else ""
    return smallest_p_words(float(row["smallest_p"]))[0] if _is_smallest(row) else f"{float(row['p_value']):.3f}"


def _page_of(results: Results, title: str, pictures: Sequence[np.ndarray], columns: int = 1) -> Figure:
    page = _page(results, title)
    rows = 2
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        box = (0.03 + 0.94 * column / columns, 0.05 + 0.82 * (rows - 1 - row) / rows, 0.92 / columns, 0.8 / rows)
        _place(page, picture, box)
    return page


def _page(results: Results, title: str) -> Figure:
    page = Figure(_SIZE_INCH, dpi=_DPI, facecolor="white")
    page.text(0.03, 0.955, f"voxout: {title}", size=15, weight="bold", va="top")
    page.text(0.97, 0.955, RESEARCH_USE.upper(), size=10, color="#b34700", weight="bold", ha="right", va="top")
    about = (
        f"Threshold z = {results.threshold:.2f}, {results.origin}. Colours from the threshold to twice its value. "
        "Unusual is not diseased."
    )
    page.text(0.03, 0.915, "\n".join(wrap(about, 170)), size=8, color="0.3", va="top")
    return page


def _place(page: Figure, picture: np.ndarray, box: tuple[float, float, float, float]) -> None:
    axes = page.add_axes(box)
    axes.imshow(picture, interpolation="antialiased")
    axes.set_anchor("N")
    axes.set_axis_off()


def _points(results: Results, head: Head) -> list[np.ndarray]:
    """Draw the three planes through the peak of each of the first findings."""
    pictures = []
    for row in results.rows[:MOST_PICTURES]:
        within = results.labels == int(row["rank"])
        if within.any():
            index = np.unravel_index(int(np.argmax(np.where(within, results.map, -np.inf))), within.shape)
            point = (results.in_space(results.map).affine @ [*index, 1])[:3]
            pictures.append(_titled(point_picture(head, point)[0], f"{row['rank']}: {where(row)}"))
    return pictures


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    canvas = Image.new("RGB", (picture.shape[1], picture.shape[0] + 30))
    canvas.paste(Image.fromarray(picture), (0, 30))
    ImageDraw.Draw(canvas).text((10, 15), title, font=ImageFont.load_default(18), fill=(232, 236, 242), anchor="lm")
    return np.asarray(canvas)
