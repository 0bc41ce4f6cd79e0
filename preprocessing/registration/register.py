"""Registration of a subject to the template.

ANTs registers two brains by an affine and a diffeomorphism (SyN: Avants et al., "Symmetric diffeomorphic image
registration with cross-correlation", Med Image Anal 12, 2008; here with mutual information). The result is a
`TemplateTransform`.

ANTs is bit-reproducible only with a fixed seed and one thread, and reads both from the environment. The number of
threads is read once per process, when ITK first computes: if the process has used ANTs before this module, the earlier
number stays in effect.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ...data_manifests.errors import UserError
from ...data_manifests.images.volume import Grid, Volume
from ..settings import RegistrationSettings
from .resampling import LPS, coarsened, itk_geometry, resample
from .template import Template
from .template_transform import JacobianRange, TemplateTransform, in_steps, jacobian_of

LESION_RIM_MM = 3.0
"""Margin around excluded lesions: tissue near a lesion is often abnormal, and gradients extend over its border."""


def register_to_template(
    t1w: Volume,
    brain_mask: Volume,
    template: Template,
    settings: RegistrationSettings,
    *,
    seed: int,
    lesion_mask: Volume | None = None,
) -> TemplateTransform:
    """Register a brain to the template's brain.

    Parameters
    ----------
    t1w : Volume
        Bias-corrected.
    brain_mask : Volume, bool
        On the grid of `t1w`; voxels outside are set to 0.
    template : Template
        Template at ``settings.working_spacing_mm``.
    settings : RegistrationSettings
    seed : int
        The same seed and inputs give bit-identical results.
    lesion_mask : Volume, bool, optional
        On the grid of `t1w`: voxels to exclude from the metric, dilated by `LESION_RIM_MM` (Brett et al., "Spatial
        normalization of brain images with focal lesions using cost function masking", NeuroImage 14, 2001).

    Raises
    ------
    UserError
        ANTs returned no transform. The quality of the result is not checked here but by `measure_quality`.
    """
    if settings.transform == "none":
        return TemplateTransform.from_affine(np.eye(4))
    brain = t1w.with_voxels(winsorised(t1w.voxels, brain_mask.voxels))
    moving = coarsened(brain, settings.working_spacing_mm)
    metric_mask = None
    if lesion_mask is not None and lesion_mask.voxels.any():
        metric_mask = _without_lesion(lesion_mask, moving.grid)
    return _register(moving, metric_mask, template, settings, seed)


def affine_registration(
    fixed: Volume, moving: Volume, *, shift: np.ndarray, seed: int, fixed_mask: Volume
) -> np.ndarray:
    """Register by a rigid and then an affine transform, with the metric restricted to a mask.

    Parameters
    ----------
    fixed, moving : Volume
    shift : ndarray, (3,)
        Start: approximate translation from `fixed` to `moving`, RAS mm.
    seed : int
    fixed_mask : Volume, bool

    Returns
    -------
    ndarray, (4, 4)
        Maps fixed RAS mm to moving RAS mm.
    """
    with _repeatable(seed), tempfile.TemporaryDirectory(prefix="voxout-") as folder:
        import ants

        step = ants.create_ants_transform(
            transform_type="Euler3DTransform", translation=(LPS @ shift).tolist(), dimension=3
        )
        last = f"{folder}/start.mat"
        ants.write_transform(step, last)
        for kind in ("Rigid", "Affine"):
            [last] = _run_ants(
                _to_ants(fixed),
                _to_ants(moving),
                kind,
                f"{folder}/{kind}",
                initial_transform=[last],
                mask=_to_ants(fixed_mask),
                mask_all_stages=True,
                aff_random_sampling_rate=1.0,
            )["fwdtransforms"]
        return _ants_affine(ants.read_transform(last))


def winsorised(voxels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Scale the 99.5th percentile inside the mask to 1 and clip at it; 0 outside.

    Otherwise a few bright vessels would widen the histogram bins of the mutual information.
    """
    high = np.percentile(voxels[inside], 99.5) if inside.any() else 1.0
    return np.where(inside, np.clip(voxels / max(high, 1e-12), 0, 1), 0).astype(np.float32)


def _without_lesion(lesion_mask: Volume, grid: Grid) -> Volume:
    """Mask of all voxels outside a lesion and its margin, on another grid of the same space."""
    spacing = lesion_mask.grid.spacing_mm
    distance = ndimage.distance_transform_edt(~lesion_mask.voxels, sampling=spacing)
    near = lesion_mask.with_voxels(np.asarray(distance) <= LESION_RIM_MM)
    excluded = resample(near, grid, sitk.Transform(3, sitk.sitkIdentity), "linear")
    return excluded.with_voxels(~excluded.voxels)


def _register(
    moving: Volume, metric_mask: Volume | None, template: Template, settings: RegistrationSettings, seed: int
) -> TemplateTransform:
    with _repeatable(seed), tempfile.TemporaryDirectory(prefix="voxout-") as folder:
        import ants  # A slow import, not needed to apply transforms.

        kind = settings.transform
        result = _run_ants(
            _to_ants(template.t1w),
            _to_ants(moving),
            "SyN" if kind == "syn" else "Affine",
            f"{folder}/",
            total_sigma=settings.stiffness,
            moving_mask=metric_mask and _to_ants(metric_mask),
            mask_all_stages=True,
        )
        files = result["fwdtransforms"]
        affine = _ants_affine(ants.read_transform(files[-1]))
        if kind != "syn":
            return TemplateTransform.from_affine(affine)
        inverse_file = next(name for name in result["invtransforms"] if name.endswith("InverseWarp.nii.gz"))
        warp, inverse_warp = (in_steps(ants.image_read(file).numpy() @ LPS) for file in (files[0], inverse_file))
    jacobian = jacobian_range(warp, template)
    return TemplateTransform(affine, warp, inverse_warp, template.grid, jacobian)


def _run_ants(fixed, moving, kind: str, prefix: str, **options) -> dict[str, list[str]]:
    import ants

    try:
        result = ants.registration(fixed, moving, kind, outprefix=prefix, **options)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            "registration to the template stopped without a result; check the scan and its brain mask"
        ) from error
    # ANTs returns an empty list without an error if it could not write.
    files = result["fwdtransforms"]
    if len(files) != (2 if kind == "SyN" else 1) or not all(Path(file).exists() for file in files):
        raise UserError(
            "registration to the template wrote no transform; check that the temporary folder is writable and has "
            "free space"
        )
    return result


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    # With seed 0, ANTs would take a seed from the clock.
    wanted = {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "ANTS_RANDOM_SEED": str(seed % 2**31 or 1)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _to_ants(volume: Volume):
    import ants

    origin, spacing, direction = itk_geometry(volume.grid)
    return ants.from_numpy(
        volume.voxels.astype(np.float32), origin=origin.tolist(), spacing=spacing.tolist(), direction=direction
    )


def _ants_affine(transform) -> np.ndarray:
    parameters, centre = np.asarray(transform.parameters), np.asarray(transform.fixed_parameters)
    affine = np.eye(4)
    matrix = parameters[:9].reshape(3, 3)
    affine[:3, :3] = LPS @ matrix @ LPS
    affine[:3, 3] = LPS @ (parameters[9:] + centre - matrix @ centre)
    return affine


def jacobian_range(warp: np.ndarray, template: Template) -> JacobianRange:
    """Jacobian range of a warp on the template's grid, inside the template's brain."""
    inside = jacobian_of(warp, template.grid)[template.brain_mask.voxels]
    low, high = np.percentile(inside, [1, 99])
    return JacobianRange(float(inside.min()), float(low), float(high))
