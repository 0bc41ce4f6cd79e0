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
EACH, DIFFERENCES = 9, (6, 7, 8)
"""Inputs of each deviation, and the differences from the mirrored voxel among them."""


@pytest.fixture(scope="module")
def context():
    random = np.random.default_rng(0)
    mean, factors = random.random((MASK.size, 1), np.float32), 0.5 + random.random((MASK.size, 1), np.float32)
    return Context(MASK, Norm(Whitening(mean, factors.astype(np.float16), 1.0, MASK.mask_hash)))


def test_inputs_have_the_size_that_is_said(context):
    z = np.random.default_rng(1).normal(size=(MASK.size, 2)).astype(np.float32)
    inputs = context.compute(z, BRAIN)
    assert inputs.shape == (MASK.size, context.size)
    assert inputs.dtype == np.float32
    at = np.array([3, 700, 5])
    np.testing.assert_array_equal(context.compute(z, BRAIN, at=at), inputs[at])


def test_a_constant_is_constant_at_all_scales_up_to_the_edge(context):
    inputs = context.compute(np.full((MASK.size, 2), 1.5, np.float32), BRAIN)
    constant = [*range(DIFFERENCES[0]), *range(EACH, EACH + DIFFERENCES[0])]
    np.testing.assert_allclose(inputs[:, constant], 1.5, atol=1e-4)


def test_asymmetry_changes_its_sign_between_mirrored_voxels(context):
    z = np.random.default_rng(2).normal(size=(MASK.size, 2)).astype(np.float32)
    difference = MASK.inverse_transform(context.compute(z, BRAIN)[:, DIFFERENCES[0]])
    centres_mm = MASK.locations @ MASK.grid.affine[:3, :3].T + MASK.grid.affine[:3, 3]
    mirrored = (centres_mm * [-1, 1, 1] - MASK.grid.affine[:3, 3]) @ np.linalg.inv(MASK.grid.affine[:3, :3]).T
    x, y, w = np.round(mirrored).astype(int).T
    np.testing.assert_allclose(difference[x, y, w], -MASK.transform(difference), atol=1e-5)
    assert np.abs(difference).max() > 1


def test_a_symmetric_brain_has_no_asymmetry(context):
    z = np.abs(MASK.locations @ MASK.grid.affine[:3, :3].T + MASK.grid.affine[:3, 3])[:, :2].astype(np.float32) / 20
    inputs = context.compute(z, BRAIN)
    assert np.abs(inputs[:, [*DIFFERENCES, *(EACH + n for n in DIFFERENCES)]]).max() < 1e-4


def test_texture_without_a_mean_is_seen(context):
    """A chessboard has no mean at any scale, but a root mean square."""
    board = np.where(MASK.locations.sum(axis=1) % 2 == 0, 1.0, -1.0)
    inputs = context.compute(np.column_stack([board, board]).astype(np.float32), BRAIN)
    deep = ndimage.distance_transform_edt(MASK.brain_mask)[tuple(MASK.locations.T)] > 5
    assert np.abs(inputs[deep, 2]).max() < 0.05
    np.testing.assert_allclose(inputs[deep, 5], 1, atol=1e-3)


def test_values_outside_the_brain_have_no_effect(context):
    brain = BRAIN.copy()
    brain[: MASK.size // 3] = False
    z = np.random.default_rng(3).normal(size=(MASK.size, 2)).astype(np.float32)
    other = np.where(brain[:, None], z, np.nan)
    np.testing.assert_array_equal(context.compute(z, brain), context.compute(other, brain))
