import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import OneClassSVM
from voxout.data_manifests.errors import UserError
from voxout.models.ocsvm import torch_solver
from voxout.models.ocsvm.detector_blocks import fit_block
from voxout.models.ocsvm.dual import solve_dual
from voxout.models.ocsvm.guidance_loss import guidance_loss, loss_and_gradients_numba, loss_and_gradients_torch
from voxout.models.ocsvm.kernel import kernel_gamma
from voxout.models.ocsvm.voxelwise import DetectorField, fit_detectors


def random_weights(rng, m, kind):
    """Weights of one kind; at least one is above 0."""
    if kind == "uniform":
        return rng.uniform(0, 2, m)
    if kind == "zeros":
        return rng.uniform(0, 1, m) * (rng.uniform(size=m) < 0.5) + np.eye(m)[0]
    if kind == "ties":
        return rng.choice([0.5, 1.0], m)
    if kind == "integers":
        return rng.integers(0, 4, m) + np.eye(m)[0]
    if kind == "ages":
        return np.exp(-0.5 * ((rng.uniform(20, 90, m) - 85) / 8) ** 2) + 1e-30
    return 10.0 ** rng.uniform(-8, 3, m)


KINDS = ("uniform", "zeros", "ties", "integers", "ages", "wide")


def kernel_matrix(x, y, gamma):
    return np.exp(-gamma * ((x[:, None] - y[None]) ** 2).sum(-1))


def flatness(z, weights, gamma):
    """s: mean of 1 - K between the vectors that have a weight."""
    z = z[weights > 0]
    n = max(len(z), 2)
    return -np.expm1(-gamma * ((z[:, None] - z[None]) ** 2).sum(-1)).sum() / (n * (n - 1))


def batched_torch(latents, nu, gamma, weights):
    """The GPU solver, run on the CPU."""
    rows = np.broadcast_to(weights, latents.shape[:2]).copy()
    return torch_solver.solve(torch.from_numpy(latents), torch.from_numpy(gamma), nu, torch.from_numpy(rows))


@given(
    st.integers(0, 10**6),
    st.sampled_from([2, 5, 20, 38, 75]),
    st.sampled_from(KINDS),
    # Not 1: rounding errors of the sum of weights make scikit-learn write beyond its arrays.
    st.sampled_from([0.001, 0.01, 0.03, 0.1, 1 / 3, 0.5, 0.8, 0.99, 0.9999]),
    # LIBSVM keeps its kernel in float32, so that flatter ones are compared only by their KKT gap below.
    st.floats(0.1, 10),
    st.sampled_from(["normal", "in pairs", "few values"]),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_agrees_with_scikit_learn_and_between_back_ends(seed, m, kind, nu, gamma, regime):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(m, 4))
    if regime == "in pairs":
        z = np.repeat(z, 2, axis=0)[:m]
    elif regime == "few values":
        z = np.round(z)
    weights = random_weights(rng, m, kind)
    top = weights.max()
    fitted = OneClassSVM(nu=nu, gamma=gamma, tol=1e-10).fit(z, sample_weight=weights / top)
    solution = solve_dual(z[None], nu=nu, gamma=gamma, weights=weights)
    a, s = solution.dual_coef[0], flatness(z, weights / top, gamma) + 1e-12
    assert (a >= 0).all() and (a <= weights).all()
    np.testing.assert_allclose(a.sum(), nu * weights.sum(), rtol=1e-8)
    assert solution.kkt_gap[0] <= 1e-9 * s * top
    np.testing.assert_array_equal(solution.free[0], (a > 0) & (a < weights))
    batched = batched_torch(z[None], nu, solution.gamma, weights)
    assert batched.kkt_gap.item() <= 1e-9 * s * top
    assert batched.offset.item() == pytest.approx(solution.offset[0], abs=(1e-9 * s + 1e-14 * nu * m) * top)
    # The decision function is compared, as a is not unique where latents are equal.
    test = rng.normal(size=(10, 4))
    ours = kernel_matrix(test, z, gamma) @ a / top
    theirs = fitted.decision_function(test) + fitted.offset_[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-6 * s + 1e-14)
    if solution.free[0].any():
        assert solution.offset[0] / top == pytest.approx(fitted.offset_[0], abs=1e-6 * s + 1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nu", [1e-3, 0.03, 0.25, 0.8, 1.0])
def test_flat_and_narrow_kernels_are_solved_to_machine_precision(kind, nu):
    rng = np.random.default_rng(1)
    for m in (2, 5, 75):
        z = rng.normal(size=(6, m, 16))
        weights = np.stack([random_weights(rng, m, kind) for _ in z])
        for gamma in (1e-6, 1e-2, "scale", 100.0):
            solution = solve_dual(z, nu=nu, gamma=gamma, weights=weights)
            batched = batched_torch(z, nu, solution.gamma, weights)
            s = np.array([flatness(*own) for own in zip(z, weights, solution.gamma, strict=True)])
            unit = (s + 1e-15) * weights.max(axis=1)
            assert (solution.kkt_gap <= 1e-9 * unit).all() and (batched.kkt_gap.numpy() <= 1e-9 * unit).all()
            rounding = 1e-15 * nu * weights.sum(axis=1)
            assert (abs(batched.offset.numpy() - solution.offset) <= 1e-9 * unit + rounding).all()


@given(st.integers(0, 10**6), st.integers(2, 20), st.floats(0.01, 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_laws_of_the_weights(seed, m, nu):
    rng = np.random.default_rng(seed)
    z, weights = rng.normal(size=(1, m, 3)), random_weights(rng, m, "integers")
    solution = solve_dual(z, nu=nu, gamma=0.2, weights=weights)
    a = solution.dual_coef[0]
    tolerance = 1e-8 * weights.sum()
    # A weight of n is n equal latents, and none for 0.
    repeated = solve_dual(np.repeat(z, weights.astype(int), axis=1), nu=nu, gamma=0.2)
    owner = np.repeat(np.arange(m), weights.astype(int))
    np.testing.assert_allclose(np.bincount(owner, repeated.dual_coef[0], m), a, atol=1e-6)
    if solution.free.any():
        assert repeated.offset[0] == pytest.approx(solution.offset[0], abs=tolerance)
    # A factor of all weights is one of the solution.
    for factor in (1e-12, 0.3, 1e9):
        scaled = solve_dual(z, nu=nu, gamma=0.2, weights=factor * weights)
        np.testing.assert_allclose(scaled.dual_coef[0], factor * a, atol=1e-7 * factor)
        assert scaled.offset[0] == pytest.approx(factor * solution.offset[0], rel=1e-9)
    order = rng.permutation(m)
    turned = solve_dual(z[:, order], nu=nu, gamma=0.2, weights=weights[order])
    np.testing.assert_allclose(turned.dual_coef[0], a[order], atol=1e-7)


def test_zero_weight_is_as_if_the_latent_were_not_there_however_far_it_is():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4, 30, 5))
    weights = rng.uniform(0.5, 1, 30)
    weights[[3, 8]] = 0
    far = z.copy()
    far[:, [3, 8]] = 1e6
    rest = np.delete(z, [3, 8], axis=1)
    expected = solve_dual(rest, nu=0.2, gamma=1e-3, weights=np.delete(weights, [3, 8]))
    for latents in (z, far):
        solution = solve_dual(latents, nu=0.2, gamma=1e-3, weights=weights)
        np.testing.assert_array_equal(solution.dual_coef[:, [3, 8]], 0)
        np.testing.assert_allclose(solution.offset, expected.offset, rtol=1e-12)
        np.testing.assert_allclose(np.delete(solution.dual_coef, [3, 8], axis=1), expected.dual_coef, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_nu_of_one_makes_all_coefficients_the_weights(kind):
    rng = np.random.default_rng(0)
    for m in (2, 9, 50):
        z, weights = rng.normal(size=(1, m, 3)), random_weights(rng, m, kind)
        solution = solve_dual(z, nu=1.0, gamma=0.2, weights=weights)
        used = weights >= 1e-9 * weights.max()
        np.testing.assert_array_equal(solution.dual_coef[0], np.where(used, weights, 0))
        gradient = kernel_matrix(z[0], z[0], 0.2) @ weights
        assert solution.offset[0] == pytest.approx(gradient[used].max(), rel=1e-7)


def test_a_single_weight_above_zero():
    z = np.random.default_rng(0).normal(size=(2, 6, 3))
    weights = np.array([0, 0, 3.0, 0, 0, 0])
    solution = solve_dual(z, nu=0.25, gamma=0.1, weights=weights)
    np.testing.assert_array_equal(solution.dual_coef, np.tile(0.25 * weights, (2, 1)))
    np.testing.assert_allclose(solution.offset, 0.75)


def test_weights_of_one_change_no_bit():
    z = np.random.default_rng(1).normal(size=(20, 30, 6))
    for nu in (0.03, 1 / 3, 1.0):
        one, other = (solve_dual(z, nu=nu, gamma="scale", weights=w) for w in (None, np.ones(30)))
        for name in ("dual_coef", "offset", "kkt_gap", "free", "gamma"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_weights_of_one_change_no_bit_of_the_guidance_loss_and_of_the_gpu_solver():
    sv, rest = loss_latents(20, 8, 4)
    found = []
    for weights in (None, np.ones(20)):
        leaves = sv.clone().requires_grad_(), rest.clone().requires_grad_()
        loss = guidance_loss(*leaves, nu=0.1, gamma="scale", weights=weights)
        loss.sum().backward()
        found.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    latents = torch.from_numpy(np.random.default_rng(1).normal(size=(30, 20, 6)))
    plain, weighted = (fit_block(latents, 0.1, 0.05, weights) for weights in (None, np.ones(30)))
    for name in ("support_vectors", "dual_coef", "n_support", "centred_offset", "gamma", "n_fitted"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(weighted, name))


def test_weights_for_each_location():
    rng = np.random.default_rng(2)
    z, weights = rng.normal(size=(5, 20, 3)), rng.uniform(0, 1, (5, 20))
    together = solve_dual(torch.from_numpy(z), nu=0.2, gamma=0.1, weights=weights)
    for b in range(5):
        alone = solve_dual(z[b : b + 1], nu=0.2, gamma=0.1, weights=weights[b])
        np.testing.assert_array_equal(together.dual_coef[b], alone.dual_coef[0])
        assert together.offset[b] == alone.offset[0]


# -- guidance loss -----------------------------------------------------------------------------------------------------
def loss_latents(m, q, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sv = torch.randn(3, m, d, generator=generator, dtype=torch.float64)
    return sv, 1.3 * torch.randn(3, q, d, generator=generator, dtype=torch.float64)


CORNERS = [(0.1, 0.1, 12), (0.1, "scale", 12), (0.03, "auto", 12), (0.5, 0.1, 8), (1.0, 0.1, 8), (0.3, "0.2/d", 9)]


@pytest.mark.parametrize("kind", ["uniform", "zeros", "ties", "integers"])
@pytest.mark.parametrize(("nu", "gamma", "m"), CORNERS)
def test_gradcheck_of_the_guidance_loss(nu, gamma, m, kind):
    sv, rest = loss_latents(m, 6, 3, seed=m)
    weights = random_weights(np.random.default_rng(m), m, kind)
    assert torch.autograd.gradcheck(
        lambda a, b: guidance_loss(a, b, nu=nu, gamma=gamma, weights=weights),
        (sv.requires_grad_(), rest.requires_grad_()),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("nu", "gamma", "m"), [*CORNERS, (0.03, 1e-2, 38)])
def test_back_ends_of_the_guidance_loss_agree(nu, gamma, m, kind):
    sv, rest = loss_latents(m, 10, 3, seed=2)
    rng = np.random.default_rng(3)
    weights = np.stack([random_weights(rng, m, kind) for _ in range(3)])
    arguments = (sv, rest, weights, kernel_gamma(sv, gamma), nu, gamma == "scale", 0.7, 0.4, True)
    for one, other in zip(loss_and_gradients_numba(*arguments), loss_and_gradients_torch(*arguments), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * weights.max())


def test_value_of_the_guidance_loss_agrees_with_scikit_learn():
    sv, rest = loss_latents(30, 12, 5)
    weights = np.random.default_rng(0).uniform(0.1, 1, 30)
    loss = guidance_loss(sv, rest, nu=0.1, gamma=0.1, weights=weights)
    for b in range(3):
        fitted = OneClassSVM(nu=0.1, gamma=0.1, tol=1e-10).fit(sv[b].numpy(), sample_weight=weights)
        decision = fitted.decision_function(rest[b].numpy())
        assert loss[b].item() == pytest.approx(np.maximum(-decision, 0).sum() / 0.1, rel=1e-6)


# -- detectors ---------------------------------------------------------------------------------------------------------
def cohort(dtype=np.float64):
    return np.random.default_rng(0).normal(size=(30, 40, 6)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("gamma", [0.05, "scale"])
def test_detectors_agree_with_scikit_learn(dtype, gamma):
    latents = cohort(dtype)
    weights = np.random.default_rng(1).uniform(0, 5, 30)
    weights[:4] = 0
    field = fit_detectors(latents, nu=0.1, gamma=gamma, weights=weights)
    scores = field.decision_function(latents[:3])
    np.testing.assert_allclose(field.total_dual, 0.1 * weights.sum())
    assert (field.arrays.n_fitted == 26).all()
    for voxel in range(40):
        z = latents[:, voxel].astype(float)
        fitted = OneClassSVM(nu=0.1, gamma=gamma, tol=1e-8).fit(z, sample_weight=weights)
        assert field.offset[voxel] == pytest.approx(fitted.offset_[0], abs=1e-5)
        np.testing.assert_allclose(scores[:, voxel], fitted.decision_function(z[:3]), atol=2e-5)


def test_missing_subject_is_left_out_with_its_weight():
    latents, weights = cohort(), np.random.default_rng(1).uniform(0, 1, 30)
    weights[7] = 0
    latents[3, 10] = np.nan
    field = fit_detectors(latents, nu=0.1, gamma="scale", weights=weights)
    alone = fit_detectors(np.delete(latents, 3, axis=0), nu=0.1, gamma="scale", weights=np.delete(weights, 3))
    assert field.offset[10] == alone.offset[10] and field.arrays.n_fitted[10] == 28
    assert field.total_dual[10] == pytest.approx(0.1 * (weights.sum() - weights[3]))


def test_weighted_back_ends_agree():
    latents, weights = cohort(), np.random.default_rng(1).uniform(0, 1, 30)
    weights[7] = 0
    latents[3, 5], latents[7, 5], latents[9, 11] = np.nan, np.nan, np.nan
    latents[0, 20, 2] = np.inf
    latents[:, 30] = np.nan
    latents[np.arange(30) != 7, 31] = np.nan
    by_core, batched = (
        fit_block(latents, 0.2, "scale", weights),
        fit_block(torch.from_numpy(latents), 0.2, "scale", weights),
    )
    assert by_core.n_fitted[[5, 11, 20, 30, 31, 32]].tolist() == [28, 28, -1, 0, 0, 29]
    usable = np.delete(np.arange(40), [20, 30, 31])
    for name in ("n_support", "centred_offset", "gamma", "n_fitted", "total_weight"):
        np.testing.assert_allclose(getattr(batched, name)[usable], getattr(by_core, name)[usable], rtol=1e-9)
    np.testing.assert_array_equal(batched.support_vectors, by_core.support_vectors)
    np.testing.assert_allclose(batched.dual_coef, by_core.dual_coef, atol=1e-8)
    with pytest.raises(UserError, match="no subject has latents at voxel 2, expected at least one"):
        fit_detectors(latents[:, 29::2][:, [0, 2, 1]], nu=0.1, gamma=1.0, weights=weights)


@pytest.mark.parametrize("largest", [1.0, 7.0, 1e-4])
@pytest.mark.parametrize("written", [True, False])
def test_weighted_detectors_survive_storage(tmp_path, largest, written):
    latents = cohort(np.float16)
    weights = np.random.default_rng(1).uniform(0, 1, 30)
    weights *= largest / weights.max()
    latents[3, 10] = np.nan
    field = fit_detectors(latents, nu=0.1, gamma=0.05, weights=weights, out=tmp_path / "a" if written else None)
    field.save(tmp_path / "b")
    loaded = DetectorField.load(tmp_path / "b")
    assert loaded.precision == "float16"
    np.testing.assert_array_equal(loaded.offset, field.offset)
    exact = fit_detectors(latents, nu=0.1, gamma=0.05, weights=weights, precision="float32").decision_function(latents)
    np.testing.assert_allclose(loaded.decision_function(latents), exact, atol=1e-4 * largest)


def test_detectors_with_weights_of_one_are_stored_as_those_without(tmp_path):
    latents = cohort(np.float16)
    fit_detectors(latents, nu=0.1, gamma=0.05).save(tmp_path / "none")
    fit_detectors(latents, nu=0.1, gamma=0.05, weights=np.ones(30)).save(tmp_path / "ones")
    for name in ("detectors.safetensors", "detectors.json"):
        assert (tmp_path / "none" / name).read_bytes() == (tmp_path / "ones" / name).read_bytes()


def test_invalid_weights():
    z = np.zeros((4, 5, 2))
    for weights, sentence in (
        (np.ones(4), r"weights have the shape \(4,\), expected \(5,\), one weight for each subject"),
        (np.ones((5, 4)), r"weights have the shape \(5, 4\)"),
        ([1, 1, -1, 1, 1], "weights are negative or not finite, expected numbers of at least 0"),
        ([1, np.nan, 1, 1, 1], "weights are negative or not finite"),
        (np.full(5, 1e-320), r"the largest weight is 9.99989e-321, expected one from 1e-100 to 1e\+100"),
        (np.full(5, 1e308), r"the largest weight is 1e\+308"),
        (np.zeros(5), "all weights are 0, expected at least one above 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            solve_dual(z, nu=0.1, gamma=1.0, weights=weights)
        with pytest.raises(UserError, match=sentence):
            guidance_loss(torch.from_numpy(z), torch.from_numpy(z), nu=0.1, gamma=1.0, weights=weights)
        with pytest.raises(UserError, match=sentence):
            fit_detectors(z.swapaxes(0, 1), nu=0.1, gamma=1.0, weights=weights)
    with pytest.raises(UserError, match=r"shape \(4, 5\)"):
        fit_detectors(z.swapaxes(0, 1), nu=0.1, gamma=1.0, weights=np.ones((4, 5)))
