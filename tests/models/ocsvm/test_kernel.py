import numpy as np
import pytest
import torch
from sklearn.svm import OneClassSVM
from voxout.data_manifests.errors import UserError
from voxout.models.ocsvm.kernel import centred_kernel, kernel_gamma


@pytest.mark.parametrize("gamma", [0.3, "scale", "auto"])
def test_gamma_agrees_with_scikit_learn(gamma):
    latents = np.random.default_rng(0).normal(size=(3, 20, 5)) * 2 + 1
    expected = [OneClassSVM(gamma=gamma).fit(z)._gamma if gamma != 0.3 else 0.3 for z in latents]
    np.testing.assert_allclose(kernel_gamma(latents, gamma), expected, rtol=1e-13)
    np.testing.assert_allclose(kernel_gamma(torch.from_numpy(latents), gamma).numpy(), expected, rtol=1e-13)


def test_gamma_per_dimension():
    np.testing.assert_allclose(kernel_gamma(np.zeros((2, 3, 4)), "0.1/d"), [0.025, 0.025])


def test_scale_of_equal_latents_is_one_as_in_scikit_learn():
    latents = np.full((1, 6, 2), 3.0)
    assert kernel_gamma(latents, "scale") == [1.0]
    assert kernel_gamma(torch.from_numpy(latents), "scale") == 1.0


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan"), float("inf"), "wide", "0/d", None])
def test_invalid_gamma(gamma):
    with pytest.raises(UserError, match='Set gamma to a number above 0, "scale", "auto"'):
        kernel_gamma(np.ones((1, 2, 3)), gamma)


def test_centred_kernel_is_precise_where_it_is_flat():
    x = torch.tensor([[[0.0], [1e-6]]], dtype=torch.float64)
    kernel = centred_kernel(x, x, torch.tensor([1e-3], dtype=torch.float64))
    # 1 - exp(-1e-15), computed from the rounded exponential, would have an error of a tenth.
    assert kernel[0, 0, 1].item() == pytest.approx(-1e-15, rel=1e-12)
    assert kernel[0, 0, 0].item() == 0.0
