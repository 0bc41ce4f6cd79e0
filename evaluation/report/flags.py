"""Flags on findings that often have a harmless cause, by where they lie.

A flag is a reason to look twice, no verdict: lesions also lie at the cortex, beside ventricles, or on both sides. How
often findings in healthy heads and at simulated lesions carry each: docs/maps.md#findings (`benchmarks/findings.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ...data_manifests.images.volume import Volume
from .atlas import load_atlas

MIRROR_MM = 4.0
"""Brains are not symmetric: the mirrored place is searched this far around."""
MIDLINE_MM = 6.0
"""Voxels closer to the mid-sagittal plane have no mirrored place of their own."""
BORDER_MM = 4.0
"""Depth below the surface of the brain mask at which skull, veins and errors of the mask cause high scores."""
VENTRICLE_MM = 3.0
"""Farthest from a ventricle of the atlas to lie beside it."""
EDGE_MM = 4.0
"""Thinner rims of the template's brain without scores are the surface of a smaller brain, and no edge."""
LEAST_JACOBIAN, MOST_JACOBIAN = 0.5, 2.5
"""Local volume changes by the warp beyond these are extreme: 1 % of a good registration is below 0.55 or above 2.5."""
_MOST = 0.5
"""Share of a finding's voxels that must lie in a place; that of the edge is lower, since a finding ends there."""
_TOUCHING = 0.1


@dataclass(frozen=True)
class Flag:
    """A phrase for tables and the terminal, and what it means."""

    text: str
    meaning: str


MIRROR = Flag(
    "mirror-symmetric",
    "The map is also above the threshold at the mirrored place of the other hemisphere: lesions rarely are, anatomical "
    "variants, atrophy and field inhomogeneity often.",
)
EDGE = Flag(
    "at the edge of the coverage",
    "It touches brain without a score: outside the field of view or outside the brains of most controls.",
)
BORDER = Flag(
    "at the brain's surface",
    f"Most of it lies within {BORDER_MM:g} mm of the border of the brain mask, where vessels, meninges and errors of "
    "the mask cause high scores. Cortex lies there, too.",
)
VENTRICLE = Flag(
    "at a ventricle",
    f"Most of it lies in, or within {VENTRICLE_MM:g} mm of, a ventricle of the template: wide ventricles cause high "
    "scores.",
)
WARP = Flag(
    "strong local deformation",
    f"The registration changes volumes here to less than {LEAST_JACOBIAN:g} or more than {MOST_JACOBIAN:g} times: "
    "the place may be misregistered.",
)
FLAGS = (MIRROR, EDGE, BORDER, VENTRICLE, WARP)


@dataclass(frozen=True, eq=False)
class OnTemplate:
    """What a subject's findings are compared with, on one grid of template space with axes along x, y and z.

    Attributes
    ----------
    map : Volume
        Anomaly scores.
    covered, brain : Volume of bool
        The voxels with a score, and the subject's brain mask.
    grey, white : Volume
        Tissue probabilities of the template, 0 to 1.
    jacobian : Volume or None
        Local volume change by the registration, on any grid; 1 is no change. None without a warp.
    """

    map: Volume
    covered: Volume
    brain: Volume
    grey: Volume
    white: Volume
    jacobian: Volume | None = None


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the flags of one finding depend on, at each of its N voxels.

    Attributes
    ----------
    to_mirrored : array, (M,)
        Distance of the mirrored place to the nearest voxel above the threshold, mm; only for voxels off the midline.
    to_uncovered, below_surface, to_ventricle : array, (N,)
        Distances to brain without a score, to the border of the brain mask and to a ventricle of the atlas, mm.
    volume_change : array, (N,)
        By the registration; 1 is no change.
    touching_mm : float
        Farthest from brain without a score to touch it: the diagonal of a voxel's face.
    """

    to_mirrored: np.ndarray
    to_uncovered: np.ndarray
    below_surface: np.ndarray
    to_ventricle: np.ndarray
    volume_change: np.ndarray
    touching_mm: float

    @property
    def flags(self) -> tuple[Flag, ...]:
        """The flags of the finding."""
        voxels, change = len(self.to_uncovered), self.volume_change
        mirrored = len(self.to_mirrored) > voxels * _MOST and (self.to_mirrored <= MIRROR_MM).mean() >= _MOST
        holds = {
            MIRROR: mirrored,
            EDGE: (self.to_uncovered <= self.touching_mm).mean() >= _TOUCHING,
            BORDER: (self.below_surface <= BORDER_MM).mean() >= _MOST,
            VENTRICLE: (self.to_ventricle <= VENTRICLE_MM).mean() >= _MOST,
            WARP: ((change < LEAST_JACOBIAN) | (change > MOST_JACOBIAN)).mean() >= _MOST,
        }
        return tuple(flag for flag in FLAGS if holds[flag])


def flags_of(findings: Sequence[np.ndarray], on_template: OnTemplate, threshold: float) -> list[tuple[Flag, ...]]:
    """Return the flags of each finding; see `evidence_of`."""
    return [evidence.flags for evidence in evidence_of(findings, on_template, threshold)]


def evidence_of(findings: Sequence[np.ndarray], on_template: OnTemplate, threshold: float) -> list[Evidence]:
    """Return what the flags of each finding depend on.

    Parameters
    ----------
    findings : sequence of array, (N, 3)
        Positions of the voxels of each finding in template space, RAS+ mm.
    on_template : OnTemplate
    threshold : float
        That of the findings.
    """
    if not findings:
        return []
    t = on_template
    spacing = t.map.grid.spacing_mm
    covered, brain = t.covered.voxels.astype(bool), t.brain.voxels.astype(bool)
    flagged = covered & (t.map.voxels >= np.float32(threshold))
    # Distances to the centre of the nearest voxel of another kind; a face lies half a voxel closer.
    to_flagged = _distance(~flagged, spacing)
    below_surface = _distance(np.pad(brain, 1), spacing)[1:-1, 1:-1, 1:-1] - spacing.min() / 2
    uncovered = _opened((t.grey.voxels + t.white.voxels >= 0.5) & ~covered, spacing)
    to_uncovered = _distance(~uncovered, spacing)
    atlas = load_atlas()
    from_mm = np.linalg.inv(t.map.affine)
    found = []
    for points in findings:
        at = _index(points, from_mm, covered.shape)
        aside = points[abs(points[:, 0]) > MIDLINE_MM]
        found.append(
            Evidence(
                to_mirrored=to_flagged[_index(aside * [-1, 1, 1], from_mm, covered.shape)],
                to_uncovered=to_uncovered[at],
                below_surface=below_surface[at],
                to_ventricle=atlas.mm_to_ventricle(points),
                volume_change=_at(t.jacobian, points) if t.jacobian is not None else np.ones(len(points)),
                touching_mm=1.5 * float(spacing.max()),
            )
        )
    return found


def _distance(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the distance of each voxel of a mask to the nearest one outside, mm; infinite if there is none."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing))


def _opened(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the parts of a mask that a ball of radius `EDGE_MM` / 2 fits in."""
    core = _distance(np.pad(mask, 1), spacing)[1:-1, 1:-1, 1:-1] > EDGE_MM / 2
    return mask & (_distance(~core, spacing) <= EDGE_MM / 2)


def _at(volume: Volume, points: np.ndarray) -> np.ndarray:
    return volume.voxels[_index(points, np.linalg.inv(volume.affine), volume.voxels.shape)]


def _index(points: np.ndarray, from_mm: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    index = np.round(points @ from_mm[:3, :3].T + from_mm[:3, 3]).astype(int)
    return tuple(np.clip(index, 0, np.array(shape) - 1).T)
