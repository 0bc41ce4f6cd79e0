"""Definition of the two protocols: normal class, training, validation and test digits.

One digit is normal, the nine others are anomalous; each digit is used as the normal class.

- At most 1,000 digits per class are used, in an order drawn by ``default_rng((seed, digit))``: 70 % for training, 10 %
  for validation, 20 % for test. If the data have a test set, 700 and 100 are from the training set and 200 from the
  test set.
- The anomalous digits are the first test digits of the other classes, equally many of each, in total as many as normal
  test digits. Chance level is thus 0.5 for AUROC and average precision.
- ``clean``: training on clean digits, test under every condition (both normal and anomalous digits are corrupted).
- ``shifted``: the 15 corruptions are ordered by ``default_rng((seed // 3, 15))`` and divided into three groups of five.
  With seed s, training digits are clean or have a corruption of group ``s % 3``: each digit is under one of these six
  conditions, drawn by ``default_rng((seed, digit, 6))``. The test is on the other ten corruptions. Over three seeds,
  every corruption is tested twice.

The split of the authors is not public. The corruption of a digit is drawn once with seed 0, as in MNIST-C, and is equal
for all seeds, methods and protocols.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from voxout.data_manifests.errors import UserError

from .corruptions import CLEAN, CORRUPTIONS
from .digits import CLASSES, Digits

PROTOCOLS = ("clean", "shifted")
BATCH = 64
PER_CLASS = 1000
_TRAIN, _VALIDATION = 0.7, 0.1


@dataclass(frozen=True)
class Unit:
    """Combination of protocol, normal digit and seed, with the same digits for all methods."""

    protocol: str
    digit: int
    seed: int

    def __str__(self) -> str:
        return f"{self.protocol}, digit {self.digit}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of the digits of a unit, and their conditions.

    Attributes
    ----------
    train, validation : ndarray of int
        Normal digits.
    train_conditions, validation_conditions : tuple of str
        One per row.
    test : ndarray of int
        Normal and anomalous digits, each tested under all of `test_conditions`.
    anomalous : ndarray of bool
        Whether each digit of `test` is anomalous.
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
    """Split the digits of one unit.

    Raises
    ------
    UserError
        The digit is missing, there are fewer training digits than a batch, or there is nothing to test.
    """
    train, validation, normal = _parts(digits, unit.digit, unit.seed)
    if len(train) + len(validation) + len(normal) == 0:
        present = ", ".join(str(c) for c in np.unique(digits.labels))
        raise UserError(f"digit {unit.digit}: missing from the labels, expected one of {present}. Correct --digits.")
    if len(train) < BATCH:
        raise UserError(
            f"digit {unit.digit}: found {len(train)} normal training digits, expected at least {BATCH} (one batch). "
            "Add digits, or change --digits."
        )
    others = [c for c in CLASSES if c != unit.digit and (digits.labels == c).any()]
    evenly = max(round(len(normal) / max(len(others), 1)), 1)
    anomalous = [_parts(digits, c, unit.seed)[2][:evenly] for c in others]
    if len(normal) == 0 or sum(map(len, anomalous)) == 0:
        raise UserError(
            f"digit {unit.digit}: found {len(normal)} normal and {sum(map(len, anomalous))} anomalous test digits, "
            "expected some of both. Add digits of other classes."
        )
    trained_on, tested = conditions_of(unit, digits.conditions)
    if not tested:
        raise UserError(
            f"{unit}: found no test corruptions, expected at least one that is not used for training. "
            "Unpack all of MNIST-C."
        )
    random = np.random.default_rng((unit.seed, unit.digit, 6))
    drawn = [trained_on[k] for k in random.integers(len(trained_on), size=len(train) + len(validation))]
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
    """Available conditions for training and for test."""
    if unit.protocol == "clean":
        return (CLEAN,), tuple(available)
    order = np.random.default_rng((unit.seed // 3, 15)).permutation(list(CORRUPTIONS))
    third = unit.seed % 3
    chosen = set(order[5 * third : 5 * third + 5])
    return (
        (CLEAN, *(name for name in CORRUPTIONS if name in chosen and name in available)),
        tuple(name for name in CORRUPTIONS if name not in chosen and name in available),
    )


def _parts(digits: Digits, digit: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of one class for training, validation and test."""
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
