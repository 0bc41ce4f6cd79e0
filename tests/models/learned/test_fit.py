"""Cross-fitting of the learned scorer."""

import numpy as np
from voxout.models.edits.edited_controls import EditedControls
from voxout.models.edits.edited_images import Edited
from voxout.models.edits.families import FAMILIES, SHAM
from voxout.models.learned.chosen_voxels import chosen_voxels
from voxout.models.learned.fit import LearnedFit
from voxout.models.learned.network import Samples

FOLDS = [np.array([0, 3]), np.array([1, 4]), np.array([2, 5])]


def samples_of(seed):
    random = np.random.default_rng(seed)
    return Samples(random.normal(size=(300, 4)).astype(np.float32), random.integers(-1, 2, 300).astype(np.int8))


def test_the_network_of_a_fold_has_not_seen_its_controls():
    controls = EditedControls(None, ("a",) * 6, None, (), seed=0)
    fit = LearnedFit(None, None, controls, np.ones((6, 1), bool), FOLDS, [], [], None)
    samples = [samples_of(seed) for seed in range(6)]
    changed = [samples_of(seed + 10) if seed in FOLDS[1] else one for seed, one in enumerate(samples)]
    before, after = (fit.networks(each, 4, "cpu", 2, lambda: None) for each in (samples, changed))
    weights = [[network.arrays()["layers.0.weight"] for network in networks] for networks in (before, after)]
    assert [np.array_equal(*pair) for pair in zip(*weights, strict=True)] == [False, True, False]


def test_voxels_to_learn_from_are_edited_or_far_from_edits():
    random = np.random.default_rng(0)
    numbers = np.repeat([0, -1, 1, 2, 3], [20_000, 500, 50, 300, 200])
    inside = random.random(len(numbers)) < 0.8
    z = random.normal(size=(len(numbers), 2))
    z[:1000] *= 6
    drawn = Edited(None, numbers, ("blur", SHAM, "noise"))
    index, families = chosen_voxels(drawn, numbers, inside, z, random)
    assert inside[index].all()
    assert not (numbers[index] == -1).any()
    names = list(FAMILIES)
    for number, family, most in ((1, names.index("blur"), 50), (2, -1, 80), (3, names.index("noise"), 80)):
        assert set(families[numbers[index] == number]) == {family}
        assert 0.6 * most < (numbers[index] == number).sum() <= most
    unedited = index[numbers[index] == 0]
    assert set(families[numbers[index] == 0]) == {-1}
    assert (unedited < 1000).mean() > 0.12  # unusual voxels are drawn more often: without weights, .05
