"""The network of the learned scorer."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from voxout.data_manifests.errors import UserError
from voxout.models.learned.network import EditClassifier, Samples, batches, train_classifier
from voxout.models.tensor_file import opened_tensors, write_tensors


@pytest.fixture(scope="module")
def samples():
    """Ring against disc: no linear rule tells them apart. Edited voxels are rare."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(20_000, 3)).astype(np.float32) * [1, 100, 1] + [0, 50, 0]
    ring = np.hypot(inputs[:, 0], (inputs[:, 1] - 50) / 100) > 1.8
    families = np.where(ring, random.integers(0, 8, len(ring)), -1).astype(np.int8)
    return Samples(inputs.astype(np.float32), families)


def test_learns_a_rule_that_is_not_linear_with_rare_positives(samples):
    network = train_classifier([samples], seed=0, steps=200)
    logits = network.logits(samples.inputs)
    edited = samples.families >= 0
    assert edited.mean() < 0.25
    assert (logits[edited] > 0).mean() > 0.95
    assert (logits[~edited] < 0).mean() > 0.95


def test_training_repeats_and_leaves_the_global_generator_alone(samples):
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, other, third = (train_classifier([samples], seed=seed, steps=5) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    for name, value in one.arrays().items():
        np.testing.assert_array_equal(value, other.arrays()[name])
    assert (one.arrays()["layers.0.weight"] != third.arrays()["layers.0.weight"]).any()


def test_samples_in_parts_are_learned_from_as_one(samples):
    ends = [0, 1, 7000, 20_000]
    parts = [Samples(samples.inputs[a:b], samples.families[a:b]) for a, b in pairwise(ends)]
    for (whole, label), (divided, other) in zip(*(drawn(each) for each in ([samples], parts)), strict=True):
        np.testing.assert_array_equal(whole, divided)
        np.testing.assert_array_equal(label, other)
        # Of each input drawn, the label is that of its voxel.
        rows = {tuple(row): family >= 0 for row, family in zip(samples.inputs, samples.families, strict=True)}
        assert [rows[tuple(row)] for row in divided.numpy()] == other.bool().tolist()
    one, other = (train_classifier(each, seed=3, steps=5).arrays() for each in ([samples], parts))
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one["mean"], samples.inputs.mean(axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one["sd"], samples.inputs.std(axis=0), rtol=1e-4)


def drawn(samples):
    return list(batches(samples, 3, torch.Generator().manual_seed(0)))


def test_saved_networks_give_the_same_logits(samples, tmp_path):
    network = train_classifier([samples], seed=0, steps=5)
    path = write_tensors(tmp_path / "n.safetensors", {f"0.{name}": value for name, value in network.arrays().items()})
    with opened_tensors(path, "network") as file:
        loaded = EditClassifier.read(file, "0.", 3)
    np.testing.assert_array_equal(network.logits(samples.inputs), loaded.logits(samples.inputs))
    message = r"holds no network \(mean has shape \(3,\), expected \(4,\)\)"
    with pytest.raises(UserError, match=message), opened_tensors(path, "network") as file:
        EditClassifier.read(file, "0.", 4)
