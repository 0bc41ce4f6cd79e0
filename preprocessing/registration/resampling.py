"""Resampling with SimpleITK: conversion, orientation, and interpolation between grids.

ITK uses LPS millimetres and (Z, Y, X) arrays; only the modules of this folder use these conventions. Images are passed
to ITK as arrays: ITK never opens a user's file.
"""

from typing import Literal, cast

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.affines import from_matvec
from scipy import ndimage

from ...data_manifests.images.volume import Grid, Volume

Interpolation = Literal["linear", "nearest", "bspline", "volume"]

LPS = np.diag([-1.0, -1.0, 1.0])
"""Converts RAS vectors to LPS and back."""

_INTERPOLATORS = {"linear": sitk.sitkLinear, "bspline": sitk.sitkBSpline3}


def to_itk(volume: Volume) -> sitk.Image:
    """Convert a volume to a SimpleITK image; booleans to uint8, other types to float32."""
    return _placed(volume.voxels.astype(np.uint8 if volume.voxels.dtype == bool else np.float32), volume.grid)


def _placed(voxels: np.ndarray, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    place_itk(image, grid)
    return image


def place_itk(image: sitk.Image, grid: Grid) -> None:
    """Set the geometry of an ITK image to that of a grid."""
    origin, spacing, direction = itk_geometry(grid)
    image.SetOrigin(origin.tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())


def itk_geometry(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Origin (3,), spacing (3,) and direction (3, 3) of a grid, in LPS millimetres."""
    return LPS @ grid.affine[:3, 3], grid.spacing_mm, LPS @ grid.affine[:3, :3] / grid.spacing_mm


def itk_affine(affine: np.ndarray) -> sitk.AffineTransform:
    """Convert a (4, 4) affine of RAS points to an ITK transform of LPS points."""
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((LPS @ affine[:3, :3] @ LPS).ravel().tolist())
    transform.SetTranslation((LPS @ affine[:3, 3]).tolist())
    return transform


def ras_affine(transform: sitk.Transform) -> np.ndarray:
    """Convert a linear ITK transform of LPS points to a (4, 4) affine of RAS points; inverse of `itk_affine`."""
    points = np.vstack([np.zeros(3), LPS])
    origin, *axes = (np.array(transform.TransformPoint(point.tolist())) @ LPS for point in points)
    affine = np.eye(4)
    affine[:3] = np.column_stack([*(axis - origin for axis in axes), origin])
    return affine


def itk_displacements(displacements: np.ndarray, grid: Grid) -> sitk.Image:
    """Convert RAS displacements on a grid, (X, Y, Z, 3), to an ITK image of LPS vectors."""
    field = sitk.GetImageFromArray((displacements.astype(np.float64) @ LPS).transpose(2, 1, 0, 3), isVector=True)
    place_itk(field, grid)
    return field


def canonical(volume: Volume) -> Volume:
    """Flip and permute the axes to RAS order, without changing values.

    Oblique scans stay oblique: each axis is assigned to its nearest anatomical direction.
    """
    to_ras = nib.orientations.io_orientation(volume.affine)
    voxels = np.ascontiguousarray(nib.orientations.apply_orientation(volume.voxels, to_ras))
    affine = volume.affine @ nib.orientations.inv_ornt_aff(to_ras, volume.grid.size_vox)
    return Volume(voxels, Grid(voxels.shape, affine, volume.grid.qform_code, volume.grid.sform_code))


def reoriented_like(volume: Volume, grid: Grid) -> Volume:
    """Undo `canonical`: flip and permute the axes back to those of the original grid."""
    back = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(volume.affine), nib.orientations.io_orientation(grid.affine)
    )
    return Volume(np.ascontiguousarray(nib.orientations.apply_orientation(volume.voxels, back)), grid)


def resample(volume: Volume, grid: Grid, transform: sitk.Transform, interpolation: Interpolation) -> Volume:
    """Interpolate a volume once onto another grid.

    Parameters
    ----------
    volume : Volume
        bool, or values that fit float32; any type for "nearest".
    grid : Grid
    transform : SimpleITK.Transform
        Maps points of `grid` to points of `volume` (LPS mm).
    interpolation : {"linear", "nearest", "bspline", "volume"}
        "bspline" is cubic, with overshoots clipped to the range of the input. A mask is True where its interpolated
        value is at least one half. "volume", for lesion masks, preserves the volume of each connected part: its voxels
        with the greatest interpolated values are True. (With a threshold of one half, thin lesions of 1 ml lose up to a
        fifth of their volume; with nearest neighbours the volume varies by 5 %.)

    Returns
    -------
    Volume
        float32, bool for a bool input, the type of `volume` for "nearest"; 0 outside the field of view of `volume`.
    """
    if interpolation == "nearest":
        return _nearest(volume, grid, transform)
    is_mask = volume.voxels.dtype == bool
    if is_mask:
        volume = volume.with_voxels(volume.voxels.astype(np.float32))
    if interpolation == "volume":
        if not is_mask:
            raise ValueError('interpolation "volume" requires a mask')
        fine = blurred_for(volume, float(grid.spacing_mm.min()))
        values = resample(fine, grid, transform, "linear")
        return _most_of_each_part(values, _shares(fine, values, transform))
    voxels = _resampled(to_itk(volume), grid, transform, _INTERPOLATORS[interpolation])
    if is_mask:
        return Volume(np.ascontiguousarray(voxels >= 0.5), grid)
    if interpolation == "bspline":
        voxels = np.clip(voxels, min(0.0, float(volume.voxels.min())), max(0.0, float(volume.voxels.max())))
    return Volume(np.ascontiguousarray(voxels), grid)


def _nearest(volume: Volume, grid: Grid, transform: sitk.Transform) -> Volume:
    """Interpolate voxel numbers with ITK and look the values up, as the values may not be exact as floats."""
    numbers = np.arange(1, volume.voxels.size + 1, dtype=np.int32).reshape(volume.grid.size_vox)
    nearest = _resampled(_placed(numbers, volume.grid), grid, transform, sitk.sitkNearestNeighbor)
    values = np.concatenate([np.zeros(1, volume.voxels.dtype), volume.voxels.ravel()])
    return Volume(np.ascontiguousarray(values[nearest]), grid)


def _resampled(image: sitk.Image, grid: Grid, transform: sitk.Transform, interpolator: int) -> np.ndarray:
    """Resample an ITK image to a grid: array (X, Y, Z), 0 outside the field of view of the image."""
    resampler = sitk.ResampleImageFilter()
    resampler.SetNumberOfThreads(1)
    origin, spacing, direction = itk_geometry(grid)
    resampler.SetSize([int(n) for n in grid.size_vox])
    resampler.SetOutputOrigin(origin.tolist())
    resampler.SetOutputSpacing(spacing.tolist())
    resampler.SetOutputDirection(direction.ravel().tolist())
    resampler.SetInterpolator(interpolator)
    resampler.SetTransform(transform)
    return sitk.GetArrayFromImage(resampler.Execute(image)).transpose(2, 1, 0)


def _shares(mask: Volume, values: Volume, transform: sitk.Transform) -> np.ndarray:
    """Share of each voxel that a float mask covers: the mean over eight points in the voxel."""
    shares = values.voxels.copy()
    if not shares.any():
        return shares
    box = bounding_box(shares > 0, 1)
    x, y, z = shares[box].shape
    halved = from_matvec(np.eye(3) / 2, np.array([part.start for part in box]) - 0.25)
    points = resample(mask, Grid((2 * x, 2 * y, 2 * z), values.affine @ halved), transform, "linear").voxels
    shares[box] = points.reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5))
    return shares


def _most_of_each_part(values: Volume, shares: np.ndarray) -> Volume:
    """Mask with the greatest values of each connected part, as many voxels as the sum of its shares."""
    labels, number = cast(tuple[np.ndarray, int], ndimage.label(values.voxels > 0, np.ones((3, 3, 3))))
    wanted = np.rint(np.bincount(labels.ravel(), _shares_with_rim(shares, labels > 0).ravel(), number + 1))
    # A part may need neighbouring voxels with an interpolated value of 0.
    labels = np.where(labels > 0, labels, ndimage.maximum_filter(labels, 3))
    inside = np.flatnonzero(labels)
    part, value = labels.ravel()[inside], values.voxels.ravel()[inside]
    order = np.lexsort((-value, part))
    part = part[order]
    rank = np.arange(len(part)) - np.searchsorted(part, part)
    mask = np.zeros(shares.shape, bool)
    mask.ravel()[inside[order][rank < wanted[part]]] = True
    return values.with_voxels(mask)


def _shares_with_rim(shares: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """Shares of the reached voxels, plus the shares of unreached voxels divided among their reached neighbours.

    Each reached neighbour gets an equal part: an unreached voxel between two lesions counts half for each.
    """
    neighbours = _neighbour_sum(reached.astype(np.float32))
    distributed = np.where(~reached & (neighbours > 0.5), shares / np.maximum(neighbours, 1), 0)
    return np.where(reached, shares + _neighbour_sum(distributed), 0)


def _neighbour_sum(values: np.ndarray) -> np.ndarray:
    """Sum over a voxel and its 26 neighbours, with 0 outside the image."""
    return 27 * np.asarray(ndimage.uniform_filter(values, 3, mode="constant"))


def continued_outwards(image: Volume, mask: Volume, reach_mm: float) -> Volume:
    """Fill a margin around the mask with the nearest value inside it, and set voxels beyond the margin to 0.

    Interpolation then mixes neither skull nor background into the brain's edge, so scans with and without a skull give
    the same result.
    """
    spacing = image.grid.spacing_mm
    box = bounding_box(mask.voxels, np.ceil(reach_mm / spacing).astype(int) + 1)
    inside = mask.voxels[box]
    distance, nearest = cast(
        tuple[np.ndarray, np.ndarray],
        ndimage.distance_transform_edt(~inside, sampling=spacing, return_indices=True),
    )
    filled = image.voxels[box][tuple(nearest)]
    voxels = np.zeros_like(image.voxels)
    voxels[box] = np.where(distance <= reach_mm, filled, 0)
    return image.with_voxels(voxels)


def blurred_for(volume: Volume, spacing_mm: float) -> Volume:
    """Smooth a volume before downsampling to a coarser grid, which averages noise and avoids aliasing.

    The width of the Gaussian is chosen for each axis (FWHM^2 = target^2 - source^2); axes that are not finer than the
    target are not smoothed.
    """
    missing = np.maximum(spacing_mm**2 - volume.grid.spacing_mm**2, 0)
    sigma_mm = np.sqrt(missing) / (2 * np.sqrt(2 * np.log(2)))
    sigma_mm[sigma_mm < 0.1 * spacing_mm] = 0
    if not sigma_mm.any():
        return volume
    return volume.with_voxels(ndimage.gaussian_filter(volume.voxels, sigma_mm / volume.grid.spacing_mm, truncate=3.0))


def coarsened(volume: Volume, spacing_mm: float) -> Volume:
    """Downsample a volume along its axes to about this spacing; coarser volumes are returned unchanged."""
    size, spacing = np.array(volume.grid.size_vox), volume.grid.spacing_mm
    step = np.maximum(spacing_mm / spacing, 1.0)
    if (step < 1.25).all():
        return volume
    affine = volume.affine @ np.diag([*step, 1.0])
    x, y, z = (int(n) for n in np.floor((size - 1) / step) + 1)
    return resample(
        blurred_for(volume, spacing_mm), Grid((x, y, z), affine), sitk.Transform(3, sitk.sitkIdentity), "linear"
    )


def refined(volume: Volume, spacing_mm: float) -> Volume:
    """Interpolate thick slices to thin ones by cubic splines.

    The new spacing is that of the finest axis, but at least `spacing_mm`. Scans with slices at most twice as thick are
    returned unchanged.
    """
    spacing = volume.grid.spacing_mm
    step = np.maximum(spacing / max(float(spacing.min()), spacing_mm), 1.0)
    if (step <= 2).all():
        return volume
    x, y, z = (int(n) for n in np.ceil((np.array(volume.grid.size_vox) - 1) * step - 1e-6) + 1)
    grid = Grid((x, y, z), volume.affine @ np.diag([*1 / step, 1.0]))
    return resample(volume, grid, sitk.Transform(3, sitk.sitkIdentity), "bspline")


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Largest face-connected component of a mask, (X, Y, Z) bool; empty for an empty mask."""
    labels, _ = cast(tuple[np.ndarray, int], ndimage.label(mask))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return mask & (labels == sizes.argmax())


def bounding_box(mask: np.ndarray, margin_vox: np.ndarray | int = 0) -> tuple[slice, slice, slice]:
    """Bounding box of a non-empty mask as slices, with a margin clipped at the borders."""
    slices = []
    for axis, margin in enumerate(np.broadcast_to(margin_vox, 3)):
        present = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        slices.append(slice(max(0, int(present[0] - margin)), int(present[-1] + margin) + 1))
    return slices[0], slices[1], slices[2]
