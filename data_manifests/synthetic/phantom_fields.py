"""Random variation between phantoms: smooth noise, head shape and scanner grid."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..images.grid import Grid

# The brain volume is 1880 ml in the template and about 1500 ml in participants.
_USUAL_SIZE = 0.93
_WARP_SPACING_MM = 8.0
_WARP_SCALES_MM = ((40.0, 3.5), (20.0, 2.0), (10.0, 0.9))
"""Smoothness (sigma) and strength (standard deviation) of the components of a random warp."""
_STEEPEST = 0.8
"""Largest Frobenius norm of the derivative of a displacement. Below 1 the warp is one to one, without folds."""
_ORIENTATIONS = ("PSR", "LAS", "LPS", "PIR", "RSP", "SAL")


@dataclass(frozen=True)
class Warp:
    """Mapping from native to template millimetres: an affine map followed by a smooth displacement.

    Attributes
    ----------
    affine : ndarray, (4, 4)
        Native RAS+ millimetres to template millimetres.
    displacement_mm : ndarray, (3, X, Y, Z)
        Added after the affine map, on `grid` in template space.
    grid : Grid
    """

    affine: np.ndarray
    displacement_mm: np.ndarray
    grid: Grid

    def __call__(self, points_mm: np.ndarray) -> np.ndarray:
        """Map points, (3, ...), from native to template millimetres."""
        placed = apply_affine(self.affine, points_mm)
        index = apply_affine(np.linalg.inv(self.grid.affine), placed)
        for axis in range(3):
            placed[axis] += ndimage.map_coordinates(self.displacement_mm[axis], index, order=1, mode="nearest")
        return placed


def smooth_noise(
    size_vox: tuple[int, ...], sigma_vox: float | tuple[float, ...], rng: np.random.Generator
) -> np.ndarray:
    """Return float32 noise of mean 0 and standard deviation 1, smoothed by a Gaussian of `sigma_vox`."""
    noise = ndimage.gaussian_filter(rng.standard_normal(size_vox, dtype=np.float32), sigma_vox, truncate=3, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def random_warp(rng: np.random.Generator) -> Warp:
    """Draw a head shape: size within 5 %, rotation within 5 degrees, shift within 5 mm, and smooth warps.

    All heads have the same asymmetry: the right frontal and the left occipital pole protrude, and the left occipital
    horn is wider.
    """
    sizes = _USUAL_SIZE * (1 + rng.uniform(-0.035, 0.035) + rng.uniform(-0.015, 0.015, 3))
    own = np.eye(4)
    own[:3, :3] = _rotation(rng.uniform(-5, 5, 3)) @ np.diag(sizes)
    own[:3, 3] = rng.uniform(-5, 5, 3)

    lowest, highest = np.array([-120.0, -160.0, -200.0]), np.array([120.0, 150.0, 120.0])
    nx, ny, nz = (int(n) for n in np.ceil((highest - lowest) / _WARP_SPACING_MM) + 1)
    size_vox = (nx, ny, nz)
    affine = np.diag([_WARP_SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = lowest
    displacement = np.zeros((3, *size_vox), dtype=np.float32)
    for smooth_mm, strength_mm in _WARP_SCALES_MM:
        for axis in range(3):
            displacement[axis] += strength_mm * smooth_noise(size_vox, smooth_mm / _WARP_SPACING_MM, rng)

    points = apply_affine(affine, np.indices(size_vox, dtype=np.float32))

    def near(centre, sigma_mm):
        offset = points - np.reshape(centre, (3, 1, 1, 1))
        return offset, np.exp(-0.5 * (offset**2).sum(axis=0) / sigma_mm**2)

    # The warp maps native to template points: to protrude, a point must map further inwards.
    displacement[1] -= 5 * near((30, 65, 5), 22)[1]
    displacement[1] += 6 * near((-28, -95, 5), 22)[1]
    offset, weight = near((-26, -60, 8), 12)
    displacement -= 0.35 * offset * weight

    displacement *= min(1.0, _STEEPEST / _steepest_slope(displacement))
    return Warp(np.linalg.inv(own), displacement, Grid(size_vox, affine))


def _steepest_slope(displacement_mm: np.ndarray) -> float:
    """Return a bound on the Frobenius norm of the derivative of a linearly interpolated displacement.

    Inside a cell of the grid each partial derivative is a mean of the differences along the cell's four edges.
    """
    squared = np.float32(0)
    for axis in range(3):
        edges = (np.diff(displacement_mm, axis=axis + 1) ** 2).sum(axis=0)
        for other in {0, 1, 2} - {axis}:
            edges = np.moveaxis(edges, other, 0)
            edges = np.moveaxis(np.maximum(edges[1:], edges[:-1]), 0, other)
        squared = squared + edges
    return float(np.sqrt(squared.max()) / _WARP_SPACING_MM)


def random_grid(rng: np.random.Generator, spacing_mm: float, view_mm: tuple[tuple[float, float], ...]) -> Grid:
    """Draw a grid whose stored order is not RAS, tilted by up to 4 degrees per axis.

    Parameters
    ----------
    rng : Generator
    spacing_mm : float
    view_mm : three pairs of float
        Limits along x, y and z before the tilt, RAS+ millimetres.
    """
    lows, highs = np.array(view_mm, dtype=float).T
    size = np.ceil((highs - lows) / spacing_mm).astype(int)
    straight = np.diag([spacing_mm] * 3 + [1.0])
    straight[:3, 3] = (lows + highs) / 2 - spacing_mm * (size - 1) / 2
    tilt = np.eye(4)
    tilt[:3, :3] = _rotation(rng.uniform(-4, 4, 3))
    grid = Grid((int(size[0]), int(size[1]), int(size[2])), tilt @ straight)
    return _stored_as(_ORIENTATIONS[rng.integers(len(_ORIENTATIONS))], grid)


def _stored_as(orientation: str, grid: Grid) -> Grid:
    """Return the grid with its axes in another order and direction; the input is near RAS order."""
    axes = [next(i for i, ends in enumerate(("RL", "AP", "SI")) if letter in ends) for letter in orientation]
    reorder = np.zeros((4, 4))
    reorder[3, 3] = 1
    for stored, (axis, letter) in enumerate(zip(axes, orientation, strict=True)):
        forwards = letter in "RAS"
        reorder[axis, stored] = 1 if forwards else -1
        reorder[axis, 3] = 0 if forwards else grid.size_vox[axis] - 1
    x, y, z = (grid.size_vox[axis] for axis in axes)
    return Grid((x, y, z), grid.affine @ reorder)


def apply_affine(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply an affine map to points, (3, ...); return a new float32 array."""
    out = np.empty(points.shape, dtype=np.float32)
    for row in range(3):
        a, b, c, shift = (np.float32(v) for v in affine[row])
        out[row] = a * points[0] + b * points[1] + c * points[2] + shift
    return out


def _rotation(degrees: np.ndarray) -> np.ndarray:
    turned = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        one = np.eye(3)
        a, b = [i for i in range(3) if i != axis]
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        turned = one @ turned
    return turned
