"""The MNI152 template (2009a, symmetric) to which all subjects are registered.

The skull-stripped 1 mm T1w, grey-matter and white-matter images are part of nilearn's wheel: nothing is downloaded.
They are located without importing nilearn, which would take seconds.
"""

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from ...data_manifests.errors import UserError, private
from ...data_manifests.images.volume import Grid, Volume, read_volume
from .resampling import blurred_for

_ROOM_BELOW_MM = 12.0
"""Padding below the brain: the published image ends at the brain stem, and a diffeomorphism is zero at the border of
its grid."""


@dataclass(frozen=True, eq=False)
class Template:
    """The template brain on one RAS grid.

    Attributes
    ----------
    t1w : Volume, float32
        0 outside the brain, at most 1.
    brain_mask : Volume, bool
    grey, white : Volume, float32
        Probability of grey and of white matter, 0 to 1.
    """

    t1w: Volume
    brain_mask: Volume
    grey: Volume
    white: Volume

    @property
    def grid(self) -> Grid:
        """Grid of the four volumes."""
        return self.t1w.grid

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices to RAS+ millimetres, (4, 4)."""
        return self.t1w.affine


@cache
def load_template(spacing_mm: float) -> Template:
    """Load the template at a given resolution; cached per process.

    The grid is mirror-symmetric about the mid-sagittal plane at every spacing, as is the template.

    Raises
    ------
    UserError
        The installed nilearn does not contain the template.
    """
    brain = _from_wheel("t1")
    inside = brain.with_voxels((brain.voxels > 0).astype(np.float32))
    share = _sampled(inside, spacing_mm)
    mask = share.voxels >= 0.5
    # Dividing by the smoothed mask preserves the brightness at the brain's edge.
    intensity = _sampled(brain, spacing_mm).voxels / np.maximum(share.voxels, 0.5)
    return Template(
        t1w=share.with_voxels(np.where(mask, np.clip(intensity, 0, 1), 0).astype(np.float32)),
        brain_mask=share.with_voxels(mask),
        grey=_sampled(_from_wheel("gm"), spacing_mm),
        white=_sampled(_from_wheel("wm"), spacing_mm),
    )


def _from_wheel(tissue: str) -> Volume:
    spec = importlib.util.find_spec("nilearn")
    folder = Path(spec.origin).parent / "datasets" / "data" if spec and spec.origin else Path("nilearn")
    path = folder / f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.exists():
        raise UserError(
            f"The installed nilearn does not contain the MNI152 template ({private(path.name)}), expected nilearn 0.12 "
            "to 0.14. Install one of these versions."
        )
    image = read_volume(path)
    return image.with_voxels(image.voxels / image.voxels.max())


def _sampled(image: Volume, spacing_mm: float) -> Volume:
    origin = image.affine[:3, 3] - [0, 0, _ROOM_BELOW_MM]
    last = image.affine[:3, 3] + (np.array(image.grid.size_vox) - 1) * image.grid.spacing_mm
    size = np.floor((last - origin) / spacing_mm + 1e-6).astype(int) + 1
    origin[0] = -(size[0] - 1) * spacing_mm / 2
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = origin
    offset = (origin - image.affine[:3, 3]) / image.grid.spacing_mm
    step = spacing_mm / image.grid.spacing_mm
    x, y, z = (int(n) for n in size)
    voxels = ndimage.affine_transform(
        blurred_for(image, spacing_mm).voxels, np.diag(step), offset.tolist(), output_shape=(x, y, z), order=1
    )
    return Volume(voxels.astype(np.float32), Grid((x, y, z), affine))
