import os

import numpy as np
from voxout.models.ocsvm.numba_solver.active_set import _factorise, substitute
from voxout.models.ocsvm.numba_solver.jit import _forget_outdated
from voxout.models.ocsvm.numba_solver.kernel_rows import expm1_negative
from voxout.models.ocsvm.numba_solver.workspace import make_workspace


def test_expm1_negative():
    x = np.concatenate([[0.0], 10.0 ** np.random.default_rng(0).uniform(-300, 3, 5000)])
    values = np.array([expm1_negative(v) for v in x])
    np.testing.assert_allclose(values, np.expm1(-x), rtol=1e-15)


def test_newton_system_agrees_with_numpy():
    rng = np.random.default_rng(0)
    # From large to small and back: values left from a larger system must not be used.
    work = make_workspace(40)
    for n in (40, 3, 9, 2, 1, 33, 17):
        z = rng.normal(size=(40, 5))
        kernel = np.expm1(-0.1 * ((z[:, None] - z) ** 2).sum(axis=-1))
        work.rows[:, :40] = kernel
        free = rng.permutation(40)[:n]
        work.free[:n] = free
        pivot = free[-1]
        inner = free[:-1]
        system = (
            kernel[np.ix_(inner, inner)] - kernel[inner, pivot][:, None] - kernel[pivot, inner] + kernel[pivot, pivot]
        )
        right = rng.normal(size=n - 1)
        _factorise(work, n - 1, 1e-14)
        work.step[: n - 1] = right
        substitute(work, n - 1)
        np.testing.assert_allclose(system @ work.step[: n - 1], right, atol=1e-9)


def test_outdated_cache_files_are_deleted(tmp_path):
    # Numba checks the file that defines a function, not the files of inlined helper functions.
    cache = tmp_path / "__pycache__"
    cache.mkdir()
    for name, age in (("helper.py", 10), ("caller.py", 100)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    for name, age in (("caller.old.nbi", 50), ("caller.new.nbi", 5)):
        (cache / name).touch()
        os.utime(cache / name, (1000 - age, 1000 - age))
    _forget_outdated(tmp_path)
    assert [index.name for index in cache.iterdir()] == ["caller.new.nbi"]
