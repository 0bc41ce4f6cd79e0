"""Copies of a healthy prepared brain with simulated lesions, far enough apart to be found one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from ..images.grid import Grid
from ..images.volume import Volume
from .lesion_kinds import KINDS, LesionKind, Site
from .painted_lesions import tissue_thresholds, white_grey_contrast
from .soft_shapes import FINER, SoftShape, soft_shape

SMALLEST_ML, LARGEST_ML = 0.03, 10.0
APART_MM = 20.0
"""Least distance between the edges of two lesions of a copy."""
_TRIES = 60
_IN_TISSUE = 0.8
"""Share of a lesion in grey and white matter; the rest may be fluid of sulci."""
_EACH_SIDE = 0.25
"""Least share of each tissue in a lesion at their border."""
_ONE_TISSUE = 2 / 3
_Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class WantedLesion:
    """A lesion to paint: name of its kind, volume in the head, strength."""

    kind: str
    ml: float
    strength: float


@dataclass(frozen=True)
class PaintedLesion:
    """A lesion that was painted.

    Attributes
    ----------
    number : int
        In `PaintedCopy.labels`, from 1.
    kind : str
    ml : float
        Volume of its voxels in the head, in ml.
    strength : float
    place_mm : tuple of float, (3,)
        Its centre, in RAS+ mm of the image.
    tissue : str
        "grey matter", "white matter", or "both" with less than two thirds of either.
    """

    number: int
    kind: str
    ml: float
    strength: float
    place_mm: tuple[float, float, float]
    tissue: str


@dataclass(frozen=True, eq=False)
class PaintedCopy:
    """A brain with lesions.

    Attributes
    ----------
    image : Volume
    labels : ndarray of int32, (X, Y, Z)
        Number of the lesion, 0 elsewhere.
    lesions : tuple of PaintedLesion
    """

    image: Volume
    labels: np.ndarray
    lesions: tuple[PaintedLesion, ...]


@dataclass(frozen=True, eq=False)
class HealthyBrain:
    """A healthy brain to paint lesions into.

    Attributes
    ----------
    image : Volume
        In [0, 1], 0 outside the brain.
    brain_mask : Volume of bool
    scored : ndarray of bool, (X, Y, Z)
        Voxels that a model scores; lesions have their centre there.
    shrinkage : ndarray, (X, Y, Z)
        Volume in the head to that on the grid, of each voxel.
    scan_mm : float
        Voxels of the scan that the image was made of.
    """

    image: Volume
    brain_mask: Volume
    scored: np.ndarray
    shrinkage: np.ndarray
    scan_mm: float = 1.0

    @cached_property
    def contrast(self) -> float:
        """White minus grey matter, in the units of the image."""
        return white_grey_contrast(self.image, self.brain_mask)

    @cached_property
    def grey(self) -> np.ndarray:
        """Grey matter by its intensity, (X, Y, Z) bool."""
        low, high = self._thresholds
        return self.brain_mask.voxels & (self.image.voxels > low) & (self.image.voxels <= high)

    @cached_property
    def white(self) -> np.ndarray:
        """White matter by its intensity, (X, Y, Z) bool."""
        return self.brain_mask.voxels & (self.image.voxels > self._thresholds[1])

    @cached_property
    def _thresholds(self) -> tuple[float, float]:
        return tissue_thresholds(self.image, self.brain_mask)

    @cached_property
    def _tissue_places(self) -> np.ndarray:
        return np.argwhere(self.scored & (self.grey | self.white))

    @cached_property
    def _border_places(self) -> np.ndarray:
        return np.argwhere(self.scored & self.white & np.asarray(ndimage.binary_dilation(self.grey), bool))

    def places_for(self, kind: LesionKind) -> np.ndarray:
        """Return the voxels (N, 3) that may be the centre of a lesion."""
        return self._border_places if kind.on_border else self._tissue_places

    def suits(self, kind: LesionKind, box: _Box, core: np.ndarray) -> bool:
        """Whether a lesion with these voxels of a box lies in suitable tissue, inside the brain."""
        if not self.brain_mask.voxels[box][core].all():
            return False
        grey, white = self.grey[box][core].mean(), self.white[box][core].mean()
        return bool(grey + white >= _IN_TISSUE and (not kind.on_border or min(grey, white) >= _EACH_SIDE))

    def tissue_of(self, inside: np.ndarray) -> str:
        """Name the tissue of the voxels of a lesion, (X, Y, Z) bool."""
        grey, white = self.grey[inside].mean(), self.white[inside].mean()
        if max(grey, white) < _ONE_TISSUE * (grey + white):
            return "both"
        return "grey matter" if grey > white else "white matter"


def wanted_lesions(random: np.random.Generator, first: int, number: int) -> list[WantedLesion]:
    """Draw lesions of the kinds in turn, with log-uniform sizes and strengths; `first` of the first is its turn."""
    names, wanted = list(KINDS), []
    for turn in range(first, first + number):
        kind = KINDS[names[turn % len(names)]]
        ml, strength = (
            float(np.exp(random.uniform(np.log(low), np.log(high))))
            for low, high in ((SMALLEST_ML, LARGEST_ML), (kind.weakest, kind.strongest))
        )
        wanted.append(WantedLesion(kind.name, ml, strength))
    return wanted


def paint_copy(brain: HealthyBrain, wanted: Sequence[WantedLesion], random: np.random.Generator) -> PaintedCopy:
    """Paint lesions at random places, the largest first; one without a suitable free place is left out."""
    image, labels = brain.image.voxels.astype(np.float32).copy(), np.zeros(brain.image.voxels.shape, np.int32)
    lesions: list[PaintedLesion] = []
    spacing = brain.image.grid.spacing_mm
    taken: list[tuple[np.ndarray, float]] = []
    for lesion in sorted(wanted, key=lambda lesion: -lesion.ml):
        kind = KINDS[lesion.kind]
        placed = _placed(brain, kind, lesion.ml, taken, random)
        if placed is None:
            continue
        taken.append((placed.centre, placed.reach_mm))
        magnified = float(brain.shrinkage[tuple(placed.centre)]) ** (-1 / 3)
        site = Site(placed.cut(image, spacing), placed.shape, brain.contrast, magnified)
        changed = np.clip(kind.change(site, lesion.strength, random), 0, 1)[placed.part]
        image[placed.box] = np.where(brain.brain_mask.voxels[placed.box], changed, image[placed.box])
        number = len(lesions) + 1
        labels[placed.box][placed.core] = number
        inside = labels == number
        ml = float(brain.shrinkage[inside].sum()) * brain.image.grid.voxel_volume_mm3 / 1000
        x, y, z = (float(mm) for mm in brain.image.affine[:3] @ [*np.argwhere(inside).mean(axis=0), 1])
        lesions.append(PaintedLesion(number, kind.name, ml, lesion.strength, (x, y, z), brain.tissue_of(inside)))
    return PaintedCopy(brain.image.with_voxels(image), labels, tuple(lesions))


@dataclass(frozen=True, eq=False)
class _Placed:
    """A shape at its place in an image.

    Attributes
    ----------
    centre : ndarray, (3,)
        Voxel.
    reach_mm : float
        Greatest distance of a voxel of the lesion from its centre.
    shape : SoftShape
    box : tuple of slices
        Of the shape in the image, cut to it.
    part : tuple of slices
        Of `box` in the shape.
    core : ndarray of bool
        Voxels of the lesion in `box`.
    """

    centre: np.ndarray
    reach_mm: float
    shape: SoftShape
    box: _Box
    part: _Box
    core: np.ndarray

    def cut(self, image: np.ndarray, spacing_mm: np.ndarray) -> Volume:
        """Return the image on the voxels of the shape, 0 outside it."""
        x, y, z = (n // FINER for n in self.shape.fine.shape)
        around = np.zeros((x, y, z), np.float32)
        around[self.part] = image[self.box]
        return Volume(around, Grid((x, y, z), np.diag([*spacing_mm, 1.0])))


def _placed(
    brain: HealthyBrain,
    kind: LesionKind,
    ml: float,
    taken: Sequence[tuple[np.ndarray, float]],
    random: np.random.Generator,
) -> _Placed | None:
    """Find a place and a shape."""
    places, spacing = brain.places_for(kind), brain.image.grid.spacing_mm
    if not len(places):
        return None
    # Drawn once, for an average place, since it takes longer than to look at a place.
    shape = soft_shape(random, 1000 * ml / float(np.median(brain.shrinkage[brain.scored])), spacing, brain.scan_mm)
    core = shape.mask(shape.sampled(shape.fine))
    reach = _reach_mm(core, spacing)
    for _ in range(_TRIES):
        centre = places[random.integers(len(places))]
        if any(np.linalg.norm((centre - other) * spacing) < reach + its + APART_MM for other, its in taken):
            continue
        low = centre - np.array(core.shape) // 2
        box, part = _overlap(low, core.shape, brain.image.voxels.shape)
        if core[part].sum() == core.sum() and brain.suits(kind, box, core[part]):
            return _Placed(centre, reach, shape, box, part, core[part])
    return None


def _overlap(first: np.ndarray, size: Sequence[int], limits: Sequence[int]) -> tuple[_Box, _Box]:
    """Cut a box to an image: its slices in the image, and the same part in the box."""
    low = [max(int(f), 0) for f in first]
    high = [min(int(f) + n, limit) for f, n, limit in zip(first, size, limits, strict=True)]
    (x, y, z), (a, b, c) = (
        [slice(start - offset, stop - offset) for start, stop, offset in zip(low, high, offsets, strict=True)]
        for offsets in ((0, 0, 0), [int(f) for f in first])
    )
    return (x, y, z), (a, b, c)


def _reach_mm(core: np.ndarray, spacing_mm: np.ndarray) -> float:
    """Greatest distance of a voxel of a lesion from its centre."""
    return float(np.linalg.norm((np.argwhere(core) - np.array(core.shape) // 2) * spacing_mm, axis=1).max())
