"""Finds a subject's way to the template.

ANTs registers two brains by an affine and a diffeomorphism (SyN: Avants et al., "Symmetric diffeomorphic image
registration with cross-correlation", Med Image Anal 12, 2008; here with mutual information). What comes out is a
`TemplateTransform`.

ANTs gives the same bits twice only with a seed and one thread, and takes both from the environment. The number of
threads is read once a process, at ITK's first work: a process that had ANTs compute before this module was asked keeps
the number it had.
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
from .template_transform import JacobianRange, TemplateTransform, in_steps

LESION_RIM_MM = 3.0
"""What surrounds a lesion is seldom untouched, and the metric looks at gradients, which reach over its border."""


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
        On the grid of `t1w`; what lies outside is set to 0.
    template : Template
        At ``settings.working_spacing_mm``.
    settings : RegistrationSettings
    seed : int
        The same seed and inputs give the same bits.
    lesion_mask : Volume, bool, optional
        On the grid of `t1w`: what the registration is not to look at (Brett et al., "Spatial normalization of brain
        images with focal lesions using cost function masking", NeuroImage 14, 2001). Dilated by `LESION_RIM_MM`.

    Raises
    ------
    UserError
        ANTs gave no transform. A bad one is not seen here: `measure_quality` judges it.
    """
    if settings.transform == "none":
        return TemplateTransform.from_affine(np.eye(4))
    brain = t1w.with_voxels(winsorised(t1w.voxels, brain_mask.voxels))
    moving = coarsened(brain, settings.working_spacing_mm)
    looked_at = None
    if lesion_mask is not None and lesion_mask.voxels.any():
        looked_at = _all_but(lesion_mask, moving.grid)
    return _register(moving, looked_at, template, settings, seed)


def affine_registration(
    fixed: Volume, moving: Volume, *, shift: np.ndarray, seed: int, fixed_mask: Volume
) -> np.ndarray:
    """Register by a rigid and then an affine transform, judged inside a mask only.

    Parameters
    ----------
    fixed, moving : Volume
    shift : ndarray, (3,)
        Where to start: RAS mm that take a point of `fixed` to about its place in `moving`.
    seed : int
    fixed_mask : Volume, bool

    Returns
    -------
    ndarray, (4, 4)
        Fixed RAS mm to moving RAS mm.
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
    """Scale the 99.5th percentile inside to 1 and clip there; 0 outside.

    A few bright vessels would otherwise stretch the bins of the mutual information.
    """
    high = np.percentile(voxels[inside], 99.5) if inside.any() else 1.0
    return np.where(inside, np.clip(voxels / max(high, 1e-12), 0, 1), 0).astype(np.float32)


def _all_but(lesion_mask: Volume, grid: Grid) -> Volume:
    """Where no lesion and no rim of one is, on another grid of the same space."""
    spacing = lesion_mask.grid.spacing_mm
    distance = ndimage.distance_transform_edt(~lesion_mask.voxels, sampling=spacing)
    near = lesion_mask.with_voxels(np.asarray(distance) <= LESION_RIM_MM)
    left_out = resample(near, grid, sitk.Transform(3, sitk.sitkIdentity), "linear")
    return left_out.with_voxels(~left_out.voxels)


def _register(
    moving: Volume, looked_at: Volume | None, template: Template, settings: RegistrationSettings, seed: int
) -> TemplateTransform:
    with _repeatable(seed), tempfile.TemporaryDirectory(prefix="voxout-") as folder:
        import ants  # Seconds long, and not needed by those who only apply transforms.

        kind = settings.transform
        result = _run_ants(
            _to_ants(template.t1w),
            _to_ants(moving),
            "SyN" if kind == "syn" else "Affine",
            f"{folder}/",
            total_sigma=settings.stiffness,
            moving_mask=looked_at and _to_ants(looked_at),
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
            "registration to the template stopped without a result; look at the scan and its brain mask"
        ) from error
    # ANTs reports success with an empty list where it could not write.
    files = result["fwdtransforms"]
    if len(files) != (2 if kind == "SyN" else 1) or not all(Path(file).exists() for file in files):
        raise UserError(
            "registration to the template left no transform behind; check that the temporary folder has room and can "
            "be written to"
        )
    return result


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    # ANTs would draw its seed from the clock for 0.
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
    """Of a warp on the template's own grid, inside its brain."""
    # The template grid's axes are those of RAS, so differences along them are derivatives to x, y and z.
    jacobian = np.empty((*warp.shape, 3))
    for axis, spacing in enumerate(template.grid.spacing_mm):
        jacobian[..., axis] = np.gradient(warp, spacing, axis=axis)
    jacobian += np.eye(3)
    inside = np.linalg.det(jacobian[template.brain_mask.voxels])
    low, high = np.percentile(inside, [1, 99])
    return JacobianRange(float(inside.min()), float(low), float(high))
