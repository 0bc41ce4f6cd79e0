"""Cost of guidance as a fraction of a training step.

    python benchmarks/training.py --run OUT [--set models.guidance.gamma=0.1/d]

OUT is an output folder of ``voxout run`` or ``voxout extract``, whose patches are used for training with the default
settings. A guided step is compared with a step on the same co-located patches without guidance (a siamese term of
weight 1e-9 instead): medians of CPU time of interleaved runs (A, B, A, B, ...) in one process with one thread.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.models.encoder.training import train_encoder
from voxout.models.settings import ModelSettings
from voxout.pipeline.config.config import load_config
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.patches.volume_store import VolumeStore

_STEPS, _ROUNDS = 60, 4
_WARM_UP = 10


def step_times(store: VolumeStore, settings: ModelSettings) -> list[float]:
    """CPU seconds of each guided step after the warm-up."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train_encoder(
            store,
            settings,
            Path(folder) / "encoder",
            train=store.keys,
            held_out=(),
            seed=0,
            progress=lambda done, total: ends.append(time.process_time()),
        )
    # The first step is pre-training.
    return list(np.diff(ends)[1 + _WARM_UP :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    patches = OutputFolder(options.run).patches
    short = [f"models.training.guided_steps={_STEPS}", "models.training.pretraining_steps=1"]
    guided = load_config(overrides=[*options.set, *short]).models
    bare = load_config(
        overrides=[*options.set, *short, "models.guidance.weight=0", "models.training.siamese_weight=1e-9"]
    ).models
    store = VolumeStore.open(patches).only(Channels.load(patches).chosen(guided.encoder.channels))
    print(f"{platform.processor() or platform.machine()}, one thread; {len(store.keys)} controls, ", end="")
    print(f"{len(store.channels)} channels at {store.grid.grid.spacing_mm[0]:g} mm")
    times: dict[str, list[float]] = {"guided": [], "bare": []}
    for _ in range(_ROUNDS):
        times["guided"] += step_times(store, guided)
        times["bare"] += step_times(store, bare)
    with_guidance, without = (float(np.median(times[name])) * 1e3 for name in ("guided", "bare"))
    print(f"guided step {with_guidance:.1f} ms, without guidance {without:.1f} ms: ", end="")
    print(f"guidance is {1 - without / with_guidance:.1%} of the step (goal 15 %)")


if __name__ == "__main__":
    main()
