"""Fixtures shared by several test folders."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# A shell starts background jobs deaf to Ctrl-C, and nohup deaf to SIGHUP; the processes that tests start would be too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

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
