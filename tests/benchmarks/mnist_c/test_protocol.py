"""Splits are disjoint and depend on the seed."""

from dataclasses import replace

import numpy as np
import pytest
from voxout.data_manifests.errors import UserError

from benchmarks.mnist_c.corruptions import CLEAN, CORRUPTIONS
from benchmarks.mnist_c.digits import Digits
from benchmarks.mnist_c.protocol import PROTOCOLS, Unit, conditions_of, split

CONDITIONS = (CLEAN, *CORRUPTIONS)


def _digits(labels, **changes) -> Digits:
    labels = np.asarray(labels)
    return Digits(np.zeros((len(labels), 28, 28), np.uint8), labels, "synthetic", **changes)


LARGE = _digits(np.arange(12_000) % 10)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("digit", [0, 9])
def test_training_digits_are_normal_and_parts_are_disjoint(protocol, digit):
    s = split(LARGE, Unit(protocol, digit, 1))
    assert [len(s.train), len(s.validation), len(s.test)] == [700, 100, 200 + 9 * 22]
    assert (LARGE.labels[np.concatenate([s.train, s.validation])] == digit).all()
    np.testing.assert_array_equal(LARGE.labels[s.test] != digit, s.anomalous)
    every = np.concatenate([s.train, s.validation, s.test])
    assert len(np.unique(every)) == len(every)
    assert (
        np.bincount(LARGE.labels[s.test[s.anomalous]], minlength=10) == np.where(np.arange(10) == digit, 0, 22)
    ).all()


def test_test_digits_are_not_training_digits_of_other_units_with_the_same_seed():
    splits = [split(LARGE, Unit("clean", digit, 0)) for digit in range(10)]
    trained = np.concatenate([np.concatenate([s.train, s.validation]) for s in splits])
    tested = np.concatenate([s.test for s in splits])
    assert not np.intersect1d(trained, tested).size


def test_split_depends_on_the_seed_but_not_on_the_protocol():
    a, b, c = (split(LARGE, Unit(p, 3, s)) for p, s in (("clean", 0), ("clean", 1), ("shifted", 0)))
    assert not np.array_equal(a.train, b.train)
    np.testing.assert_array_equal(a.train, c.train)
    np.testing.assert_array_equal(a.test, c.test)


def test_clean_protocol_trains_on_clean_digits_and_tests_all_conditions():
    s = split(LARGE, Unit("clean", 3, 0))
    assert set(s.train_conditions) == {CLEAN} and s.test_conditions == CONDITIONS


def test_every_corruption_is_tested_twice_over_three_seeds():
    for first in (0, 3):
        tested = [conditions_of(Unit("shifted", 0, first + k), CONDITIONS)[1] for k in range(3)]
        counted = {name: sum(name in names for names in tested) for name in CORRUPTIONS}
        assert set(counted.values()) == {2}
    assert conditions_of(Unit("shifted", 0, 0), CONDITIONS) != conditions_of(Unit("shifted", 0, 3), CONDITIONS)


@pytest.mark.parametrize("seed", range(4))
def test_shifted_protocol_tests_on_other_corruptions(seed):
    s = split(LARGE, Unit("shifted", 3, seed))
    trained_on = set(s.train_conditions) | set(s.validation_conditions)
    assert CLEAN in trained_on and len(trained_on) == 6 and len(s.test_conditions) == 10
    assert not trained_on & set(s.test_conditions)
    shares = np.unique(s.train_conditions, return_counts=True)[1] / 700
    assert shares.min() > 0.1, "conditions are uniformly distributed"


def test_test_set_of_the_data_is_kept():
    s = split(replace(LARGE, test_from=9000), Unit("clean", 3, 0))
    assert np.concatenate([s.train, s.validation]).max() < 9000 <= s.test.min()
    assert [len(s.train), len(s.validation), int((~s.anomalous).sum())] == [700, 100, 200]


def _error(digits, unit=None) -> str:
    with pytest.raises(UserError) as caught:
        split(digits, unit or Unit("clean", 3, 0))
    return str(caught.value)


def test_missing_digit():
    messages = _error(_digits(np.arange(900) % 3))
    assert messages.startswith("digit 3: missing from the labels, expected one of 0, 1, 2.")


def test_fewer_normal_digits_than_a_batch():
    messages = _error(_digits(np.arange(900) % 10))
    assert messages.startswith("digit 3: found 63 normal training digits, expected at least 64 (one batch).")


def test_no_anomalous_digits():
    assert "digit 3: found 60 normal and 0 anomalous test digits" in _error(_digits(np.full(300, 3)))


def test_no_test_corruptions():
    trained_on, _ = conditions_of(Unit("shifted", 3, 0), CONDITIONS)
    digits = replace(LARGE, missing=tuple(name for name in CORRUPTIONS if name not in trained_on))
    assert "found no test corruptions" in _error(digits, Unit("shifted", 3, 0))
