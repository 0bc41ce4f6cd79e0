"""Brain mask without a network: the template's mask, registered to a whole head.

The template has no skull. A simple head is modelled around it: a dark shell for skull and fluid, a bright shell for
scalp, and empty air. Without it, the affine registration of a head to a bare brain diverges in scale.
"""

import numpy as np
from scipy import ndimage

from ...data_manifests.errors import UserError
from ...data_manifests.images.volume import Grid, Volume
from ..registration.register import affine_registration, winsorised
from ..registration.resampling import coarsened, largest_component
from ..registration.template import Template, load_template
from ..registration.template_transform import TemplateTransform
from .head_pose import TemplateFit

_SPACING_MM = 4.0
_SKULL_MM, _SCALP_MM, _AIR_MM = 9.0, 16.0, 40.0
_BASE_MM = -35.0
"""Template z below which heads consist of face and neck, which the model lacks."""
_HEAD_DEPTH_MM = 150.0
"""Approximate extent of the model from the crown down."""


def mask_from_template(t1w: Volume, *, seed: int) -> Volume:
    """Register the head model to a T1w and transform the template's brain mask to it.

    Approximate (Dice 0.93 to 0.96 with careful masks on whole heads); takes a few seconds.

    Parameters
    ----------
    t1w : Volume
        A whole head, axes towards right, anterior, superior.
    seed : int

    Raises
    ------
    UserError
        The scan shows no head, or ANTs returned no transform.
    """
    mask = load_template(2.0).brain_mask
    fit = fit_head(t1w, seed=seed)
    return TemplateTransform.from_affine(fit.affine).to_native(mask, t1w.grid, interpolation="linear")


def fit_head(t1w: Volume, *, seed: int) -> TemplateFit:
    """Fit the template's brain to a whole head without a mask; parameters as `mask_from_template`."""
    template = load_template(_SPACING_MM)
    model, near = _head_model(template)
    head = t1w.with_voxels(winsorised(t1w.voxels, t1w.voxels > 0))
    shift = _head_top(head) - _template_top(template)
    return TemplateFit(
        affine_registration(model, coarsened(head, _SPACING_MM), shift=shift, seed=seed, fixed_mask=near)
    )


def _head_model(template: Template) -> tuple[Volume, Volume]:
    spacing = float(template.grid.spacing_mm[0])
    room = int(np.ceil(24 / spacing))
    brain = np.pad(template.brain_mask.voxels, room)
    affine = template.grid.affine.copy()
    affine[:3, 3] -= room * spacing
    grid = Grid(brain.shape, affine)
    distance = np.asarray(ndimage.distance_transform_edt(~brain, sampling=spacing))
    shells = np.select([distance <= _SKULL_MM, distance <= _SCALP_MM], [0.1, 0.8], 0.0)
    head = np.where(brain, np.pad(template.t1w.voxels, room), shells)
    height = affine[2, 3] + spacing * np.arange(brain.shape[2])
    near = brain | ((distance < _AIR_MM) & (height > _BASE_MM))
    return Volume(head.astype(np.float32), grid), Volume(near, grid)


def _template_top(template: Template) -> np.ndarray:
    indices = np.nonzero(template.brain_mask.voxels)
    middle = [(axis.min() + axis.max()) / 2 for axis in indices]
    top = [*middle[:2], indices[2].max()]
    return (template.grid.affine @ [*top, 1])[:3] + np.array([0, 0, _SCALP_MM])


def _head_top(head: Volume) -> np.ndarray:
    """Crown above the centre of the upper head, RAS mm."""
    shown = largest_component(np.asarray(ndimage.binary_opening(head.voxels > 0.15, iterations=2)))
    if not shown.any():
        raise UserError("the T1w shows no head, expected a bright object on a dark background; check the scan")
    crown = np.nonzero(shown.any((0, 1)))[0].max()
    shown[:, :, : max(0, crown - int(_HEAD_DEPTH_MM / head.grid.spacing_mm[2]))] = False
    middle = [(axis.min() + axis.max()) / 2 for axis in np.nonzero(shown)[:2]]
    return (head.affine @ [*middle, crown, 1])[:3]
