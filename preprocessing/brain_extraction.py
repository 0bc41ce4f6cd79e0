"""Which voxels of a head scan are brain.

The network is deepbet (Fisch et al., "deepbet: fast brain extraction of T1-weighted MRI using convolutional neural
networks", Comput Biol Med 179, 2024), whose weights lie in its wheel.
"""

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

from ..data_manifests.errors import UserError
from ..data_manifests.volume import Volume
from .head_registration import mask_from_template
from .resampling import largest_component
from .settings import BrainExtractionSettings


@dataclass(frozen=True, eq=False)
class BrainExtraction:
    """A brain mask and where it comes from.

    Attributes
    ----------
    mask : Volume, bool
    method : {"given", "already stripped", "deepbet", "template"}
    notes : tuple of str
        What was tried before, for the user's eyes.
    """

    mask: Volume
    method: str
    notes: tuple[str, ...] = ()


def extract_brain(
    t1w: Volume, settings: BrainExtractionSettings, *, given: Volume | None = None, seed: int = 1
) -> BrainExtraction:
    """Find the brain in a T1w.

    Parameters
    ----------
    t1w : Volume
        Axes towards right, anterior, superior.
    settings : BrainExtractionSettings
    given : Volume, bool, optional
        The user's mask, on the grid of `t1w`.
    seed : int
        For the template registration.

    Raises
    ------
    UserError
        No mask of a plausible volume was found, or method "given" has no mask.
    """
    if settings.method == "given" and given is None:
        raise UserError(
            "no brain mask is given, but brain_extraction.method asks for one; name it in column brain_mask"
        )
    if given is not None and settings.method in ("auto", "given"):
        # Taken as it is: the user has seen it.
        return _plausible_or_error(given, "given", settings)
    if settings.method == "none":
        return _plausible_or_error(_foreground(t1w), "already stripped", settings)
    if settings.method == "auto" and is_stripped(t1w, settings):
        return _plausible_or_error(_foreground(t1w), "already stripped", settings)
    notes: tuple[str, ...] = ()
    if settings.method in ("auto", "deepbet"):
        mask = _deepbet(t1w)
        if settings.method == "deepbet" or _plausible(mask, settings):
            return _plausible_or_error(mask, "deepbet", settings)
        notes = (f"deepbet's brain of {_volume_ml(mask):.0f} ml is not plausible: the template was registered instead",)
    return _plausible_or_error(mask_from_template(t1w, seed=seed), "template", settings, notes)


def is_stripped(t1w: Volume, settings: BrainExtractionSettings) -> bool:
    """Whether all that a scan shows is one object of a brain's volume on an empty background."""
    shown = _foreground(t1w)
    around = ~np.asarray(ndimage.binary_dilation(shown.voxels, iterations=2), bool)
    # Interpolation leaves a faint rim around a stripped brain; a scanner leaves noise everywhere.
    empty = np.abs(t1w.voxels[around] - _background(t1w)) <= 1e-3 * np.abs(t1w.voxels).max()
    return _plausible(shown, settings) and bool(around.any()) and float(empty.mean()) > 0.98


def _volume_ml(mask: Volume) -> float:
    return float(mask.voxels.sum() * mask.grid.voxel_volume_mm3 / 1000)


def _plausible(mask: Volume, settings: BrainExtractionSettings) -> bool:
    return settings.smallest_ml <= _volume_ml(mask) <= settings.largest_ml


def _plausible_or_error(
    mask: Volume, method: str, settings: BrainExtractionSettings, notes: tuple[str, ...] = ()
) -> BrainExtraction:
    if _plausible(mask, settings):
        return BrainExtraction(mask, method, notes)
    expected = f"expected {settings.smallest_ml:.0f}-{settings.largest_ml:.0f} ml"
    if method == "given":
        raise UserError(
            f"the given brain mask holds {_volume_ml(mask):.0f} ml, {expected}; give another in column "
            "brain_mask, or leave the column empty"
        )
    raise UserError(
        f"brain extraction ({method}) found {_volume_ml(mask):.0f} ml, {expected}; give a mask in column brain_mask"
    )


def _background(t1w: Volume) -> float:
    """The commonest value on the faces of the scan."""
    faces = [np.take(t1w.voxels, end, axis).ravel() for axis in range(3) for end in (0, -1)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    return float(values[counts.argmax()])


def _foreground(t1w: Volume) -> Volume:
    """The largest object that differs from the background, without holes."""
    level = _background(t1w)
    shown = t1w.voxels > level + 0.01 * (np.percentile(t1w.voxels, 99.5) - level)
    return t1w.with_voxels(_filled(ndimage.binary_opening(shown)))


def _filled(mask) -> np.ndarray:
    return np.asarray(ndimage.binary_fill_holes(largest_component(np.asarray(mask))))


def _deepbet(t1w: Volume) -> Volume:
    """deepbet's mask; empty where the network finds nothing."""
    import torch  # Both seconds long, and not needed for scans that bring a mask.
    from deepbet import BrainExtraction as Network

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, mask, _ = Network(no_gpu=True).run(nib.Nifti1Image(t1w.voxels.astype(np.float32), t1w.affine))
    except (AssertionError, ValueError, IndexError):
        # How it ends when no voxel looks like brain.
        return t1w.with_voxels(np.zeros(t1w.voxels.shape, bool))
    finally:
        torch.set_num_threads(threads)
    return t1w.with_voxels(_filled(np.asarray(mask.dataobj) > 0))
