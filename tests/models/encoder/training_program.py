"""Training of a small encoder with all terms: alone, or under torchrun, with its share of each batch.

``[torchrun --standalone --nproc-per-node 2] training_program.py OUT [KILLED_AT]``: folder, and the step after which the
last process kills itself.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Events
from scipy import ndimage
from voxout.models.encoder import contrast_term, training
from voxout.models.encoder.processes import ALONE, Processes
from voxout.models.settings import ModelSettings
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.intensity.standardisation import IntensityScale
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.patches.voxel_mask import VoxelMask
from voxout.preprocessing.registration.template import load_template

KEYS = tuple(f"sub-{number:02}" for number in range(14))
# Batches of odd sizes, so that the parts differ.
VOXELS, EDITED_VOXELS, PATCHES = 7, 25, 33
SETTINGS = ModelSettings.model_validate(
    {
        "encoder": {"latent_size": 4, "patch_size_mm": 18, "planes": ["axial", "coronal"]},
        "guidance": {"nu": 0.5},
        "contrast": {"weight": 0.5, "copies": 1},
        "training": {
            "pretraining_steps": 6,
            "guided_steps": 6,
            "patches_per_step": PATCHES,
            "checkpoint_every": 4,
            "siamese_weight": 0.1,
            "learning_rate": 3e-3,
        },
    }
)


def main(out: Path, killed_at: int = -1) -> None:
    torch.set_num_threads(1)
    training._VOXELS_PER_STEP, contrast_term._VOXELS_PER_STEP = VOXELS, EDITED_VOXELS
    processes = ALONE
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group("gloo")
        processes = Processes.joined("cpu")
    losses = {}

    class Watcher:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

        def __call__(self, engine):
            losses[engine.state.batch] = engine.state.output["loss"]
            if engine.state.batch + 1 == killed_at and processes.rank == processes.count - 1:
                os.kill(os.getpid(), signal.SIGKILL)

    store, channels = store_of_brains()
    arguments = {"train": KEYS[:12], "held_out": KEYS[12:], "seed": 3, "channels": channels}
    training.train_encoder(store, SETTINGS, out, handlers=[Watcher()], processes=processes, **arguments)
    if processes.leads:
        (out / "losses.json").write_text(json.dumps(losses))


def store_of_brains() -> tuple[VolumeStore, Channels]:
    """The template, plus smooth noise for each subject."""
    template, random = load_template(6.0), np.random.default_rng(0)
    channels = Channels(IntensityScale("percentiles", {"t1w": (0.0, 1.0)}), ())
    mask = VoxelMask(template.grid, template.brain_mask.voxels)
    noise = ndimage.gaussian_filter(random.normal(size=(len(KEYS), 1, *mask.grid.size_vox)), [0, 0, 0.7, 0.7, 0.7])
    images = np.clip(template.t1w.voxels + 0.04 * noise / noise.std(), 0, 1) * mask.brain_mask
    inside = np.array(np.broadcast_to(mask.brain_mask, (len(KEYS), *mask.grid.size_vox)))
    return VolumeStore(None, KEYS, channels.names, mask, images.astype(np.float16), inside), channels


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
