"""Digits for tests, and one thread for networks this small."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from voxout.pipeline.mnist_c.digits import Digits, read_digits


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> Digits:
    """The ones that scikit-learn carries."""
    return read_digits(None)


@pytest.fixture(scope="session")
def some_images(digits) -> np.ndarray:
    return np.asarray(digits.images[:40])
