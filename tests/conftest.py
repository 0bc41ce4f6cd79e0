"""Fixtures shared by several test folders."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real scans next to the checkout; tests that need it are skipped if it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real scans next to the checkout (../shared/data)")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch with one thread, which is fastest for small networks on shared cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
