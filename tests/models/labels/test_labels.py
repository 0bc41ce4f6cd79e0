"""What is learnt from labelled voxels: weights, heads, and the file of both."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from voxout.data_manifests.errors import UserError
from voxout.models.labels.fusion import Fusion, read_patients
from voxout.models.labels.head import LARGEST_FACTOR, Head, head_inputs
from voxout.models.labels.head_training import train_head
from voxout.models.labels.labelled_voxels import DRAWN, HIGHEST, LabelledVoxels, average_precision
from voxout.models.labels.weights import MOST_CANDIDATES, PENALTIES, STEPS, candidates, choose, table_of
from voxout.models.tensor_file import write_tensors


def p_norm(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(values).sum(axis=0))


def patient(seed: int, *, useful: float = 3.0, n_latents: int = 0, size: int = 3000) -> LabelledVoxels:
    """A patient in whom the first scorer finds lesions, and the second one nothing; latent 0 tells where it errs."""
    random = np.random.default_rng(seed)
    lesion = random.random(size) < 0.05
    values = random.exponential(0.43, (2, size)).astype(np.float32)
    values[0, lesion] += random.exponential(useful, lesion.sum())
    latents = None
    if n_latents:
        latents = random.normal(size=(size, n_latents)).astype(np.float32)
        wrong = ~lesion & (random.random(size) < 0.1)
        values[0, wrong] += random.exponential(useful, wrong.sum())
        latents[:, 0] += np.where(wrong, 3, 0)
    return LabelledVoxels(f"p{seed}", values, latents, lesion, np.ones(size))


# -- voxels ------------------------------------------------------------------------------------------------------------
def test_average_precision_is_that_of_scikit_learn_with_weights_and_ties():
    random = np.random.default_rng(0)
    scores, lesion = random.integers(0, 20, 500) / 4, random.random(500) < 0.2
    counts = random.uniform(0.5, 40, 500)
    expected = average_precision_score(lesion, scores, sample_weight=counts)
    assert average_precision(scores, lesion, counts) == pytest.approx(expected, abs=1e-12)
    assert average_precision(np.array([3.0, 2, 1]), np.array([True, False, True]), np.ones(3)) == pytest.approx(5 / 6)


def test_voxels_drawn_stand_for_the_whole_brain():
    random = np.random.default_rng(0)
    size = HIGHEST + DRAWN + 30_000
    values = random.exponential(size=(1, size)).astype(np.float32)
    lesion, inside = random.random(size) < 0.01, random.random(size) < 0.9
    drawn = LabelledVoxels.draw("p", values, None, lesion, inside, values[0], random)
    assert drawn.counts.sum() == pytest.approx(inside.sum()) and drawn.lesion.sum() == (lesion & inside).sum()
    assert len(drawn.lesion) == HIGHEST + DRAWN + drawn.lesion.sum()
    healthy = np.sort(values[0, ~lesion & inside])
    assert set(healthy[-HIGHEST:]) <= set(drawn.values[0, ~drawn.lesion]), "the highest are all there"
    exact = average_precision(values[0, inside], lesion[inside], np.ones(inside.sum()))
    assert average_precision(drawn.values[0], drawn.lesion, drawn.counts) == pytest.approx(exact, rel=0.02)
    fewer = drawn.fewer(50, random)
    assert len(fewer.lesion) == 100
    mean = np.mean([drawn.fewer(50, random).counts.sum() for _ in range(400)])
    assert mean == pytest.approx(inside.sum(), rel=0.03), "right on average"


# -- weights -----------------------------------------------------------------------------------------------------------
def test_candidates_begin_with_equal_weights_and_do_not_repeat_what_only_scales():
    found = candidates([0, 1], 0)
    assert (found[0] == 1).all() and len(found) == 2 * len(STEPS) - 1
    np.testing.assert_allclose(np.log(found).mean(axis=1), 0, atol=1e-6)
    assert (candidates([0, 1, 0], 0)[:, 0] == candidates([0, 1, 0], 0)[:, 2]).all(), "one weight for all encoders"
    many = candidates(range(6), 3)
    assert (many[0] == 1).all() and len(many) == MOST_CANDIDATES + 1 and (many > 0).all()
    assert (many == candidates(range(6), 3)).all() and (candidates([0], 0) == 1).all()


def test_the_scorer_that_finds_lesions_gets_the_weight():
    patients = [patient(seed) for seed in range(6)]
    weights = candidates([0, 1], 0)
    table = table_of(patients, weights, p_norm)
    chosen = weights[choose(table, [p.participant for p in patients], weights)]
    assert chosen[0] > 2 * chosen[1]
    fresh = [patient(seed) for seed in range(50, 60)]
    gains = [
        average_precision(p_norm(chosen[:, None] * p.values), p.lesion, p.counts)
        - average_precision(p_norm(p.values), p.lesion, p.counts)
        for p in fresh
    ]
    assert np.mean(gains) > 0.01


def test_where_weights_say_nothing_they_stay_equal():
    random = np.random.default_rng(2)
    weights = candidates([0, 1, 2], 0)
    kept = 0
    for _ in range(40):
        table = random.normal(0, 0.05, (len(weights), 6))
        kept += choose(table, list("abcdef"), weights) == 0
    assert kept > 20, "noise is mostly left alone"
    assert choose(np.zeros((len(weights), 3)), list("abc"), weights) == 0 and np.isinf(PENALTIES[0])


def test_scans_of_a_participant_are_left_out_together_and_one_participant_is_enough():
    weights = candidates([0, 1], 0)
    rows = len(weights)
    own = np.zeros((rows, 3))
    own[3] = [3.0, 3.0, -3.0]  # good in both scans of a, bad in b
    assert choose(own, ["a", "a", "b"], weights) == 0
    assert choose(own[:, :2], ["a", "a"], weights) == 3


# -- head --------------------------------------------------------------------------------------------------------------
def small_head(n_latents: int = 0, seed: int = 0) -> Head:
    random = np.random.default_rng(seed)
    d = 2 + n_latents
    parts = [random.normal(size=shape).astype(np.float32) for shape in ((3, d, 4), (3, 4), (3, 4))]
    return Head(np.zeros(d, np.float32), np.ones(d, np.float32), *parts, n_latents)


def test_the_factor_is_that_of_the_formula_and_bounded():
    head, random = small_head(1), np.random.default_rng(1)
    values, latents = random.exponential(size=(2, 50)), random.normal(size=(50, 1))
    latents[0] = np.nan
    inputs = np.clip(np.concatenate([np.log1p(values.T), np.nan_to_num(latents)], axis=1), -5, 5)
    outputs = [np.tanh(inputs @ h + b) @ o for h, b, o in zip(head.hidden, head.hidden_bias, head.out, strict=True)]
    expected = LARGEST_FACTOR ** np.tanh(np.mean(outputs, axis=0))
    np.testing.assert_allclose(head.factor(values, latents), expected, rtol=1e-5)
    far = head.factor(1e30 * values, 1e30 * latents)
    assert (far <= LARGEST_FACTOR * 1.001).all() and (far >= 1 / LARGEST_FACTOR / 1.001).all()
    assert head_inputs(values, None).shape == (50, 2)


def test_a_head_learns_where_scores_are_wrong():
    patients = [patient(seed, n_latents=2) for seed in range(5)]
    head = train_head(patients, np.ones(2), p_norm)
    fresh = [patient(seed, n_latents=2) for seed in range(50, 55)]
    before, after = [], []
    for p in fresh:
        before.append(average_precision(p_norm(p.values), p.lesion, p.counts))
        factor = head.factor(p.values, p.latents)
        after.append(average_precision(p_norm(p.values) * factor, p.lesion, p.counts))
    assert np.mean(after) > np.mean(before) + 0.1
    again = train_head(patients, np.ones(2), p_norm)
    assert all((getattr(head, name) == getattr(again, name)).all() for name in ("hidden", "hidden_bias", "out"))


def test_the_variance_weight_makes_networks_of_different_patients_agree():
    # Each patient has a latent of its own kind of error: what one network learns does not hold for the others.
    patients = [patient(seed, n_latents=4, size=400) for seed in range(4)]
    spread = {}
    for weight in (0.0, 30.0):
        head = train_head(patients, np.ones(2), p_norm, variance_weight=weight)
        inputs = head.standardised(head_inputs(patients[0].values, patients[0].latents))
        each = [np.tanh(inputs @ h + b) @ o for h, b, o in zip(head.hidden, head.hidden_bias, head.out, strict=True)]
        spread[weight] = float(np.var(each, axis=0).mean())
    assert spread[30.0] < 0.7 * spread[0.0]


def test_a_head_of_one_participant_has_one_network():
    assert len(train_head([patient(0)], np.ones(2), p_norm).hidden) == 1
    assert len(train_head([patient(0), patient(1)], np.ones(2), p_norm).hidden) == 2
    assert len(train_head([patient(seed) for seed in range(9)], np.ones(2), p_norm).hidden) == 4


# -- file --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("head", [None, small_head(0), small_head(3)])
def test_a_fusion_is_read_as_it_was_written(tmp_path, head):
    names = ("ocsvm", "prototypes")
    before = Fusion(names, np.array([0.5, 2.0]), 7, head)
    before.save(tmp_path / "fusion.safetensors")
    after = Fusion.load(tmp_path / "fusion.safetensors", names)
    random = np.random.default_rng(0)
    values, latents = random.exponential(size=(2, 30)), random.normal(size=(30, 3))
    assert after.patients == 7 == read_patients(tmp_path / "fusion.safetensors")
    assert after.needs_latents == (head is not None and head.n_latents == 3)
    np.testing.assert_array_equal(after.factor(values, latents), before.factor(values, latents))
    np.testing.assert_array_equal(after.weighted(values), np.array([[0.5], [2.0]]) * values)


def test_files_of_other_scorers_or_with_wrong_shapes_are_refused(tmp_path):
    path = tmp_path / "fusion.safetensors"
    Fusion(("ocsvm", "prototypes"), np.array([0.5, 2.0]), 7, small_head(1)).save(path)
    with pytest.raises(UserError, match="its scorers are ocsvm prototypes"):
        Fusion.load(path, ("ocsvm", "learned"))
    write_tensors(path, {"weights": np.array([1.0, -1.0])}, names="a b", patients="3")
    with pytest.raises(UserError, match="learnt combination"):
        Fusion.load(path, ("a", "b"))
    head = small_head(1)
    tensors = {name: getattr(head, name) for name in ("centre", "scale", "hidden_bias", "hidden")}
    tensors |= {"out": head.out[:2], "weights": np.ones(2)}
    write_tensors(path, tensors, names="a b", patients="3", latents="1")
    with pytest.raises(UserError, match="its arrays have the shapes"):
        Fusion.load(path, ("a", "b"))
    with pytest.raises(UserError, match="learnt combination"):
        Fusion.load(tmp_path / "none.safetensors", ("a", "b"))
