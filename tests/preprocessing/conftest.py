"""Fixtures for the preprocessing tests: a small asymmetric brain and geometric helpers."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.preprocessing.registration.template import load_template
from voxout.preprocessing.registration.template_transform import TemplateTransform


def turned(degrees: float, shift_mm=(0.0, 0.0, 0.0), scale: float = 1.0) -> np.ndarray:
    """Affine (4, 4) with a rotation about z and x, a translation and a scale."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = scale * np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine[:3, 3] = shift_mm
    return affine


def small_brain(
    orientation: str = "RAS", degrees: float = 8.0, spacing_mm: float = 4.0, bend_mm: float = 0.0
) -> tuple[Volume, np.ndarray]:
    """The template's brain with a bright ball on the left, moved by a known affine and stored in an orientation.

    With `bend_mm`, a wave-like warp of that amplitude is applied first.

    Returns
    -------
    Volume
    ndarray, (4, 4)
        The truth: template RAS mm to native RAS mm.
    """
    template = load_template(spacing_mm)
    voxels = template.t1w.voxels.copy()
    voxels[ball(template.grid, (-40, -20, 20), 12)] = 1.0
    truth = turned(degrees, (6.0, -9.0, 12.0), scale=0.93)
    oblique = turned(-5.0)
    size = (56, 64, 56)
    affine = oblique @ np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = truth[:3, 3] - affine[:3, :3] @ (np.array(size) / 2) + [0, -10, 10]
    wave = (bend_mm * np.sin(millimetres(template.grid)[..., [1, 2, 0]] / 16)).astype(np.float32)
    unwarped = TemplateTransform.from_affine(truth).jacobian_range
    bent = TemplateTransform(truth, -wave, wave, template.grid, unwarped)
    image = bent.to_native(template.t1w.with_voxels(voxels), Grid(size, affine), interpolation="linear")
    return stored_as(image, orientation), truth


def stored_as(volume: Volume, orientation: str) -> Volume:
    """The same scan with flipped and permuted axes."""
    change = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(volume.affine), nib.orientations.axcodes2ornt(tuple(orientation))
    )
    voxels = nib.orientations.apply_orientation(volume.voxels, change)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(change, volume.grid.size_vox)
    return Volume(np.ascontiguousarray(voxels), Grid(voxels.shape, affine))


def millimetres(grid: Grid) -> np.ndarray:
    """RAS coordinates of every voxel in mm, (X, Y, Z, 3)."""
    indices = np.moveaxis(np.indices(grid.size_vox), 0, -1)
    return indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def ball(grid: Grid, centre_mm, radius_mm: float) -> np.ndarray:
    """Mask of a ball, bool."""
    return np.linalg.norm(millimetres(grid) - np.array(centre_mm), axis=-1) <= radius_mm


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    return SimpleNamespace(
        turned=turned, small_brain=small_brain, stored_as=stored_as, millimetres=millimetres, ball=ball, dice=dice
    )


@pytest.fixture
def real(shared_data: Path) -> Callable[..., Path]:
    """Find a real scan by the parts of its path; skip the test if it is missing."""

    def find(*parts: str) -> Path:
        path = shared_data.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"no {'/'.join(parts)} in the shared data")
        return path

    return find
