"""Volumes embedded in a page: cropped to the brain and quantised, with their position in millimetres preserved."""

from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from scipy import ndimage

from ....data_manifests.images.grid import Grid
from ....data_manifests.images.volume import Volume, nifti_bytes
from ...figures.colour_scale import ColourScale
from ...figures.slices import Head
from ..html import packed

_MARGIN_VOXELS = 2
_LEVELS = 2**16 - 2


@dataclass(frozen=True)
class ViewerVolumes:
    """Volumes of the viewer, each a gzipped NIfTI file in base64.

    Attributes
    ----------
    scan : str
        uint8, black to white.
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

    scan: str
    map: str
    lesion: str | None
    floor: float
    top: float
    step: float

    @classmethod
    def from_head(cls, head: Head) -> "ViewerVolumes":
        """Crop and quantise the volumes of a subject.

        The map is stored from the floor of the colour scale, which is below the threshold, up to its highest score in
        65,534 steps. Even with extreme voxels, the quantisation error is smaller than the printed digits.
        """
        scale: ColourScale = head.scale
        box = tuple(
            slice(max(int(places[0]) - _MARGIN_VOXELS, 0), int(places[-1]) + 1 + _MARGIN_VOXELS)
            for places in (np.unique(axis) for axis in np.nonzero(head.brain))
        )
        affine = head.affine.copy()
        affine[:3, 3] = head.affine[:3, :3] @ [side.start for side in box] + head.affine[:3, 3]
        brain, scores = head.brain[box], head.scores[box]
        grid = Grid(brain.shape, affine)
        scan = np.where(brain, 1 + np.round(head.grey[box] * 254), 0).astype(np.uint8)
        top = max(float(scores.max()), scale.high)
        # The threshold lies on a step boundary, so the viewer colours exactly the voxels that reach it.
        step = (top - scale.floor) / _LEVELS
        step = (scale.low - scale.floor) / max(np.floor((scale.low - scale.floor) / step), 1)
        shown = scores >= scale.floor
        levels = np.where(shown, 1 + np.floor((scores - scale.floor) / step), 0).clip(0, _LEVELS + 1)
        rim = np.asarray(ndimage.binary_dilation(head.lesion[box])) & ~head.lesion[box]
        return cls(
            scan=packed(nifti_bytes(Volume(scan, grid))),
            map=packed(nifti_bytes(Volume(levels.astype(np.uint16), grid), slope=step)),
            lesion=packed(nifti_bytes(Volume(rim, grid))) if rim.any() else None,
            floor=scale.floor,
            top=top,
            step=float(step),
        )


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
