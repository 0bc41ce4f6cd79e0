"""Pictures of an anomaly map over its scan: rows of slices, and the three planes through a point."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .slices import EDGES, NORMAL, PLANES, Head, Plane

COLUMNS = 7
TILE_HEIGHT_PX = 220
_CAPTION_PX = 22


def subject_mosaic(head: Head, plane: Plane = "axial", *, scan_row: bool = True) -> tuple[np.ndarray, str]:
    """Draw seven slices of a scan and, below, of its map; lesions are outlined in cyan.

    Parameters
    ----------
    head : Head
    plane : {"axial", "coronal", "sagittal"}
    scan_row : bool
        If False, only the map over the scan is drawn.

    Returns
    -------
    picture : ndarray of uint8, (H, W, 3)
    alt : str
        Alternative text.
    """
    slices = _slices(head, plane)
    pairs = [head.tile(plane, index, TILE_HEIGHT_PX) for index, _ in slices]
    tiles = [np.concatenate(pair) if scan_row else pair[1] for pair in pairs]
    captions = [f"{_position(plane, head.height_mm(plane, index))}{note}" for index, note in slices]
    alt = f"{len(tiles)} {plane} slices, " + (
        "the scan above and the anomaly map over it below" if scan_row else "the anomaly map over the scan"
    )
    if head.lesion.any():
        alt += "; lesions of the mask are outlined in cyan"
    return _lettered(tiles, (plane,) * len(tiles), captions), alt


def point_picture(head: Head, point_mm: np.ndarray) -> tuple[np.ndarray, str]:
    """Draw the three planes through a point, marked by a crosshair; the scan above, the map below.

    Returns
    -------
    picture : ndarray of uint8, (H, W, 3)
    alt : str
    """
    index = head.index_of(point_mm)
    tiles, captions = [], []
    for plane in PLANES:
        place = head.place_in_tile(plane, index)
        pair = head.tile(plane, int(index[NORMAL[plane]]), TILE_HEIGHT_PX)
        tiles.append(np.concatenate([_crossed(tile, place) for tile in pair]))
        # The position of the point, as in the tables, not that of the nearest slice.
        captions.append(f"{plane}, {_position(plane, point_mm[NORMAL[plane]])}")
    x, y, z = (round(float(mm)) for mm in point_mm)
    alt = f"axial, coronal and sagittal slice through {x}, {y}, {z} mm, the scan above and the map over it below"
    return _lettered(tiles, PLANES, captions), alt


def webp(picture: np.ndarray, most_bytes: int) -> bytes:
    """Encode a picture in approximately at most `most_bytes`, reducing first the quality and then the size."""
    image = Image.fromarray(picture)
    steps = [(1, 82), (1, 68), (0.85, 66), (0.7, 62), (0.55, 58), (0.45, 50), (0.35, 45)]
    while True:
        share, quality = steps.pop(0)
        size = (max(round(image.width * share), 1), max(round(image.height * share), 1))
        shrunk = image if share == 1 else image.resize(size, Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        shrunk.save(stream, format="WEBP", quality=quality, method=4)
        encoded = stream.getvalue()
        if len(encoded) <= most_bytes or not steps:
            return encoded
        # Each step reduces the size by about a third; steps that cannot suffice are skipped.
        needed = int(np.log(len(encoded) / most_bytes) / np.log(1.8))
        del steps[: min(needed, len(steps) - 1)]


def _position(plane: Plane, mm: float) -> str:
    return f"{'xyz'[NORMAL[plane]]} {round(float(mm))} mm"


def _slices(head: Head, plane: Plane) -> list[tuple[int, str]]:
    """Seven positions along the normal: most lesion, most colour and highest score; the others evenly spaced."""
    axis = NORMAL[plane]
    within = tuple(other for other in range(3) if other != axis)
    min_gap = max(1, round(4 / head.spacing_mm[axis]))
    chosen: dict[int, str] = {}

    def add(index: int, note: str) -> None:
        if all(abs(index - other) >= min_gap for other in chosen):
            chosen[int(index)] = note

    lesion = head.lesion.sum(axis=within)
    if lesion.any():
        add(int(lesion.argmax()), ", most lesion")
    bright = head.scale.share(head.scores).sum(axis=within)
    if bright.any():
        add(int(bright.argmax()), ", most colour")
    add(int(head.scores.max(axis=within).argmax()), ", highest score")
    places = np.flatnonzero(head.brain.any(axis=within))
    positions = np.quantile(places, [0.2, 0.34, 0.48, 0.62, 0.76, 0.9, 0.27, 0.55, 0.7, 0.41, 0.83])
    for index in positions.round().astype(int):
        if len(chosen) < COLUMNS:
            add(int(index), "")
    return sorted(chosen.items())


def _crossed(tile: np.ndarray, place: tuple[float, float]) -> np.ndarray:
    """Draw a crosshair with a gap around the given position."""
    height, width = tile.shape[:2]
    column, row = min(int(place[0] * width), width - 1), min(int(place[1] * height), height - 1)
    columns, rows = np.arange(width), np.arange(height)
    crossed = tile.copy()
    for line in (
        np.s_[row, np.abs(columns - column) > 14],
        np.s_[np.abs(rows - row) > 14, column],
    ):
        crossed[line] = 0.45 * crossed[line] + 0.55 * np.array([0.55, 1.0, 0.7])
    return crossed


def _lettered(tiles: Sequence[np.ndarray], planes: Sequence[Plane], captions: Sequence[str]) -> np.ndarray:
    """Join tiles side by side, with captions below and orientation letters at the edges."""
    picture = np.concatenate(tiles, axis=1)
    framed = np.zeros((picture.shape[0] + _CAPTION_PX, picture.shape[1], 3))
    framed[: picture.shape[0]] = picture
    image = Image.fromarray((np.clip(framed, 0, 1) * 255).round().astype(np.uint8))
    draw = ImageDraw.Draw(image)
    small, letter = ImageFont.load_default(12), ImageFont.load_default(14)
    left = 0
    for tile, plane, caption in zip(tiles, planes, captions, strict=True):
        width = tile.shape[1]
        draw.text((left + width / 2, picture.shape[0] + 3), caption, font=small, fill=(200, 205, 212), anchor="mt")
        for top in range(0, tile.shape[0], TILE_HEIGHT_PX):
            for edge, side in zip((left, left + width - 18), EDGES[plane], strict=True):
                # Black background, since the scan may be as bright as the letter.
                draw.rectangle((edge, top, edge + 18, top + 18), fill=(0, 0, 0))
                draw.text((edge + 9, top + 9), side, font=letter, fill=(225, 230, 238), anchor="mm")
        left += width
    return np.asarray(image)
