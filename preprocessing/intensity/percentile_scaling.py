"""Percentile scaling of intensities to [0, 1]."""

import numpy as np

from ...data_manifests.errors import UserError
from ...data_manifests.images.volume import Volume

_LOW_PERCENT, _HIGH_PERCENT = 0.5, 99.5
"""Percentiles of the brain's intensities that become 0 and `_HIGH`."""
_HIGH = 0.8
"""The rest is for lesions that are brighter than healthy tissue, such as bright ones in the white matter of a T1w."""


def normalise(image: Volume, mask: Volume) -> Volume:
    """Map the percentiles 0.5 and 99.5 of the brain's intensities to 0 and 0.8, and clip to [0, 1].

    Parameters
    ----------
    image : Volume
    mask : Volume, bool
        The brain, on the same grid. Voxels outside it are not used.

    Returns
    -------
    Volume
        float32 in [0, 1] inside the mask, exactly 0 outside.

    Raises
    ------
    UserError
        The mask is empty, or the brain has no contrast.
    """
    inside = image.voxels[mask.voxels]
    if inside.size == 0:
        raise UserError("The brain mask is empty, expected voxels to normalise. Give a mask in column brain_mask.")
    low, high = np.percentile(inside, [_LOW_PERCENT, _HIGH_PERCENT])
    if not high > low:
        raise UserError(
            f"The brain has the constant intensity {low:g} from percentile {_LOW_PERCENT:g} to "
            f"{_HIGH_PERCENT:g}, expected contrast. Check the scan and its brain mask."
        )
    voxels = np.zeros(image.voxels.shape, np.float32)
    voxels[mask.voxels] = np.clip(_HIGH * (inside - low) / (high - low), 0, 1)
    return image.with_voxels(voxels)
