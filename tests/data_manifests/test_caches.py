"""Compiled code is only cached in folders that no other user can write to."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from voxout.data_manifests import caches

CHOOSE = """
import os
from voxout.data_manifests.caches import choose_caches
choice = choose_caches()
print(choice.compiled, os.environ.get("NUMBA_CACHE_DIR", "-"), *choice.notes, sep="|")
from voxout.evaluation.metrics.kernels import _find
import numpy as np
assert _find(np.array([0, 0, 1]), 2) == 0  # quickly compiled
"""


def choose(*prefix, **environment):
    command = [*prefix, sys.executable, "-c", CHOOSE]
    clean = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=120, cwd="/")
    assert done.returncode == 0, done.stderr
    compiled, folder, *notes = done.stdout.strip().split("|")
    return compiled == "True", folder, " ".join(notes)


def test_private_numba_cache_dir_is_used(tmp_path):
    named = tmp_path / "named"
    assert choose(NUMBA_CACHE_DIR=str(named), HOME=str(tmp_path))[:2] == (True, str(named))
    assert list(named.rglob("*.nbi")) and stat.S_IMODE(named.stat().st_mode) == 0o700


def test_numba_cache_dir_writable_by_others_is_ignored(tmp_path):
    tmp_path.chmod(0o1777)
    _, folder, notes = choose(NUMBA_CACHE_DIR=str(tmp_path), HOME=str(tmp_path))
    assert folder != str(tmp_path) and "another user could write to it" in notes
    assert not list(tmp_path.glob("*.nbi"))


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_user_without_home_gets_a_temporary_private_folder():
    prefix = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
    for home in ({"HOME": "/nonexistent"}, {}):
        compiled, folder, notes = choose(*prefix, **home)
        assert compiled and "voxout-caches-" in folder and f"cached in {folder}" in notes
        assert not os.path.exists(folder)


def test_the_folders_of_compiled_code_are_those_that_hold_it():
    """Seen: after a move of modules, the package looked uncacheable, and every user got a cache elsewhere."""
    root = Path(caches.__file__).parents[1]
    using = {
        str(path.parent.relative_to(root))
        for folder in ("preprocessing", "models", "evaluation", "pipeline")
        for path in (root / folder).rglob("*.py")
        if re.search(r"data_manifests\.caches import .*compiled|caches\.compiled", path.read_text())
    }
    assert using == set(caches._COMPILED)
