"""Who is normal, who trains, who tests: the two protocols, exactly.

One digit is normal, the nine others are anomalous; every digit has its turn.

- Of each class at most 1,000 digits take part, in an order drawn by ``default_rng((seed, digit))``: 70 % train, 10 %
  validate, 20 % test. Data with a test set of its own keep it: 700 and 100 from the one, 200 from the other.
- The anomalous digits are the first of the other classes' test digits, evenly many of each, as many as there are normal
  test digits: guessing has an AUROC and an average precision of 0.5.
- ``clean``: trains on clean digits, tests under every condition (normal and anomalous digits alike are corrupted).
- ``shifted``: the 15 corruptions are put in an order by ``default_rng((seed // 3, 15))`` and cut into three fives. Seed
  s trains on clean digits and on five ``s % 3``, each digit under one of these six conditions, drawn by
  ``default_rng((seed, digit, 6))``; it tests on the ten corruptions it has not seen. Over three seeds, every
  corruption is unseen twice.

The authors' own split is not public. A digit's corruption is drawn once, with seed 0, as MNIST-C's was: it is the same
for all seeds, methods and protocols.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from voxout.data_manifests.errors import UserError

from benchmarks.mnist_c.corruptions import CLEAN, CORRUPTIONS
from benchmarks.mnist_c.digits import CLASSES, Digits

PROTOCOLS = ("clean", "shifted")
BATCH = 64
PER_CLASS = 1000
_TRAIN, _VALIDATION = 0.7, 0.1


@dataclass(frozen=True)
class Unit:
    """One digit, one seed, one protocol: all methods meet the same digits in it."""

    protocol: str
    digit: int
    seed: int

    def __str__(self) -> str:
        return f"{self.protocol}, digit {self.digit}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of a unit's digits, and the conditions that they are seen under.

    Attributes
    ----------
    train, validation : ndarray of int
        Normal.
    train_conditions, validation_conditions : tuple of str
        One a row.
    test : ndarray of int
        Normal and anomalous, each under every one of `test_conditions`.
    anomalous : ndarray of bool
        Of `test`.
    test_conditions : tuple of str
    """

    train: np.ndarray
    validation: np.ndarray
    train_conditions: tuple[str, ...]
    validation_conditions: tuple[str, ...]
    test: np.ndarray
    anomalous: np.ndarray
    test_conditions: tuple[str, ...]


def split(digits: Digits, unit: Unit) -> Split:
    """Deal out the digits of one unit.

    Raises
    ------
    UserError
        The digit is absent, it has fewer training digits than a batch holds, or there is nothing to test.
    """
    train, validation, normal = _parts(digits, unit.digit, unit.seed)
    if len(train) + len(validation) + len(normal) == 0:
        present = ", ".join(str(c) for c in np.unique(digits.labels))
        raise UserError(
            f"digit {unit.digit}: is absent from the labels, which hold {present}. Name others in --digits."
        )
    if len(train) < BATCH:
        raise UserError(
            f"digit {unit.digit}: {len(train)} normal digits to train on, expected at least {BATCH}, which is a batch. "
            "Add digits, or name others in --digits."
        )
    others = [c for c in CLASSES if c != unit.digit and (digits.labels == c).any()]
    evenly = max(round(len(normal) / max(len(others), 1)), 1)
    anomalous = [_parts(digits, c, unit.seed)[2][:evenly] for c in others]
    if len(normal) == 0 or sum(map(len, anomalous)) == 0:
        raise UserError(
            f"digit {unit.digit}: {len(normal)} normal and {sum(map(len, anomalous))} anomalous digits to test, "
            "expected some of both. Add digits of other classes."
        )
    seen, tested = conditions_of(unit, digits.conditions)
    if not tested:
        raise UserError(
            f"{unit}: no corruption is left to test on, expected at least one that training has not seen. "
            "Unpack all of MNIST-C."
        )
    random = np.random.default_rng((unit.seed, unit.digit, 6))
    drawn = [seen[k] for k in random.integers(len(seen), size=len(train) + len(validation))]
    return Split(
        train=train,
        validation=validation,
        train_conditions=tuple(drawn[: len(train)]),
        validation_conditions=tuple(drawn[len(train) :]),
        test=np.concatenate([normal, *anomalous]),
        anomalous=np.repeat([False, True], [len(normal), sum(map(len, anomalous))]),
        test_conditions=tested,
    )


def conditions_of(unit: Unit, available: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Conditions to train on and conditions to test on, of those there are."""
    if unit.protocol == "clean":
        return (CLEAN,), tuple(available)
    order = np.random.default_rng((unit.seed // 3, 15)).permutation(list(CORRUPTIONS))
    third = unit.seed % 3
    seen = set(order[5 * third : 5 * third + 5])
    return (
        (CLEAN, *(name for name in CORRUPTIONS if name in seen and name in available)),
        tuple(name for name in CORRUPTIONS if name not in seen and name in available),
    )


def _parts(digits: Digits, digit: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of one class that train, validate and test."""
    rows = np.random.default_rng((seed, digit)).permutation(np.flatnonzero(digits.labels == digit))
    if digits.test_from is None:
        rows = rows[:PER_CLASS]
        n_fitted = round((_TRAIN + _VALIDATION) * len(rows))
        fitted, test = rows[:n_fitted], rows[n_fitted:]
    else:
        n_fitted = round((_TRAIN + _VALIDATION) * PER_CLASS)
        fitted = rows[rows < digits.test_from][:n_fitted]
        test = rows[rows >= digits.test_from][: PER_CLASS - n_fitted]
    n_train = round(_TRAIN / (_TRAIN + _VALIDATION) * len(fitted))
    return fitted[:n_train], fitted[n_train:], test
