"""Percentile scaling of intensities to [0, 1]."""

import numpy as np

from ...data_manifests.errors import UserError
from ...data_manifests.images.volume import Volume
from ..settings import IntensitySettings


def normalise(image: Volume, mask: Volume, settings: IntensitySettings) -> Volume:
    """Map two percentiles of the brain's intensities to 0 and 1, and clip.

    Parameters
    ----------
    image : Volume
    mask : Volume, bool
        The brain, on the same grid. Voxels outside it are not used.
    settings : IntensitySettings

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
    low, high = np.percentile(inside, [settings.low_percent, settings.high_percent])
    if not high > low:
        raise UserError(
            f"The brain has the constant intensity {low:g} from percentile {settings.low_percent:g} to "
            f"{settings.high_percent:g}, expected contrast. Check the scan and its brain mask."
        )
    voxels = np.zeros(image.voxels.shape, np.float32)
    voxels[mask.voxels] = np.clip((inside - low) / (high - low), 0, 1)
    return image.with_voxels(voxels)
