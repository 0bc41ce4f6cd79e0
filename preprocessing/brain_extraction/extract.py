"""Brain extraction.

The network is deepbet (Fisch et al., "deepbet: fast brain extraction of T1-weighted MRI using convolutional neural
networks", Comput Biol Med 179, 2024), whose weights are part of its wheel. Every computed mask is checked by its
volume, its connectedness and its overlap with the template; if it is not plausible, the next method is tried.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ...data_manifests.errors import UserError
from ...data_manifests.images.volume import Volume
from ..registration.resampling import blurred_for, largest_component, refined, resample
from ..settings import BrainExtractionSettings
from .availability import require_method
from .backends import by_command, deepbet, hdbet
from .head_pose import TemplateFit, fit_template
from .template_fallback import fit_head, mask_from_template

_UPRIGHT = "deepbet, upright copy"
_COPY_SPACING_MM = 1.0
_SURE_OVERLAP = 0.92
_USUAL_TILT_DEGREES = 25.0
"""With a smaller overlap or a larger tilt, deepbet runs again on an upright copy. Masks that leaked into the neck of a
rotated head reached an overlap of up to 0.89, good masks 0.91 to 0.96; heads are seldom tilted more in the scanner."""
_SMALLEST_OVERLAP = 0.89
"""Smallest Dice with the template's brain, after a coarse affine fit, for a mask that voxout computed. Brain masks
reach 0.91 to 0.96, masks that leak into the face or neck 0.88 at most."""
_SMALLEST_PIECE = 0.98
"""Smallest share of a mask that its largest connected component must hold."""


@dataclass(frozen=True, eq=False)
class BrainExtraction:
    """A brain mask and the method that produced it.

    Attributes
    ----------
    mask : Volume, bool
    method : {"given", "already stripped", "deepbet", "deepbet, upright copy", "hdbet", "command", "template"}
    notes : tuple of str
        Methods tried before and why their masks were rejected, as messages for the user.
    """

    mask: Volume
    method: str
    notes: tuple[str, ...] = ()


def extract_brain(
    t1w: Volume, settings: BrainExtractionSettings, *, given: Volume | None = None, seed: int = 1
) -> BrainExtraction:
    """Extract the brain from a T1w.

    Parameters
    ----------
    t1w : Volume
        Axes towards right, anterior, superior.
    settings : BrainExtractionSettings
    given : Volume, bool, optional
        A mask provided by the user, on the grid of `t1w`.
    seed : int
        Seed of the template registration.

    Raises
    ------
    UserError
        No method found a plausible mask, or the method is "given" and there is no mask.
    """
    require_method(settings)
    require_mask(given, settings)
    if given is not None and settings.method in ("auto", "given"):
        # Used unchanged: the user is responsible for it.
        return BrainExtraction(given, "given")
    if settings.method == "none":
        return _accepted(_foreground(t1w), "already stripped", settings)
    if settings.method == "auto" and is_stripped(t1w, settings):
        return _accepted(_foreground(t1w), "already stripped", settings)
    notes: list[str] = []
    for candidate in _candidates(t1w, settings, seed):
        if candidate.problem is None:
            return BrainExtraction(candidate.mask, candidate.method, tuple(notes))
        notes.append(f"brain extraction ({candidate.method}) {candidate.problem}")
    raise UserError(f"{'; '.join(notes)}; check the scan, or give a mask in column brain_mask")


def require_mask(given: Volume | None, settings: BrainExtractionSettings) -> None:
    """Raise a UserError if a given mask has an implausible volume, or if method "given" has no mask.

    Parameters
    ----------
    given : Volume, bool, or None
        Ignored if the method does not use given masks.
    settings : BrainExtractionSettings
    """
    if settings.method == "given" and given is None:
        raise UserError(
            "no brain mask is given, but brain_extraction.method requires one; name it in column brain_mask"
        )
    if given is not None and settings.method in ("auto", "given") and not _plausible_volume(given, settings):
        raise UserError(
            f"the given brain mask holds {_volume_ml(given):.0f} ml, expected {_expected(settings)}; give another in "
            "column brain_mask, or leave the column empty"
        )


def is_stripped(t1w: Volume, settings: BrainExtractionSettings) -> bool:
    """Whether a scan shows a single object with the volume of a brain on an empty background."""
    shown = _foreground(t1w)
    around = ~np.asarray(ndimage.binary_dilation(shown.voxels, iterations=2), bool)
    # Interpolation leaves a faint rim around a stripped brain; a scanner leaves noise everywhere.
    empty = np.abs(t1w.voxels[around] - _background(t1w)) <= 1e-3 * np.abs(t1w.voxels).max()
    return _plausible_volume(shown, settings) and bool(around.any()) and float(empty.mean()) > 0.98


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A mask, the reason to reject it if any, and the fit of the template's brain to it if computed."""

    method: str
    mask: Volume
    problem: str | None
    fit: TemplateFit | None = None
    overlap: float = 0.0


def _candidates(t1w: Volume, settings: BrainExtractionSettings, seed: int) -> Iterator[_Candidate]:
    """Yield candidates from the fastest method to the last resort; each is computed on demand."""
    if settings.method in ("auto", "deepbet"):
        found = _checked("deepbet", t1w, _deepbet_in_place(t1w), settings)
        if found.problem is None and found.fit is not None and _uncertain(found, t1w):
            upright = _checked(_UPRIGHT, t1w, _deepbet_upright(t1w, found.fit), settings)
            found = max(found, upright, key=lambda candidate: candidate.overlap)
        yield found
        yield _checked(_UPRIGHT, t1w, _deepbet_upright(t1w, fit_head(t1w, seed=seed)), settings)
    if settings.method == "hdbet":
        yield _checked("hdbet", t1w, hdbet(t1w), settings)
    if settings.method == "command":
        yield _checked("command", t1w, by_command(t1w, settings.command), settings)
    if settings.method in ("auto", "template"):
        yield _checked("template", t1w, mask_from_template(t1w, seed=seed), settings)


def _uncertain(found: _Candidate, t1w: Volume) -> bool:
    tilted = found.fit is not None and found.fit.tilt_degrees(t1w.grid) > _USUAL_TILT_DEGREES
    return found.overlap < _SURE_OVERLAP or tilted


def _checked(method: str, t1w: Volume, mask: Volume, settings: BrainExtractionSettings) -> _Candidate:
    if not _plausible_volume(mask, settings):
        problem = f"found {_volume_ml(mask):.0f} ml, expected {_expected(settings)}"
        return _Candidate(method, mask, problem)
    cleaned = _cleaned(mask)
    share = float((cleaned.voxels & mask.voxels).sum() / mask.voxels.sum())
    if share < _SMALLEST_PIECE:
        problem = f"found several pieces, the largest with {share:.0%} of the volume, expected one brain"
        return _Candidate(method, mask, problem)
    fit = fit_template(t1w, cleaned)
    overlap = fit.overlap_with(cleaned)
    problem = None
    if overlap < _SMALLEST_OVERLAP:
        problem = (
            f"found a mask that overlaps the template's brain with Dice {overlap:.2f}, expected at least "
            f"{_SMALLEST_OVERLAP:g}"
        )
    return _Candidate(method, cleaned, problem, fit, overlap)


def _volume_ml(mask: Volume) -> float:
    return float(mask.voxels.sum() * mask.grid.voxel_volume_mm3 / 1000)


def _plausible_volume(mask: Volume, settings: BrainExtractionSettings) -> bool:
    return settings.smallest_ml <= _volume_ml(mask) <= settings.largest_ml


def _expected(settings: BrainExtractionSettings) -> str:
    return f"{settings.smallest_ml:.0f}-{settings.largest_ml:.0f} ml"


def _accepted(mask: Volume, method: str, settings: BrainExtractionSettings) -> BrainExtraction:
    """Accept a mask of a skull-stripped scan after checking its volume only."""
    if _plausible_volume(mask, settings):
        return BrainExtraction(mask, method)
    raise UserError(
        f"brain extraction ({method}) found {_volume_ml(mask):.0f} ml, expected {_expected(settings)}; give a mask in "
        "column brain_mask"
    )


def _background(t1w: Volume) -> float:
    """Return the most frequent value on the faces of the scan."""
    faces = [np.take(t1w.voxels, end, axis).ravel() for axis in range(3) for end in (0, -1)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    return float(values[counts.argmax()])


def _foreground(t1w: Volume) -> Volume:
    """Return the largest object that differs from the background, with holes filled."""
    level = _background(t1w)
    shown = t1w.voxels > level + 0.01 * (np.percentile(t1w.voxels, 99.5) - level)
    return _cleaned(t1w.with_voxels(np.asarray(ndimage.binary_opening(shown))))


def _cleaned(mask: Volume) -> Volume:
    """Return the largest connected component, with holes filled."""
    return mask.with_voxels(np.asarray(ndimage.binary_fill_holes(largest_component(mask.voxels))))


def _deepbet_in_place(t1w: Volume) -> Volume:
    """Run deepbet on the scan as it is; thick slices are first interpolated to thin ones, as deepbet repeats slices."""
    thin = refined(t1w, _COPY_SPACING_MM)
    found = deepbet(thin)
    return found if thin is t1w else resample(found, t1w.grid, sitk.Transform(3, sitk.sitkIdentity), "linear")


def _deepbet_upright(t1w: Volume, fit: TemplateFit) -> Volume:
    """Run deepbet on an upright copy without the neck, and resample the mask to the grid of the scan."""
    unmoved = sitk.Transform(3, sitk.sitkIdentity)
    upright = fit.upright_grid(_COPY_SPACING_MM)
    found = deepbet(resample(blurred_for(t1w, _COPY_SPACING_MM), upright, unmoved, "linear"))
    share = blurred_for(found.with_voxels(found.voxels.astype(np.float32)), float(t1w.grid.spacing_mm.min()))
    return t1w.with_voxels(resample(share, t1w.grid, unmoved, "linear").voxels >= 0.5)
