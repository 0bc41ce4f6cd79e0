import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.svm import OneClassSVM
from voxout.data_manifests.errors import UserError
from voxout.models.ocsvm.detector_blocks import fit_block, score_block
from voxout.models.ocsvm.dual import solve_dual
from voxout.models.ocsvm.voxelwise import DetectorField, fit_detectors


def cohort(subjects=40, voxels=50, dimension=6, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=(subjects, voxels, dimension)).astype(dtype)


def scikit_learn(latents, voxel, nu, gamma):
    return OneClassSVM(nu=nu, gamma=gamma, tol=1e-8).fit(latents[:, voxel].astype(np.float64))


@pytest.mark.parametrize("gamma", [1e-2, "scale"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_agrees_with_scikit_learn(gamma, dtype):
    latents = cohort(dtype=dtype)
    field = fit_detectors(latents, nu=0.1, gamma=gamma, precision="float32")
    several = cohort(subjects=3, seed=1, dtype=dtype)
    scores = field.decision_function(several)
    assert scores.shape == (3, 50) and len(field) == 50
    for voxel in range(50):
        fitted = scikit_learn(latents, voxel, 0.1, gamma)
        s = 1 - np.exp(-field.arrays.gamma[voxel] * 2 * latents[:, voxel].astype(float).var(axis=0).sum())
        assert field.offset[voxel] == pytest.approx(fitted.offset_[0], abs=1e-5 * s)
        # scikit-learn also keeps vectors with coefficients at rounding level.
        assert field.n_support[voxel] == (fitted.dual_coef_[0] > 1e-9).sum()
        np.testing.assert_allclose(
            scores[:, voxel], fitted.decision_function(several[:, voxel].astype(float)), atol=1e-5 * s
        )
    np.testing.assert_array_equal(field.decision_function(several[1]), scores[1])


def test_agrees_with_the_solution_of_the_dual():
    latents = cohort()
    field = fit_detectors(latents, nu=0.1, gamma=0.1)
    solution = solve_dual(latents.swapaxes(0, 1), nu=0.1, gamma=0.1)
    np.testing.assert_allclose(field.offset, solution.offset, rtol=1e-14)
    for voxel in (0, 17, 49):
        vectors, coef = field.support(voxel)
        kept = solution.dual_coef[voxel] > 0
        np.testing.assert_allclose(coef, solution.dual_coef[voxel][kept], rtol=1e-6)
        np.testing.assert_allclose(vectors, latents[kept, voxel], rtol=1e-6)


def test_half_precision_changes_scores_by_less_than_a_hundredth_of_their_sd():
    latents = cohort(subjects=75, voxels=200, dimension=16)
    controls = cohort(subjects=20, voxels=200, dimension=16, seed=1)
    for gamma in (1e-2, "scale"):
        full = fit_detectors(latents, nu=0.03, gamma=gamma).decision_function(controls)
        half = fit_detectors(latents, nu=0.03, gamma=gamma, precision="float16").decision_function(controls)
        assert (abs(half - full).max(axis=0) < 1e-2 * full.std(axis=0)).all()


def test_flat_kernels_survive_storage(tmp_path):
    # Latents of scale 1e-4 at gamma 1e-2 give scores of 1e-9 with offsets of 4.
    latents = 1e-4 * cohort()
    field = fit_detectors(latents, nu=0.1, gamma=1e-2)
    field.save(tmp_path / "flat")
    scores = DetectorField.load(tmp_path / "flat").decision_function(latents[0])
    solution = solve_dual(latents.swapaxes(0, 1), nu=0.1, gamma=1e-2)
    distance = ((latents - latents[0]) ** 2).sum(axis=-1)
    mass = solution.dual_coef.sum(axis=1)
    expected = (solution.dual_coef * np.expm1(-1e-2 * distance.T)).sum(axis=1) - (solution.offset - mass)
    np.testing.assert_allclose(scores, expected, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_saved_and_loaded(tmp_path, precision):
    latents = cohort(dtype=np.float16)
    field = fit_detectors(latents, nu=0.1, gamma="scale", precision=precision)
    test = cohort(subjects=2, seed=3)
    for path in (tmp_path / "field", tmp_path / "one.safetensors"):
        field.save(path)
        loaded = DetectorField.load(path)
        np.testing.assert_array_equal(loaded.decision_function(test), field.decision_function(test))
        np.testing.assert_array_equal(loaded.offset, field.offset)
        np.testing.assert_array_equal(loaded.n_support, field.n_support)
        assert (loaded.nu, loaded.gamma, loaded.precision) == (0.1, "scale", precision)
        assert isinstance(loaded.arrays.support_vectors, np.memmap)
    # The file is standard safetensors.
    tensors = load_file(tmp_path / "field" / "detectors.safetensors")
    np.testing.assert_array_equal(tensors["support_vectors"], field.arrays.support_vectors)
    assert not list(tmp_path.rglob(".*"))


def test_written_while_fitting(tmp_path):
    latents = cohort(voxels=300)
    calls = []
    direct = fit_detectors(
        latents, nu=0.1, gamma=0.1, jobs=3, out=tmp_path / "out", progress=lambda *done: calls.append(done)
    )
    field = fit_detectors(latents, nu=0.1, gamma=0.1, jobs=1)
    field.save(tmp_path / "saved")
    for name in ("detectors.safetensors", "detectors.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()
    np.testing.assert_array_equal(direct.decision_function(latents[0]), field.decision_function(latents[0]))
    assert calls == sorted(calls) and calls[-1] == (300, 300)


class Store:
    """Minimal interface of a latent store: shape and blocks of voxels."""

    def __init__(self, array):
        self.array, self.shape, self.widest = array, array.shape, 0

    def __getitem__(self, index):
        every, block = index
        assert every == slice(None)
        self.widest = max(self.widest, block.stop - block.start)
        return self.array[:, block]


def test_stores_and_memory_maps_are_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("voxout.models.ocsvm.voxelwise._BLOCK_NUMBERS", 40 * 6 * 10)
    latents = cohort(dtype=np.float16)
    np.save(tmp_path / "latents.npy", latents)
    mapped = np.load(tmp_path / "latents.npy", mmap_mode="r")
    store = Store(latents)
    expected = fit_detectors(np.asarray(latents), nu=0.1, gamma=0.1, precision="float16")
    for source in (mapped, store):
        field = fit_detectors(source, nu=0.1, gamma=0.1, precision="float16")
        np.testing.assert_array_equal(field.arrays.support_vectors, expected.arrays.support_vectors)
        np.testing.assert_array_equal(field.decision_function(source), expected.decision_function(latents))
    assert 0 < store.widest <= 10


def test_half_latents_are_stored_without_loss():
    latents = cohort(dtype=np.float16)
    assert fit_detectors(latents, nu=0.1, gamma=0.1).precision == "float16"
    assert fit_detectors(latents.astype(np.float32), nu=0.1, gamma=0.1).precision == "float32"


def test_all_float16_values_are_converted():
    from voxout.models.ocsvm.blocks import as_floats

    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = np.isfinite(every)
    np.testing.assert_array_equal(as_floats(every)[finite], every[finite].astype(np.float32))
    assert np.isnan(as_floats(every)[~finite]).all()


def test_missing_subject_is_left_out_of_the_fit_at_that_voxel():
    latents = cohort()
    latents[3, 10] = np.nan
    field = fit_detectors(latents, nu=0.1, gamma="scale")
    others = np.delete(latents, 3, axis=0)
    alone = fit_detectors(others, nu=0.1, gamma="scale")
    complete = fit_detectors(np.nan_to_num(latents), nu=0.1, gamma="scale")
    assert field.offset[10] == alone.offset[10]
    assert np.delete(field.offset, 10).tolist() == np.delete(complete.offset, 10).tolist()
    assert field.arrays.n_fitted[10] == 39 and field.arrays.n_fitted[9] == 40
    scores = field.decision_function(latents)
    assert np.isnan(scores[3, 10]) and np.isnan(scores).sum() == 1


def test_non_finite_latents_are_named_by_voxel():
    latents = cohort(voxels=20)
    field = fit_detectors(latents, nu=0.1, gamma=0.1)
    latents[5, 7, 2], latents[6, 12, 0] = np.nan, -np.inf
    with pytest.raises(UserError, match="NaN or infinite at voxels 7, 12, expected finite"):
        fit_detectors(latents, nu=0.1, gamma=0.1, jobs=1)
    with pytest.raises(UserError, match="NaN or infinite at voxel 7, "):
        field.decision_function(latents[5])
    with pytest.raises(UserError, match="at voxel 12, "):
        field.decision_function(latents[6].astype(np.float16))


def test_voxel_without_subjects_is_named():
    latents = cohort(voxels=20)
    latents[:, 4] = np.nan
    with pytest.raises(UserError, match="no subject has latents at voxel 4, expected at least one"):
        fit_detectors(latents, nu=0.1, gamma=0.1)


def test_invalid_shapes():
    field = fit_detectors(cohort(), nu=0.1, gamma=0.1)
    with pytest.raises(UserError, match=r"shape \(49, 6\), expected \(50, 6\) for one subject"):
        field.decision_function(np.zeros((49, 6)))
    with pytest.raises(UserError, match=r"shape \(50,\)"):
        field.decision_function(np.zeros(50))
    with pytest.raises(UserError, match=r"expected \(subjects, voxels, dimensions\)"):
        fit_detectors(np.zeros((5, 6)), nu=0.1, gamma=0.1)
    with pytest.raises(UserError, match="nu is 2"):
        fit_detectors(cohort(), nu=2, gamma=0.1)


def test_latents_too_large_for_half_precision_are_an_error():
    with pytest.raises(UserError, match=r'expected values in the range of float16\. Set precision to "float32"'):
        fit_detectors(1e6 * cohort(), nu=0.1, gamma="scale", precision="float16")


def test_tensors_give_tensors():
    latents = cohort(dtype=np.float32)
    field = fit_detectors(torch.from_numpy(latents), nu=0.1, gamma=0.1)
    scores = field.decision_function(torch.from_numpy(latents[0]))
    assert isinstance(scores, torch.Tensor)
    np.testing.assert_array_equal(scores.numpy(), field.decision_function(latents[0]))


@pytest.mark.parametrize("subjects", [1, 2])
def test_very_few_subjects(subjects):
    latents = cohort(subjects=subjects)
    field = fit_detectors(latents, nu=0.5, gamma=0.1)
    scores = field.decision_function(latents)
    np.testing.assert_allclose(scores, 0.0, atol=1e-7)
    assert (field.decision_function(latents[0] + 3) < 0).all()


def test_equal_latents():
    field = fit_detectors(np.full((9, 4, 3), 2.0), nu=0.3, gamma="scale")
    np.testing.assert_allclose(field.decision_function(np.full((4, 3), 2.0)), 0.0, atol=1e-12)
    assert (field.decision_function(np.full((4, 3), 2.5)) < 0).all()


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(UserError, match=r"detectors.safetensors\W: no such file, expected saved detectors"):
        DetectorField.load(tmp_path)
    field = fit_detectors(cohort(), nu=0.1, gamma=0.1)
    path = field.save(tmp_path / "field")
    content = (path / "detectors.safetensors").read_bytes()
    for damaged in (content[:-100], content[:1000], b"", b"\xff" * 100):
        (path / "detectors.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match=r"field\W: not readable as detectors"):
            DetectorField.load(path)
    (path / "detectors.safetensors").write_bytes(content)
    notes = json.loads((path / "detectors.json").read_text())
    (path / "detectors.json").write_text(json.dumps(notes | {"version": 99}))
    with pytest.raises(UserError, match="version is 99"):
        DetectorField.load(path)


def test_a_failed_fit_leaves_no_file(tmp_path):
    latents = cohort()
    latents[0, 0, 0] = np.inf
    with pytest.raises(UserError):
        fit_detectors(latents, nu=0.1, gamma=0.1, out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("gamma", [0.05, "scale"])
def test_both_back_ends_agree(gamma):
    # The GPU solver, run on the CPU. Some subjects are missing; one voxel has invalid latents, one no subjects.
    latents = cohort(subjects=30, voxels=40)
    latents[3, 5], latents[7, 5], latents[9, 11] = np.nan, np.nan, np.nan
    latents[0, 20, 2] = np.inf
    latents[:, 30] = np.nan
    by_core = fit_block(latents, 0.2, gamma)
    batched = fit_block(torch.from_numpy(latents), 0.2, gamma)
    usable = np.delete(np.arange(40), [20, 30])
    assert by_core.n_fitted[[5, 11, 20, 30, 31]].tolist() == [28, 29, -1, 0, 30]
    for name in ("n_support", "centred_offset", "gamma", "n_fitted"):
        np.testing.assert_allclose(getattr(batched, name)[usable], getattr(by_core, name)[usable], rtol=1e-9)
    np.testing.assert_array_equal(batched.support_vectors, by_core.support_vectors)
    np.testing.assert_allclose(batched.dual_coef, by_core.dual_coef, atol=1e-8)

    test = cohort(subjects=3, voxels=40, seed=1)
    test[1, 8], test[2, 9, 0] = np.nan, np.nan
    scores, broken = score_block(test, by_core)
    batched_scores, batched_broken = score_block(torch.from_numpy(test), batched)
    assert np.flatnonzero(broken).tolist() == np.flatnonzero(batched_broken).tolist() == [9]
    valid = np.setdiff1d(usable, [9])
    assert np.isnan(scores[1, 8]) and np.isfinite(np.delete(scores[:, valid], 8, axis=1)).all()
    np.testing.assert_allclose(batched_scores.numpy()[:, valid], scores[:, valid], atol=1e-9)
