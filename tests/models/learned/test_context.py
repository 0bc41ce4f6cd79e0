"""Inputs of the learned scorer."""

import numpy as np
import pytest
from scipy import ndimage
from voxout.models.features.whitening import Whitening
from voxout.models.learned.context import Context
from voxout.models.learned.norm import Norm
from voxout.preprocessing.patches.voxel_mask import VoxelMask
from voxout.preprocessing.registration.template import load_template

TEMPLATE = load_template(6.0)
MASK = VoxelMask(TEMPLATE.grid, TEMPLATE.brain_mask.voxels)
BRAIN = np.ones(MASK.size, bool)
IMAGE = np.random.default_rng(9).random((MASK.size, 1), np.float32)
EACH, DIFFERENCES = 9, (6, 7, 8)
"""Inputs of each deviation, and the differences from the mirrored voxel among them."""


@pytest.fixture(scope="module")
def context():
    random = np.random.default_rng(0)
    mean, factors = random.random((MASK.size, 1), np.float32), 0.5 + random.random((MASK.size, 1), np.float32)
    return Context(MASK, Norm(Whitening(mean, factors.astype(np.float16), 1.0, MASK.mask_hash)), n_modalities=1)


def test_inputs_have_the_size_that_is_said(context):
    z = np.random.default_rng(1).normal(size=(MASK.size, 2)).astype(np.float32)
    inputs = context.compute(IMAGE, z, BRAIN)
    assert inputs.shape == (MASK.size, context.size)
    assert inputs.dtype == np.float32
    at = np.array([3, 700, 5])
    np.testing.assert_array_equal(context.compute(IMAGE, z, BRAIN, at=at), inputs[at])


def test_a_constant_is_constant_at_all_scales_up_to_the_edge(context):
    inputs = context.compute(IMAGE, np.full((MASK.size, 2), 1.5, np.float32), BRAIN)
    constant = [*range(DIFFERENCES[0]), *range(EACH, EACH + DIFFERENCES[0])]
    np.testing.assert_allclose(inputs[:, constant], 1.5, atol=1e-4)


def test_asymmetry_changes_its_sign_between_mirrored_voxels(context):
    z = np.random.default_rng(2).normal(size=(MASK.size, 2)).astype(np.float32)
    difference = MASK.inverse_transform(context.compute(IMAGE, z, BRAIN)[:, DIFFERENCES[0]])
    centres_mm = MASK.locations @ MASK.grid.affine[:3, :3].T + MASK.grid.affine[:3, 3]
    mirrored = (centres_mm * [-1, 1, 1] - MASK.grid.affine[:3, 3]) @ np.linalg.inv(MASK.grid.affine[:3, :3]).T
    x, y, w = np.round(mirrored).astype(int).T
    np.testing.assert_allclose(difference[x, y, w], -MASK.transform(difference), atol=1e-5)
    assert np.abs(difference).max() > 1


def test_a_symmetric_brain_has_no_asymmetry(context):
    z = np.abs(MASK.locations @ MASK.grid.affine[:3, :3].T + MASK.grid.affine[:3, 3])[:, :2].astype(np.float32) / 20
    inputs = context.compute(IMAGE, z, BRAIN)
    assert np.abs(inputs[:, [*DIFFERENCES, *(EACH + n for n in DIFFERENCES)]]).max() < 1e-4


def test_texture_without_a_mean_is_seen(context):
    """A chessboard has no mean at any scale, but a root mean square."""
    board = np.where(MASK.locations.sum(axis=1) % 2 == 0, 1.0, -1.0)
    inputs = context.compute(IMAGE, np.column_stack([board, board]).astype(np.float32), BRAIN)
    deep = ndimage.distance_transform_edt(MASK.brain_mask)[tuple(MASK.locations.T)] > 5
    assert np.abs(inputs[deep, 2]).max() < 0.05
    np.testing.assert_allclose(inputs[deep, 5], 1, atol=1e-3)


def test_values_outside_the_brain_have_no_effect(context):
    brain = BRAIN.copy()
    brain[: MASK.size // 3] = False
    z = np.random.default_rng(3).normal(size=(MASK.size, 2)).astype(np.float32)
    other = np.where(brain[:, None], z, np.nan)
    unknown = np.where(brain[:, None], IMAGE, np.nan)
    np.testing.assert_array_equal(context.compute(IMAGE, z, brain), context.compute(unknown, other, brain))


def test_intensities_and_curvatures_are_those_of_the_modality(context):
    """The image is a parabola along x, its curvature 2 a per mm^2 along x and 0 along y and z."""
    x_mm = (MASK.locations @ MASK.grid.affine[:3, :3].T + MASK.grid.affine[:3, 3])[:, :1]
    image = (x_mm**2 * 1e-4).astype(np.float32)
    inputs = context.compute(image, np.zeros((MASK.size, 2), np.float32), BRAIN)
    first = 2 * EACH
    np.testing.assert_array_equal(inputs[:, first], image[:, 0])
    deep = ndimage.distance_transform_edt(MASK.brain_mask)[tuple(MASK.locations.T)] > 5
    lowest, middle, highest, slope = inputs[deep, first + 3 : first + 7].T
    np.testing.assert_allclose(highest, 2e-4, rtol=1e-2)
    np.testing.assert_allclose([lowest, middle], 0, atol=2e-6)
    np.testing.assert_allclose(slope, np.abs(2e-4 * x_mm[deep, 0]), atol=2e-6)
    assert (inputs[:, first + 11 : first + 19] == 0).all()  # curvatures of the deviations
