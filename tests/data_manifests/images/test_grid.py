"""Tests of the grid geometry."""

import numpy as np
import pytest
from voxout.data_manifests.images.grid import Grid, max_corner_distance_mm

SIZE = (5, 6, 7)
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def rotation_matrix(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    rotation = np.eye(4)
    a, b = [i for i in range(3) if i != axis]
    rotation[a, a], rotation[a, b], rotation[b, a], rotation[b, b] = c, -s, s, c
    return rotation


def test_same_as():
    grid = Grid(SIZE, AFFINE)
    tilted = rotation_matrix(0.5, axis=2) @ AFFINE
    assert grid.same_as(Grid(SIZE, AFFINE + 1e-4))
    assert not grid.same_as(Grid(SIZE, tilted))
    for shift_mm, same in ((0.009, True), (0.011, False)):
        moved = AFFINE.copy()
        moved[1, 3] += shift_mm
        assert grid.same_as(Grid(SIZE, moved)) == same
    assert not grid.same_as(Grid((5, 6, 8), AFFINE))


def test_text_of_a_grid():
    assert str(Grid(SIZE, AFFINE @ np.diag([-1.0, 1, 1, 1]))) == "5x6x7 voxels of 1x1.5x2 mm, LAS"


def test_spacing_and_volume_are_independent_of_orientation():
    for affine in (AFFINE, rotation_matrix(33, axis=1) @ AFFINE, AFFINE @ np.diag([-1.0, 1, -1, 1])):
        np.testing.assert_allclose(Grid(SIZE, affine).spacing_mm, [1, 1.5, 2])
        assert Grid(SIZE, affine).voxel_volume_mm3 == pytest.approx(3)


def test_max_corner_distance():
    """A rotation by 90 degrees about the first voxel moves the corner (4, 5, 0) mm by sqrt(2) times its radius."""
    one, other = np.eye(4), rotation_matrix(90, axis=2)
    assert max_corner_distance_mm(one, other, (5, 6, 7)) == pytest.approx(np.sqrt(2) * np.hypot(4, 5))
