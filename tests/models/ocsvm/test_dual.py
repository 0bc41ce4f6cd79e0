import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import OneClassSVM
from voxout.data_manifests.errors import UserError
from voxout.models.ocsvm import torch_solver
from voxout.models.ocsvm.dual import solve_dual
from voxout.models.ocsvm.voxelwise import fit_detectors


def kernel_matrix(z, gamma):
    return np.exp(-gamma * ((z[:, None] - z[None]) ** 2).sum(-1))


def flatness(z, gamma):
    """s: mean of the off-diagonal elements of 1 - K."""
    z = np.asarray(z, dtype=float)
    m = len(z)
    return -np.expm1(-gamma * ((z[:, None] - z[None]) ** 2).sum(-1)).sum() / (m * (m - 1))


def scikit_learn(z, nu, gamma):
    fitted = OneClassSVM(nu=nu, gamma=gamma, tol=1e-8).fit(z)
    a = np.zeros(len(z))
    a[fitted.support_] = fitted.dual_coef_[0]
    return a, fitted.offset_[0]


def batched_torch(latents, nu, gamma):
    """The GPU solver, run on the CPU."""
    points = torch.as_tensor(np.asarray(latents, dtype=np.float64))
    return torch_solver.solve(points, torch.as_tensor(gamma), nu, torch.ones(points.shape[:2], dtype=points.dtype))


@pytest.mark.parametrize("m", [20, 75])
@pytest.mark.parametrize("nu", [0.03, 0.1, 0.5])
@pytest.mark.parametrize("gamma", [1e-2, 0.3, "scale", "auto"])
def test_agrees_with_scikit_learn(m, nu, gamma):
    latents = np.random.default_rng(m).normal(size=(3, m, 16)) * np.linspace(0.2, 2, 16)
    solution = solve_dual(latents, nu=nu, gamma=gamma)
    for b, z in enumerate(latents):
        a, offset = scikit_learn(z, nu, gamma)
        s = flatness(z, solution.gamma[b])
        np.testing.assert_allclose(solution.dual_coef[b], a, atol=1e-5)
        assert solution.offset[b] == pytest.approx(offset, abs=1e-6 * s)
        assert solution.kkt_gap[b] <= 1e-9 * s
        np.testing.assert_array_equal(solution.free[b], (solution.dual_coef[b] > 0) & (solution.dual_coef[b] < 1))


REGIMES = {
    "normal": lambda rng, m: rng.normal(size=(6, m, 16)),
    "tiny": lambda rng, m: rng.normal(size=(6, m, 16)) * 1e-4,
    "in two dimensions": lambda rng, m: rng.normal(size=(6, m, 2)),
    "far from 0": lambda rng, m: rng.normal(size=(6, m, 16)) + 1e3,
    "triplets": lambda rng, m: np.repeat(rng.normal(size=(6, -(-m // 3), 16)), 3, axis=1)[:, :m],
    "few values": lambda rng, m: np.round(rng.normal(size=(6, m, 1))),
    "one outlier": lambda rng, m: rng.normal(size=(6, m, 16)) * np.where(np.arange(m) == 0, 1e4, 1e-3)[:, None],
}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("nu", [0.01, 0.03, 0.1, 0.25, 0.8, 1.0])
def test_is_optimal_in_every_regime(regime, nu):
    rng = np.random.default_rng(1)
    for m in (2, 5, 75):
        latents = REGIMES[regime](rng, m)
        for gamma in (1e-6, 1e-2, "scale", 100.0):
            solution = solve_dual(latents, nu=nu, gamma=gamma)
            s = np.array([flatness(z, g) for z, g in zip(latents, solution.gamma, strict=True)])
            assert (solution.kkt_gap <= 1e-9 * s).all()
            np.testing.assert_allclose(solution.dual_coef.sum(axis=1), nu * m, rtol=1e-12)
            assert solution.dual_coef.min() >= 0 and solution.dual_coef.max() <= 1


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(("nu", "gamma"), [(0.03, 1e-2), (0.25, "scale"), (0.5, 1e-6), (1.0, 1e-2)])
def test_both_back_ends_agree_in_every_regime(regime, nu, gamma):
    rng = np.random.default_rng(2)
    for m in (2, 38):
        latents = REGIMES[regime](rng, m)
        solution = solve_dual(latents, nu=nu, gamma=gamma)
        s = np.array([flatness(z, g) for z, g in zip(latents, solution.gamma, strict=True)])
        batched = batched_torch(latents, nu, solution.gamma)
        assert (batched.kkt_gap.numpy() <= 1e-9 * s).all()
        rounding = 1e-15 * nu * m
        assert (abs(batched.offset.numpy() - solution.offset) <= 1e-9 * s + rounding).all()


@given(st.integers(0, 10**6), st.sampled_from([2, 3, 7, 16, 33]), st.floats(0.01, 1), st.floats(1e-4, 10))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_properties_of_the_solution(seed, m, nu, gamma):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(1, m, 4))
    solution = solve_dual(z, nu=nu, gamma=gamma)
    a = solution.dual_coef[0]
    assert a.sum() == pytest.approx(nu * m, rel=1e-12)
    assert a.min() >= 0 and a.max() <= 1
    # nu is an upper bound of the fraction of outliers and a lower bound of that of support vectors.
    decision = kernel_matrix(z[0], gamma) @ a - solution.offset[0]
    tolerance = 1e-8 * flatness(z[0], gamma)
    assert (decision < -tolerance).sum() <= nu * m + 1e-9
    assert (a > 0).sum() >= nu * m - 1e-9
    # Invariance to permutation and translation of the latents.
    order = rng.permutation(m)
    turned = solve_dual(z[:, order] + 3.0, nu=nu, gamma=gamma)
    np.testing.assert_allclose(turned.dual_coef[0], a[order], atol=1e-6)
    assert turned.offset[0] == pytest.approx(solution.offset[0], abs=tolerance)
    # Duplicated latents give twice the sum of a and twice the decision function.
    doubled = solve_dual(np.repeat(z, 2, axis=1), nu=nu, gamma=gamma)
    np.testing.assert_allclose(
        kernel_matrix(z[0], gamma) @ doubled.dual_coef[0].reshape(m, 2).sum(axis=1) - doubled.offset[0],
        2 * decision,
        atol=4 * tolerance + 1e-12,
    )


def test_offset_without_free_vectors_is_the_midpoint():
    # nu*m = 2, and with a wide kernel the two outer latents have a = 1.
    z = np.array([[0.0], [0.1], [0.2], [0.3], [5.0], [-5.0]])
    solution = solve_dual(z[None], nu=2 / 6, gamma=0.005)
    np.testing.assert_array_equal(solution.dual_coef[0], [0, 0, 0, 0, 1, 1])
    assert not solution.free.any()
    gradient = kernel_matrix(z, 0.005) @ [0, 0, 0, 0, 1, 1]
    assert gradient[4:].max() < gradient[:4].min()
    assert solution.offset[0] == pytest.approx(0.5 * (gradient[4:].max() + gradient[:4].min()), rel=1e-12)
    # scikit-learn gives one of the ends, as rounding makes one vector appear free.
    assert gradient[4:].max() - 1e-7 <= scikit_learn(z, 2 / 6, 0.005)[1] <= gradient[:4].min() + 1e-7


def test_nu_m_below_one_never_reaches_the_upper_bound():
    z = np.random.default_rng(3).normal(size=(4, 20, 5))
    solution = solve_dual(z, nu=0.01, gamma=0.1)
    np.testing.assert_allclose(solution.dual_coef.sum(axis=1), 0.2)
    assert solution.dual_coef.max() < 1


def test_nu_of_one_makes_all_coefficients_one():
    z = np.random.default_rng(3).normal(size=(1, 9, 5))
    solution = solve_dual(z, nu=1.0, gamma=0.1)
    np.testing.assert_array_equal(solution.dual_coef, 1.0)
    assert solution.offset[0] == pytest.approx(kernel_matrix(z[0], 0.1).sum(axis=1).max())


def test_two_latents_share_equally():
    solution = solve_dual(np.array([[[0.0], [1.0]]]), nu=0.6, gamma=0.5)
    np.testing.assert_allclose(solution.dual_coef, [[0.6, 0.6]])
    assert solution.offset[0] == pytest.approx(0.6 * (1 + np.exp(-0.5)))


def test_equal_latents_give_a_decision_function_of_zero():
    solution = solve_dual(np.full((2, 7, 3), 4.0), nu=0.3, gamma="scale")
    np.testing.assert_allclose(solution.dual_coef.sum(axis=1), 2.1)
    np.testing.assert_allclose(solution.offset, 2.1, rtol=1e-15)
    np.testing.assert_array_equal(solution.kkt_gap, 0.0)


def test_flat_kernels_agree_with_the_linear_limit():
    # For latents of scale 1e-4 the kernel is 1 - gamma*d^2 up to 1e-10: scaling all distances only scales F.
    z = np.random.default_rng(5).normal(size=(1, 30, 4))
    tiny = solve_dual(1e-4 * z, nu=0.1, gamma=1e-2)
    less_tiny = solve_dual(1e-3 * z, nu=0.1, gamma=1e-2)
    np.testing.assert_allclose(tiny.dual_coef, less_tiny.dual_coef, atol=1e-5)


def test_tensors_and_half_precision():
    z = np.random.default_rng(0).normal(size=(2, 12, 4)).astype(np.float16)
    expected = solve_dual(z.astype(np.float64), nu=0.2, gamma="scale")
    half = solve_dual(z, nu=0.2, gamma="scale")
    tensor = solve_dual(torch.from_numpy(z).requires_grad_(), nu=0.2, gamma="scale")
    for name in ("dual_coef", "offset", "kkt_gap", "free", "gamma"):
        np.testing.assert_array_equal(getattr(half, name), getattr(expected, name))
        assert isinstance(getattr(tensor, name), torch.Tensor)
        np.testing.assert_allclose(getattr(tensor, name).numpy(), getattr(expected, name), rtol=1e-12, atol=1e-13)


def test_threads_give_the_same_solutions():
    z = np.random.default_rng(0).normal(size=(200, 10, 3))
    together = solve_dual(z, nu=0.2, gamma=0.1)
    for b in (0, 63, 64, 199):
        np.testing.assert_array_equal(together.dual_coef[b], solve_dual(z[b : b + 1], nu=0.2, gamma=0.1).dual_coef[0])
    assert solve_dual(z[:0], nu=0.2, gamma=0.1).dual_coef.shape == (0, 10)


def test_non_finite_latents_are_named_by_voxel():
    z = np.zeros((9, 5, 2))
    z[3, 1, 1], z[7, 0, 0] = np.nan, np.inf
    for latents in (z, torch.from_numpy(z)):
        with pytest.raises(UserError, match="NaN or infinite at voxels 3, 7, expected finite"):
            solve_dual(latents, nu=0.1, gamma=1.0)


def test_invalid_shapes_and_nu():
    with pytest.raises(UserError, match=r"shape \(5, 2\), expected three axes"):
        solve_dual(np.zeros((5, 2)), nu=0.1, gamma=1.0)
    with pytest.raises(UserError, match=r"shape \(5, 0, 2\)"):
        solve_dual(np.zeros((5, 0, 2)), nu=0.1, gamma=1.0)
    for nu in (0.0, 1e-14, 1.5, float("nan")):
        with pytest.raises(UserError, match=f"nu is {nu}"):
            solve_dual(np.zeros((1, 5, 2)), nu=nu, gamma=1.0)


def test_near_duplicates():
    # A violation among free vectors that differ only by rounding: one of them used to be freed twice.
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 100, 11))
    which = rng.integers(0, 100, (60, 300))
    z = np.take_along_axis(centres, which[:, :, None], 1) + 1e-7 * rng.normal(size=(60, 300, 11))
    solution = solve_dual(z, nu=0.5, gamma=9.0)
    np.testing.assert_allclose(solution.dual_coef.sum(axis=1), 150, rtol=1e-12)
    assert (solution.kkt_gap <= 1e-9 * np.array([flatness(latents, 9.0) for latents in z])).all()


@pytest.mark.parametrize("gamma", [1e-150, 1e-162, 1e-200])
def test_kernels_so_flat_that_squares_underflow(gamma):
    z = np.random.default_rng(0).normal(size=(3, 75, 16))
    solution = solve_dual(z, nu=0.03, gamma=gamma)
    np.testing.assert_allclose(solution.dual_coef.sum(axis=1), 2.25)
    assert (solution.kkt_gap <= 1e-2 * gamma * 75).all()


@pytest.mark.parametrize("value", [0.1, 1e-6, 2.0, -7.3])
def test_gamma_of_equal_latents_is_one_despite_a_rounded_mean(value):
    z = np.full((2, 9, 3), value)
    for latents in (z, torch.from_numpy(z)):
        np.testing.assert_array_equal(np.asarray(solve_dual(latents, nu=0.3, gamma="scale").gamma), 1.0)
    assert fit_detectors(z.swapaxes(0, 1), nu=0.3, gamma="scale").arrays.gamma.tolist() == [1.0, 1.0]
    assert len(solve_dual(z[:0], nu=0.3, gamma="scale").offset) == 0
