"""Fixtures that the tests of models share."""

import shutil
from pathlib import Path

import pytest

from .small_model import fit_small_model


@pytest.fixture(scope="session")
def fitted(tmp_path_factory) -> Path:
    """The folder of a small model; not to be changed."""
    return fit_small_model(tmp_path_factory.mktemp("fitted") / "model")


@pytest.fixture
def model(fitted, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(fitted, tmp_path / "model"))
