"""Digits for tests."""

import numpy as np
import pytest

from benchmarks.mnist_c.digits import Digits, read_digits


@pytest.fixture(scope="session")
def digits() -> Digits:
    """The digits of scikit-learn."""
    return read_digits(None)


@pytest.fixture(scope="session")
def some_images(digits) -> np.ndarray:
    return np.asarray(digits.images[:40])
