"""How fast this machine is beside the one that the figures of `plan_figures` were measured on."""

import time

import numpy as np

from .plan_figures import PROBE_S

_REPEATS = 3


def probe_s() -> float:
    """Return the CPU seconds of a short piece of work like that of the stages: filters, products, sorting.

    The shortest of three repeats, on one thread, so that other programs on the machine hardly matter.
    """
    from scipy import ndimage  # here, since `voxout --help` does not need it

    random = np.random.default_rng(0)
    image = random.normal(size=(96, 96, 96)).astype(np.float32)
    latents = random.normal(size=(2000, 40, 16)).astype(np.float32)
    times = []
    for _ in range(_REPEATS):
        began = time.thread_time()
        for sigma in (1.0, 3.0):
            ndimage.gaussian_filter(image, sigma)
        ndimage.map_coordinates(image[::2, ::2, ::2], np.indices((48, 48, 48)) * 0.9, order=1)
        np.exp(-np.einsum("vnd,vmd->vnm", latents, latents, optimize=False)[:, :8] * 0.001)
        np.sort(image, axis=None)
        times.append(time.thread_time() - began)
    return min(times)


def slowness() -> float:
    """Return how many times as long this machine takes; between 0.2 and 5."""
    return float(np.clip(probe_s() / PROBE_S, 0.2, 5))
