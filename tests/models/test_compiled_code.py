"""Compiled code gives the same numbers, to the bit, where it was just compiled and where it comes from the cache."""

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from voxout.models.features import kernels as features
from voxout.models.ocsvm.guidance_loss import guidance_loss
from voxout.models.ocsvm.voxelwise import fit_detectors
from voxout.models.prototypes import kernels as prototypes


def whitened() -> np.ndarray:
    """Four confounds and more are regressed out by a function that another compiled function calls."""
    random = np.random.default_rng(0)
    n, d, k, subjects = 100, 3, 5, 29
    values = random.normal(size=(subjects, n, d)).astype(np.float32)
    confounds = random.normal(size=(k, subjects)).astype(np.float32)
    slopes = random.normal(size=(k, n, d)).astype(np.float32)
    factors = random.normal(size=(n, d * (d + 1) // 2)).astype(np.float32)
    out = np.empty_like(values)
    features.whiten(values, np.arange(subjects), 0, confounds, slopes, values.mean(axis=0), factors, out)
    return out


def detected() -> np.ndarray:
    latents = np.random.default_rng(0).normal(size=(40, 200, 6)).astype(np.float32)
    field = fit_detectors(latents, nu=0.2, gamma=0.05, jobs=1)
    return np.concatenate([field.arrays.dual_coef.ravel(), np.ravel(field.decision_function(latents, jobs=1))])


def guided() -> np.ndarray:
    random = np.random.default_rng(0)
    groups, rest = (torch.tensor(random.normal(size=(20, 30, 6)), requires_grad=True) for _ in range(2))
    loss = guidance_loss(groups, rest, nu=0.2, gamma=0.05)
    loss.sum().backward()
    assert groups.grad is not None
    return np.concatenate([loss.detach().numpy().ravel(), groups.grad.numpy().ravel()])


def clustered() -> np.ndarray:
    random = np.random.default_rng(0)
    samples = random.normal(size=(20, 6, 8, 5)).astype(np.float32)
    centres, factors = np.zeros((6, 4, 5), np.float32), np.zeros((6, 5, 5), np.float32)
    prototypes.fit_blocks(samples, np.arange(20), 5, 3, 0.1, 1e-3, 0, centres, factors)
    distances = np.empty(60, np.float32)
    prototypes.distances(samples[0].repeat(2, 1)[:, :10].reshape(60, 5), np.arange(60) % 6, centres, factors, distances)
    return np.concatenate([centres.ravel(), factors.ravel(), distances])


@pytest.mark.parametrize(
    "compute",
    [whitened, clustered, *(pytest.param(slow, marks=pytest.mark.slow) for slow in (detected, guided))],
)
def test_a_first_run_computes_what_later_ones_do(tmp_path, compute: Callable[[], np.ndarray]):
    """The first run on a machine had other maps than its repetition: a helper was compiled twice, unlike."""
    program = (
        f"import sys; from {__name__} import {compute.__name__}; sys.stdout.buffer.write({compute.__name__}().data)"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    compiled, cached = (subprocess.run(command, env=environment, check=True, capture_output=True) for _ in range(2))
    assert list(tmp_path.rglob("*.nbc")), "the first one has compiled"
    assert compiled.stdout and compiled.stdout == cached.stdout
