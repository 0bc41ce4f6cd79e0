"""Deviations of a subject from the controls."""

import numpy as np
import pytest
from voxout.models.features.whitening import fit_whitening
from voxout.models.learned.norm import Norm
from voxout.preprocessing.patches.voxel_mask import VoxelMask
from voxout.preprocessing.registration.template import load_template

TEMPLATE = load_template(6.0)
MASK = VoxelMask(TEMPLATE.grid, TEMPLATE.brain_mask.voxels)


def test_deviations_are_those_of_the_covariance_of_the_whitening():
    random = np.random.default_rng(0)
    mixing = random.normal(size=(3, 3))
    controls = random.normal(size=(30, MASK.size, 3)) @ mixing + 5
    whitening = fit_whitening(controls, MASK, shrinkage=0.1)
    norm = Norm(whitening)
    subject = random.normal(size=(MASK.size, 3)) @ mixing + 5
    found = norm.deviations(subject)
    for voxel in random.choice(MASK.size, 20, replace=False):
        factor = whitening.factor(voxel, voxel + 1)[0].astype(float)
        covariance = np.linalg.inv(factor.T @ factor)
        away = subject[voxel] - whitening.mean[voxel]
        np.testing.assert_allclose(found[voxel, :3], away / np.sqrt(np.diag(covariance)), rtol=1e-3)
        distance = np.sqrt(away @ np.linalg.inv(covariance) @ away / 3)
        np.testing.assert_allclose(found[voxel, 3], distance, rtol=1e-3)


def test_deviations_of_unseen_healthy_subjects_have_unit_size():
    random = np.random.default_rng(1)
    mixing = random.normal(size=(3, 3))
    norm = Norm(fit_whitening(random.normal(size=(60, MASK.size, 3)) @ mixing, MASK, shrinkage=0.01))
    found = norm.deviations(random.normal(size=(MASK.size, 3)) @ mixing)
    np.testing.assert_allclose(found[:, :3].std(axis=0), 1, atol=0.05)
    np.testing.assert_allclose((found[:, 3] ** 2).mean(), 1, atol=0.05)


@pytest.mark.parametrize("channels", [1, 2, 4, 40])
def test_other_channels_are_refused(channels):
    """Compiled code would read beyond the arrays."""
    norm = Norm(fit_whitening(np.random.default_rng(0).normal(size=(20, MASK.size, 3)), MASK, shrinkage=0.01))
    with pytest.raises(ValueError, match="channels .* expected"):
        norm.deviations(np.zeros((MASK.size, channels), np.float32))
