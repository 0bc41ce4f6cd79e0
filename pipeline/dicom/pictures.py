"""Axial slices of the scan with the map and the findings burnt in, for archives that can show nothing else."""

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from ...evaluation.figures.colour_scale import colours_of
from ...evaluation.figures.slices import EDGES, NORMAL, Head, outline, upright
from .objects import RESEARCH_USE
from .results import Results

WIDTH_PX, HEIGHT_PX = 640, 672
_TOP_PX, _BOTTOM_PX, _MARGIN_PX, _BAR_PX = 34, 46, 16, 74
_STEP_MM = 3.0
"""Distance of the slices; those through the peaks of findings are added."""
_PEAKS = 20
_FINDING = (70, 255, 130)
"""Outlines of findings, apart from all colours of the scale."""
_TEXT, _QUIET = (232, 236, 242), (160, 168, 178)


def slice_pictures(results: Results) -> Iterator[np.ndarray]:
    """Draw axial slices from the feet to the head: (`HEIGHT_PX`, `WIDTH_PX`, 3) of uint8."""
    head = results.head()
    labels = upright(results.in_space(results.labels))[0]
    indices = _indices(head, labels)
    for number, index in enumerate(indices, start=1):
        yield _picture(results, head, labels, index, f"slice {number} of {len(indices)}")


def _indices(head: Head, labels: np.ndarray) -> list[int]:
    axis = NORMAL["axial"]
    inside = np.flatnonzero(head.brain.any(axis=(0, 1)))
    step = max(round(_STEP_MM / head.spacing_mm[axis]), 1)
    chosen = set(range(int(inside[0]), int(inside[-1]) + 1, step))
    for label in range(1, min(int(labels.max()), _PEAKS) + 1):
        within = labels == label
        if within.any():
            chosen.add(int(np.unravel_index(np.argmax(np.where(within, head.scores, -np.inf)), labels.shape)[axis]))
    return sorted(chosen)


def _picture(results: Results, head: Head, labels: np.ndarray, index: int, which: str) -> np.ndarray:
    most_high, most_wide = HEIGHT_PX - _TOP_PX - _BOTTOM_PX, WIDTH_PX - _BAR_PX - _MARGIN_PX
    height = most_high
    scan = head.enlarged(head.grey, "axial", index, height)
    if scan.shape[1] > most_wide:
        height = round(height * most_wide / scan.shape[1])
        scan = head.enlarged(head.grey, "axial", index, height)
    painted = head.scale.paint(np.clip(scan, 0, 1), head.enlarged(head.scores, "axial", index, height))
    picture = (np.clip(painted, 0, 1) * 255).round().astype(np.uint8)
    names = []
    for label in sorted(set(np.unique(labels[:, :, index]).tolist()) - {0}):
        within = (labels[:, :, [index]] == label).astype(np.float32)
        area = head.enlarged(within, "axial", 0, height) > 0.5
        line = outline(area)
        picture[line | outline(area | line)] = _FINDING
        if area.any():
            names.append((label, ndimage.center_of_mass(area), np.flatnonzero(area.any(axis=0)).max()))
    canvas = Image.new("RGB", (WIDTH_PX, HEIGHT_PX))
    left = _MARGIN_PX + (most_wide - picture.shape[1]) // 2
    top = _TOP_PX + (most_high - height) // 2
    canvas.paste(Image.fromarray(picture), (left, top))
    draw = ImageDraw.Draw(canvas)
    for label, (row, _), edge in names:
        place = (left + min(float(edge) + 8, picture.shape[1] - 20), top + float(row))
        box = draw.textbbox(place, str(label), font=_font(17), anchor="lm")
        draw.rectangle((box[0] - 3, box[1] - 3, box[2] + 3, box[3] + 3), fill=(0, 0, 0))
        draw.text(place, str(label), font=_font(17), fill=_FINDING, anchor="lm")
    _letter(draw, results, head, index, which)
    _scale(draw, head)
    return np.asarray(canvas)


def _letter(draw: ImageDraw.ImageDraw, results: Results, head: Head, index: int, which: str) -> None:
    """Write the warning above, the threshold below, and the sides of the patient."""
    draw.text((_MARGIN_PX, _TOP_PX / 2), RESEARCH_USE.upper(), font=_font(15), fill=(255, 200, 90), anchor="lm")
    draw.text((WIDTH_PX - _MARGIN_PX, _TOP_PX / 2), "voxout anomaly map", font=_font(14), fill=_TEXT, anchor="rm")
    bottom = HEIGHT_PX - _BOTTOM_PX
    shown = f"Coloured: z of {results.threshold:.2f} and more. Outlined and numbered: findings."
    draw.text((_MARGIN_PX, bottom + 14), shown, font=_font(14), fill=_TEXT, anchor="lm")
    height_mm = head.height_mm("axial", index)
    place = f"{results.key}   axial, z {height_mm:.0f} mm   {which}"
    draw.text((_MARGIN_PX, bottom + 33), place, font=_font(13), fill=_QUIET, anchor="lm")
    middle = (_TOP_PX + bottom) / 2
    for letter, across in zip(EDGES["axial"], (_MARGIN_PX - 4, WIDTH_PX - _BAR_PX - 4), strict=True):
        draw.text((across, middle), letter, font=_font(18), fill=_TEXT, anchor="mm", stroke_width=2, stroke_fill=0)


def _scale(draw: ImageDraw.ImageDraw, head: Head) -> None:
    """Draw the colour scale at the right edge, from the threshold up."""
    left, width, height = WIDTH_PX - 52, 14, 240
    top = (HEIGHT_PX - height) // 2
    colours = (colours_of(np.linspace(1, 0, height)) * 255).round().astype(int)
    for row, colour in enumerate(colours.tolist()):
        draw.line((left, top + row, left + width, top + row), fill=tuple(colour))
    for value, row in ((head.scale.high, top), (head.scale.low, top + height - 1)):
        draw.text((left + width + 5, row), f"{value:.1f}", font=_font(13), fill=_TEXT, anchor="lm")
    draw.text((left + width / 2, top - 16), "z", font=_font(14), fill=_TEXT, anchor="mm")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
