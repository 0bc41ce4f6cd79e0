"""Pictures of a map over its scan: axial slices, one colour scale for a whole cohort.

Slices are shown in the radiological convention: the patient's right is on the left of the picture, and an R and an L
say so.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import nibabel as nib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from ..data_manifests.volume import Volume
from .score_subject import SubjectScores

COLUMNS = 7
TILE_HEIGHT_PX = 220
_CAPTION_PX = 22
_OUTLINE = np.array([0.0, 0.9, 1.0])
_COLOURS = matplotlib.colormaps["inferno"]


@dataclass(frozen=True)
class ColourScale:
    """Scores and their colours. Below `low` the map is transparent, from `high` on the colour is the last one."""

    low: float
    high: float

    @classmethod
    def of_cohort(cls, subjects: Sequence[SubjectScores]) -> "ColourScale":
        """From the 97th percentile of all voxels to the 99.97th.

        Shares, so that one outlying voxel cannot wash out everybody's picture.
        """
        values = np.concatenate([s.histogram.healthy_scores for s in subjects])
        counts = np.concatenate([s.histogram.healthy_counts for s in subjects])
        values = np.concatenate([values, *[s.histogram.lesion_scores for s in subjects]])
        counts = np.concatenate([counts, *[s.histogram.lesion_counts for s in subjects]])
        return cls._between(values, counts)

    @classmethod
    def of_maps(cls, maps: Sequence[np.ndarray]) -> "ColourScale":
        """The same from bare scores, for maps that were not scored."""
        values = np.concatenate([scores.ravel() for scores in maps])
        return cls._between(values, np.ones(len(values)))

    @classmethod
    def _between(cls, values: np.ndarray, counts: np.ndarray) -> "ColourScale":
        finite = np.isfinite(values)
        values, counts = values[finite], counts[finite]
        order = np.argsort(values)
        shares = np.cumsum(counts[order]) / counts.sum()
        low, high = (float(values[order][min(np.searchsorted(shares, q), len(order) - 1)]) for q in (0.97, 0.9997))
        return cls(low, high if high > low else low + max(abs(low), 1.0) * 1e-3)

    def paint(self, grey: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Lay scores over a grey picture: (H, W, 3), all in [0, 1]."""
        share = np.clip((scores - self.low) / (self.high - self.low), 0, 1)
        # The darkest colours would look like shadow on the scan: begin where the map turns to violet.
        colour = _COLOURS(0.25 + 0.75 * share)[..., :3]
        alpha = (0.9 * np.clip(share / 0.25, 0, 1))[..., None]
        return grey[..., None] * (1 - alpha) + colour * alpha


def subject_mosaic(
    scan: Volume,
    map: Volume,
    scale: ColourScale,
    *,
    brain_mask: Volume | None = None,
    covered: Volume | None = None,
    lesion_mask: Volume | None = None,
) -> tuple[np.ndarray, str]:
    """Draw a scan above its map.

    Parameters
    ----------
    scan, map : Volume
        On one grid, in any stored orientation.
    scale : ColourScale
    brain_mask : Volume of bool, optional
        Sets the field of view and the grey window.
    covered : Volume of bool, optional
        Where the map carries a score.
    lesion_mask : Volume of bool, optional
        Outlined in cyan.

    Returns
    -------
    picture : ndarray of uint8, (H, W, 3)
    alt : str
        What it shows, in words.
    """
    grey, affine = _upright(scan.voxels, scan.affine)
    scores, _ = _upright(map.voxels, map.affine)
    usable = np.isfinite(scores)
    if covered is not None:
        usable &= _upright(covered.voxels, covered.affine)[0].astype(bool)
    brain = usable if brain_mask is None else _upright(brain_mask.voxels, brain_mask.affine)[0].astype(bool)
    brain = brain if brain.any() else np.ones(grey.shape, bool)
    usable &= brain
    lesion = np.zeros(grey.shape, bool)
    if lesion_mask is not None:
        lesion = _upright(lesion_mask.voxels, lesion_mask.affine)[0].astype(bool)
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    slices = _slices(brain, np.where(usable, scores, -np.inf), lesion, scale, spacing[2])

    black, white = np.percentile(grey[brain], [0.5, 99.7])
    grey = np.clip((grey - black) / max(white - black, 1e-12), 0, 1)
    # Below the scale stands for "no colour": averaging towards it at the rim cannot invent colour.
    scores = np.where(usable, scores, 2 * scale.low - scale.high)
    window = _window(brain, spacing)
    tiles = [_column(grey, scores, lesion, z, window, spacing, scale) for z, _ in slices]
    captions = [f"z {affine[2, 2] * z + affine[2, 3]:.0f} mm{why}" for z, why in slices]
    picture = np.concatenate(tiles, axis=1)
    alt = f"{len(tiles)} axial slices, the scan above and the anomaly map over it below"
    if lesion.any():
        alt += "; lesions of the mask are outlined in cyan"
    return _lettered(picture, [tile.shape[1] for tile in tiles], captions), alt


def colour_bar(scale: ColourScale, width_px: int = 220, height_px: int = 14) -> np.ndarray:
    """The colours of a scale over mid-grey, from low to high: (H, W, 3) uint8."""
    scores = np.broadcast_to(np.linspace(scale.low, scale.high, width_px), (height_px, width_px))
    return (scale.paint(np.full(scores.shape, 0.35), scores) * 255).round().astype(np.uint8)


def webp(picture: np.ndarray, most_bytes: int) -> bytes:
    """Encode a picture in at most about so many bytes: first by quality, then by size."""
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
        # A step takes off a third: far above the limit the next ones need not be tried.
        needed = int(np.log(len(encoded) / most_bytes) / np.log(1.8))
        del steps[: min(needed, len(steps) - 1)]


def _upright(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip and permute the axes to the nearest to RAS+; nothing is interpolated."""
    turn = nib.orientations.io_orientation(affine)
    turned = nib.orientations.apply_orientation(voxels, turn)
    return turned, affine @ nib.orientations.inv_ornt_aff(turn, voxels.shape)


def _slices(
    brain: np.ndarray, scores: np.ndarray, lesion: np.ndarray, scale: ColourScale, thickness_mm: float
) -> list[tuple[int, str]]:
    """Seven heights from below to above: the telling ones, the rest evenly spread."""
    apart = max(1, round(4 / thickness_mm))
    chosen: dict[int, str] = {}

    def add(z: int, why: str) -> None:
        if all(abs(z - other) >= apart for other in chosen):
            chosen[int(z)] = why

    in_slice = lesion.sum(axis=(0, 1))
    if in_slice.any():
        add(int(in_slice.argmax()), ", most lesion")
    bright = np.clip((scores - scale.low) / (scale.high - scale.low), 0, 1).sum(axis=(0, 1))
    if bright.any():
        add(int(bright.argmax()), ", brightest map")
    add(int(scores.max(axis=(0, 1)).argmax()), ", highest score")
    heights = np.flatnonzero(brain.any(axis=(0, 1)))
    for z in np.quantile(heights, [0.2, 0.34, 0.48, 0.62, 0.76, 0.9, 0.27, 0.55, 0.7, 0.41, 0.83]).round().astype(int):
        if len(chosen) < COLUMNS:
            add(int(z), "")
    return sorted(chosen.items())


def _window(brain: np.ndarray, spacing: np.ndarray) -> tuple[slice, slice]:
    """The brain's extent in the axial plane and 6 mm around it."""
    spans = []
    for axis in (0, 1):
        places = np.flatnonzero(brain.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = int(np.ceil(6 / spacing[axis]))
        spans.append(slice(max(int(places[0]) - margin, 0), min(int(places[-1]) + margin + 1, brain.shape[axis])))
    return spans[0], spans[1]


def _column(
    grey: np.ndarray,
    scores: np.ndarray,
    lesion: np.ndarray,
    z: int,
    window: tuple[slice, slice],
    spacing: np.ndarray,
    scale: ColourScale,
) -> np.ndarray:
    """Scan above map for one slice, (2 * TILE_HEIGHT_PX, W, 3) in [0, 1]."""
    height_mm = (window[1].stop - window[1].start) * spacing[1]
    zoom = np.array([spacing[0], spacing[1]]) * TILE_HEIGHT_PX / height_mm

    def enlarged(plane: np.ndarray) -> np.ndarray:
        # Anterior up, the patient's right on the left: the radiological convention.
        return ndimage.zoom(plane[window].T[::-1, ::-1].astype(np.float32), zoom[::-1], order=1)

    scan = np.clip(enlarged(grey[..., z]), 0, 1)
    above = np.repeat(scan[..., None], 3, axis=2)
    below = scale.paint(scan, enlarged(scores[..., z]))
    if lesion[..., z].any():
        area = np.asarray(enlarged(lesion[..., z]) > 0.5, dtype=bool)
        line = np.asarray(ndimage.binary_dilation(area)) & ~area
        above[line] = _OUTLINE
        below[line] = _OUTLINE
    return np.concatenate([above, below])


def _lettered(picture: np.ndarray, widths: Sequence[int], captions: Sequence[str]) -> np.ndarray:
    """Add the heights below the slices, and the letters for right and left."""
    framed = np.zeros((picture.shape[0] + _CAPTION_PX, picture.shape[1], 3))
    framed[: picture.shape[0]] = picture
    image = Image.fromarray((np.clip(framed, 0, 1) * 255).round().astype(np.uint8))
    draw = ImageDraw.Draw(image)
    small, letter = ImageFont.load_default(12), ImageFont.load_default(14)
    left = 0
    for width, caption in zip(widths, captions, strict=True):
        draw.text((left + width / 2, picture.shape[0] + 3), caption, font=small, fill=(200, 205, 212), anchor="mt")
        for top in (0, TILE_HEIGHT_PX):
            for edge, side in ((left, "R"), (left + width - 18, "L")):
                # On black, since the scan below may be as bright as the letter.
                draw.rectangle((edge, top, edge + 18, top + 18), fill=(0, 0, 0))
                draw.text((edge + 9, top + 9), side, font=letter, fill=(225, 230, 238), anchor="mm")
        left += width
    return np.asarray(image)
