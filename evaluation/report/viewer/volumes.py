"""Volumes embedded in a page: cropped and quantised, with their position in millimetres preserved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from scipy import ndimage
from skimage.measure import label

from ....data_manifests.images.grid import Grid
from ....data_manifests.images.volume import Volume, nifti_bytes
from ...figures.colour_scale import ColourScale
from ...figures.slices import Head, upright
from ..html import packed

MOST_MAP_BYTES = 450_000
"""Limit for the map of a view, as it lies in the page."""
_MARGIN_VOXELS = 2
_WHITE = 255
_QUALITIES = ((62, 1), (44, 1), (30, 1), (22, 1), (62, 2), (30, 2), (30, 3), (30, 4), (14, 6))
"""Grey levels, and the voxels along each axis that are averaged. 62 levels, 6 bits, are as many as an eye tells."""
_MAP_QUALITIES = ((2**16 - 2, 1), (1022, 1), (62, 1), (62, 2), (14, 3), (14, 5))
"""Steps of the score, and the voxels along each axis whose highest score is kept."""
_AIR = 0.06
"""Grey value below which a block of the background lies; black is the darkest fluid of the brain."""


@dataclass(frozen=True)
class EmbeddedScan:
    """A scan of the viewer: its name and a gzipped NIfTI file in base64, uint8, 0 to 255 from black to white."""

    name: str
    data: str


@dataclass(frozen=True)
class ViewerVolumes:
    """Volumes of one view of the viewer, each a gzipped NIfTI file in base64.

    Attributes
    ----------
    scans : tuple of EmbeddedScan
        The first has the grid of the map; the others may have their own.
    map : str
        uint16; the value of a voxel is its score minus `floor`, or 0 if the score is lower or missing.
    lesion : str or None
        uint8; outline of the lesion mask, so that its inside stays visible.
    floor, top : float
        Lowest and highest score that can be represented.
    step : float
        Quantisation step: a value is at most this much above the score. The lower end of the colour scale lies between
        two steps.
    """

    scans: tuple[EmbeddedScan, ...]
    map: str
    lesion: str | None
    floor: float
    top: float
    step: float

    @property
    def bytes(self) -> int:
        """Size of all volumes in the page."""
        return sum(len(scan.data) for scan in self.scans) + len(self.map) + len(self.lesion or "")

    @classmethod
    def from_head(
        cls,
        head: Head,
        *,
        name: str = "T1w",
        others: Mapping[str, Volume] | None = None,
        whole_head: bool = False,
        most_bytes: int = 3_000_000,
    ) -> "ViewerVolumes":
        """Crop and quantise the volumes of a subject.

        The map is stored from the floor of the colour scale, which is below the threshold, up to its highest score in
        65,534 steps. Even with extreme voxels, the quantisation error is smaller than the printed digits. A map with
        very many voxels above the floor has fewer steps, then larger voxels.

        Parameters
        ----------
        head : Head
        name : str
            Of its scan.
        others : mapping from name to Volume, optional
            Other scans in the same space, each on any grid, with 0 outside of what is shown.
        whole_head : bool
            Show the scan outside the brain, too.
        most_bytes : int
            Limit for all volumes together. Above it, the scans have fewer grey levels, then larger voxels.
        """
        shown = _head_mask(head.grey, head.spacing_mm) | head.brain if whole_head else head.brain
        scans = [(name, _boxed(head.grey, shown, head.affine))]
        for other, volume in (others or {}).items():
            scans.append((other, _boxed(*_grey(volume))))
        box = _box(shown)
        affine = _cropped(head.affine, box)
        map, top, step = _quantised(head.scores[box], head.scale, affine)
        lesion = head.lesion[box]
        rim = np.asarray(ndimage.binary_dilation(lesion)) & ~lesion
        outline = packed(nifti_bytes(Volume(rim, Grid(rim.shape, affine)))) if rim.any() else None
        return cls(
            scans=_fitting(scans, most_bytes - len(map) - len(outline or "")),
            map=map,
            lesion=outline,
            floor=head.scale.floor,
            top=top,
            step=step,
        )


def _quantised(scores: np.ndarray, scale: ColourScale, affine: np.ndarray) -> tuple[str, float, float]:
    """Return the packed map, its highest score and its step."""
    top = max(float(scores.max()), scale.high)
    text, step = "", 0.0
    for levels, size in _MAP_QUALITIES:
        # The threshold lies on a step boundary, so the viewer colours exactly the voxels that reach it.
        step = (top - scale.floor) / levels
        step = (scale.low - scale.floor) / max(np.floor((scale.low - scale.floor) / step), 1)
        shown = scores >= scale.floor
        stored = np.where(shown, 1 + np.floor((scores - scale.floor) / step), 0).clip(0, levels + 1)
        stored, coarse = _blocks(stored, affine, size, np.max)
        text = packed(nifti_bytes(Volume(stored.astype(np.uint16), Grid(stored.shape, coarse)), slope=step))
        if len(text) <= MOST_MAP_BYTES:
            break
    return text, top, float(step)


def _grey(volume: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a scan turned to RAS+, scaled to 0 to 1 by its own intensities, where it is shown, and its affine."""
    voxels, affine = upright(volume)
    inside = voxels > 0
    black, white = (float(value) for value in np.percentile(voxels[inside], [0.5, 99.7])) if inside.any() else (0, 1)
    grey = np.clip((voxels - black) / max(white - black, 1e-12), 0, 1)
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    head = _head_mask(grey, spacing)
    return grey, head if head.any() else np.ones(grey.shape, bool), affine


def _head_mask(grey: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Mask of the head without the air around it, in blocks of about 4 mm."""
    steps = np.maximum(np.round(4 / spacing_mm), 1).astype(int)
    blocks = grey
    for axis, step in enumerate(steps):
        starts = np.arange(0, blocks.shape[axis], step)
        counts = np.diff(np.append(starts, blocks.shape[axis]))
        blocks = np.add.reduceat(blocks, starts, axis=axis) / np.expand_dims(counts, [a for a in range(3) if a != axis])
    labels = np.asarray(label(blocks > _AIR, connectivity=1))
    if not labels.any():
        return np.zeros(grey.shape, bool)
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    mask = np.asarray(ndimage.binary_fill_holes(ndimage.binary_dilation(largest)))
    for axis, step in enumerate(steps):
        mask = np.repeat(mask, step, axis=axis)
    return mask[tuple(slice(0, size) for size in grey.shape)]


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    sides = []
    for axis in range(3):
        places = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        sides.append(slice(max(int(places[0]) - _MARGIN_VOXELS, 0), int(places[-1]) + 1 + _MARGIN_VOXELS))
    return tuple(sides)


def _cropped(affine: np.ndarray, box: Sequence[slice]) -> np.ndarray:
    cropped = affine.copy()
    cropped[:3, 3] = affine[:3, :3] @ [side.start for side in box] + affine[:3, 3]
    return cropped


def _boxed(grey: np.ndarray, shown: np.ndarray, affine: np.ndarray) -> Volume:
    """Return the box around what is shown; -1 in voxels that are not."""
    box = _box(shown)
    voxels = np.where(shown[box], grey[box], -1).astype(np.float32)
    return Volume(voxels, Grid(voxels.shape, _cropped(affine, box)))


def _fitting(scans: Sequence[tuple[str, Volume]], most_bytes: int) -> tuple[EmbeddedScan, ...]:
    """Pack scans at the best quality at which all of them fit the limit; at the lowest if they fit at none."""
    embedded: tuple[EmbeddedScan, ...] = ()
    for levels, step in _QUALITIES:
        # A sample of the slices tells whether the effort is worthwhile.
        if (levels, step) != _QUALITIES[-1]:
            sampled = sum(_estimated(volume, levels, step) for _, volume in scans)
            if sampled > 1.15 * most_bytes:
                continue
        embedded = tuple(EmbeddedScan(name, _packed_scan(volume, levels, step)) for name, volume in scans)
        if sum(len(scan.data) for scan in embedded) <= most_bytes:
            break
    return embedded


def _estimated(volume: Volume, levels: int, step: int) -> float:
    every = max(volume.voxels.shape[2] // (8 * step), 1)
    chosen = [z for z in range(volume.voxels.shape[2]) if z // step % every == 0]
    part = volume.voxels[:, :, chosen]
    packed_part = _packed_scan(Volume(part, Grid(part.shape, volume.affine)), levels, step)
    return len(packed_part) * volume.voxels.shape[2] / len(chosen)


def _packed_scan(volume: Volume, levels: int, step: int) -> str:
    voxels, affine = _blocks(volume.voxels, volume.affine, step, np.mean)
    # Hidden voxels are 0, black ones 1 level.
    stored = np.where(voxels >= 0, 1 + np.round(voxels * (levels - 1)), 0).astype(np.uint8)
    return packed(nifti_bytes(Volume(stored, Grid(stored.shape, affine)), slope=_WHITE / levels))


def _blocks(
    voxels: np.ndarray, affine: np.ndarray, step: int, measure: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return one value per block of voxels, and the affine of the blocks."""
    if step == 1:
        return voxels, affine
    size = [-(-n // step) * step for n in voxels.shape]
    padded = np.pad(voxels, [(0, total - n) for n, total in zip(voxels.shape, size, strict=True)], mode="edge")
    blocks = padded.reshape(size[0] // step, step, size[1] // step, step, size[2] // step, step)
    coarse = affine.copy()
    coarse[:3, 3] += affine[:3, :3] @ np.full(3, (step - 1) / 2)
    coarse[:3, :3] *= step
    return measure(blocks, axis=(1, 3, 5)), coarse


@cache
def niivue_source() -> str:
    """Source of NiiVue, unmodified."""
    return _resource("niivue.umd.js")


@cache
def niivue_packed() -> str:
    """Source of NiiVue as `packed` text, to be unpacked in the browser."""
    return packed(niivue_source().encode())


def niivue_licence() -> str:
    """Licences of NiiVue and its bundled packages, included in every page with NiiVue."""
    return _resource("niivue.LICENSE.txt")


def _resource(name: str) -> str:
    return (resources.files(__package__ or "voxout.evaluation.report.viewer") / name).read_text(encoding="utf-8")
