"""What a GPU gains over the processor, and whether both compute the same, on random data; at most ten minutes.

    python benchmarks/gpu.py [--device cuda] [--controls 60] [--voxels 40000]

Three parts use the device (`--device` of the commands): the dense encoding of a brain, the guidance loss and its
gradient in the training, and the fit of the one-class SVMs of all folds with whitening and scores of the controls. Each
is computed by the processor and by the device: the median of three times after an uncounted one, the ratio, and the
largest difference in standard deviations of the result. Last, the tests of the device path are run
(`tests/models/anomaly/test_device.py`). Without the device, this says so and ends with exit code 2; ``--device cpu``
runs the device path, that of torch, on the processor, to try the command with few voxels.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from voxout.data_manifests.images.grid import Grid
from voxout.models.anomaly.one_pass import OnePass
from voxout.models.anomaly.scorers import SvmParts
from voxout.models.encoder.checkpoint import Origin, build_autoencoder
from voxout.models.encoder.dense_inference import encode_densely
from voxout.models.encoder.patch_shape import PatchShape
from voxout.models.features.subsets import Subsets
from voxout.models.ocsvm.guidance_loss import guidance_loss
from voxout.models.settings import ModelSettings
from voxout.preprocessing.patches.voxel_mask import VoxelMask

Compute = Callable[[], np.ndarray]
_ROUNDS, _FOLDS, _CONFOUNDS, _SIZE = 3, 5, 9, 16
_LARGEST_DIFFERENCE = 1e-3
TESTS = Path(__file__).resolve().parents[1] / "tests" / "models" / "anomaly" / "test_device.py"


def brain(voxels: int, spacing_mm: float) -> VoxelMask:
    """Return a ball of about so many voxels."""
    edge = int(np.ceil((6 * voxels / np.pi) ** (1 / 3))) + 2
    places = np.indices((edge,) * 3) - (edge - 1) / 2
    inside = np.linalg.norm(places, axis=0) <= (3 * voxels / (4 * np.pi)) ** (1 / 3)
    return VoxelMask(Grid((edge,) * 3, np.diag([spacing_mm] * 3 + [1.0])), inside)


def encoding(mask: VoxelMask, device: torch.device) -> tuple[Compute, Compute]:
    torch.manual_seed(0)
    origin = Origin(("t1w",), (PatchShape("volume", 3),), 2.0, mask.mask_hash, "", 0)
    autoencoder = build_autoencoder(ModelSettings(), origin)
    autoencoder((torch.rand(256, 1, 3, 3, 3),))  # updates the batch-norm statistics
    encoder, image = autoencoder.eval().encoder, torch.rand(1, *mask.grid.size_vox)

    def encode(on: torch.device | str) -> np.ndarray:
        return encode_densely(encoder, image, mask, device=on).numpy()

    return lambda: encode("cpu"), lambda: encode(device)


def guidance(device: torch.device) -> tuple[Compute, Compute]:
    drawn = torch.from_numpy(np.random.default_rng(0).normal(size=(1024, 50, _SIZE)))

    def gradient(on: torch.device | str) -> np.ndarray:
        latents = drawn.to(on).requires_grad_()
        guidance_loss(latents[:, :38], latents[:, 38:], nu=0.1, gamma="scale").sum().backward()
        assert latents.grad is not None
        return latents.grad.cpu().numpy()

    return lambda: gradient("cpu"), lambda: gradient(device)


def fit(mask: VoxelMask, controls: int, device: torch.device) -> tuple[Compute, Compute]:
    random = np.random.default_rng(0)
    features = random.normal(size=(controls, mask.size, _SIZE)).astype(np.float16)
    confounds = [random.normal(size=(controls, _CONFOUNDS)) for _ in range(_FOLDS + 1)]
    subsets = Subsets([np.arange(first, controls, _FOLDS) for first in range(_FOLDS)], confounds)

    def scores(on: torch.device | None) -> np.ndarray:
        null = np.zeros((controls, mask.size), np.float32)
        parts = SvmParts(ModelSettings().detector, _SIZE)
        OnePass(mask, subsets, device=on).fit(lambda chosen: features[chosen], parts, null)
        return null

    return lambda: scores(None), lambda: scores(device)


def timed(compute: Compute) -> tuple[np.ndarray, float]:
    """Return the result and the median of the seconds."""
    result, seconds = compute(), []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        result = compute()
        seconds.append(time.perf_counter() - began)
    return result, float(np.median(seconds))


def main() -> int:
    """Print the table; return 1 if the results differ or a test fails, 2 without the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--controls", type=int, default=60)
    parser.add_argument("--voxels", type=int, default=40_000, help="of the fit")
    options = parser.parse_args()
    device: torch.device = options.device
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is usable here: nothing was measured. --device cpu tries the command.")
        return 2
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "torch on the processor"
    print(f"{name}, torch {torch.__version__}; processor with {torch.get_num_threads()} threads\n")
    print("| | processor, s | device, s | times as fast | largest difference, SD |\n|---|---|---|---|---|")
    good = True
    for what, (by_processor, by_device) in {
        "encoding of a brain at 2 mm": encoding(brain(235_000, 2.0), device),
        "encoding of a brain at 1 mm": encoding(brain(1_880_000, 1.0), device),
        "guidance loss and gradient, 1,024 voxels": guidance(device),
        f"fit, {options.controls} controls, {options.voxels:,} voxels": fit(
            brain(options.voxels, 2.0), options.controls, device
        ),
    }.items():
        (expected, processor_s), (found, device_s) = timed(by_processor), timed(by_device)
        difference = float(np.abs(found - expected).max() / expected.std())
        good &= difference < _LARGEST_DIFFERENCE
        ratio = processor_s / device_s
        print(f"| {what} | {processor_s:.2f} | {device_s:.2f} | {ratio:.1f} | {difference:.1g} |", flush=True)
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n0", str(TESTS)], check=False)
    return 0 if good and tests.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
