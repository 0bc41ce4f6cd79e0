"""Blocks of latents in the float types of the compiled solver, processed in threads and returned in order.

Latents are an array, a memory map, or any object with `.shape` whose ``[:, a:b]`` returns a block as an array.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from ...data_manifests.images.memory_map import release_pages
from .numba_solver.detectors import widen_half


def in_order(function, count: int, step: int, jobs: int):
    """Yield (stop, function(start, stop)) over ``range(count)`` in order, at most a few blocks ahead."""
    step = max(min(step, -(-count // jobs)), 1)
    spans = [(start, min(start + step, count)) for start in range(0, count, step)]
    if jobs == 1 or len(spans) == 1:
        for start, stop in spans:
            yield stop, function(start, stop)
        return
    with ThreadPoolExecutor(jobs) as pool:
        waiting: deque = deque()
        try:
            for start, stop in spans:
                waiting.append((stop, pool.submit(function, start, stop)))
                if len(waiting) > 2 * jobs:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def read_block(latents, start: int, stop: int) -> Any:
    """Latents (N, stop - start, d) as float32 (float64 stays float64); tensors are returned unchanged."""
    block = latents[:, start:stop]
    return block if isinstance(block, torch.Tensor) else as_floats(np.asarray(block))


def as_floats(array: np.ndarray) -> np.ndarray:
    """Contiguous float64 for arrays of 8-byte numbers, else float32."""
    if array.dtype == np.float16:
        bits = np.ascontiguousarray(array).view(np.uint16)
        wide = np.empty(bits.shape, dtype=np.float32)
        widen_half(bits.reshape(-1), wide.reshape(-1))
        return wide
    return np.ascontiguousarray(array, dtype=np.float64 if array.dtype.itemsize == 8 else np.float32)


def as_halves(array: np.ndarray) -> np.ndarray:
    """Convert to float16, as numpy does, but with the processor's instructions."""
    if array.dtype != np.float32:
        return array.astype(np.float16)
    return torch.from_numpy(np.ascontiguousarray(array)).half().numpy()


def as_array(latents: torch.Tensor) -> np.ndarray:
    """Convert a tensor to an array on the CPU."""
    latents = latents.detach().cpu()
    return (latents.to(torch.float32) if latents.dtype == torch.bfloat16 else latents).numpy()


def release_latents(latents) -> None:
    """Release the pages of memory-mapped latents; copy-on-write maps are left alone."""
    if isinstance(latents, np.memmap) and latents.mode in ("r", "r+", "w+"):
        release_pages(latents)
