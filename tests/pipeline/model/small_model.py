"""A small model, as written by the stage fit: an untrained encoder, and scorers fitted to ten brains of noise."""

import shutil
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume, write_volume
from voxout.models.anomaly.fit import fit_ensemble
from voxout.models.encoder.checkpoint import Checkpoint, Origin, build_autoencoder
from voxout.models.encoder.patch_shape import PatchShape
from voxout.models.features.source import FeatureSource
from voxout.pipeline.config.config import Config, save_config
from voxout.pipeline.model.model_files import write_model_record
from voxout.pipeline.model.whole_model import FORMAT, MODEL_FORMAT
from voxout.pipeline.workflow.records import StageRecord, sizes, write_json
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.intensity.standardisation import IntensityScale
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.patches.voxel_mask import VoxelMask

SHAPE = (12, 12, 12)
MASK = np.zeros(SHAPE, bool)
MASK[2:-2, 2:-2, 2:-2] = True
GRID = VoxelMask(Grid(SHAPE, np.diag([4.0, 4, 4, 1])), MASK)
SETTINGS = {
    "preprocessing": {"spacing_mm": 4.0, "modalities": ["t1w"]},
    "models": {
        "encoder": {"patch_size_mm": 12.0, "latent_size": 4},
        "ensemble": {"scorers": ["ocsvm", "intensity", "prototypes"], "brain_components": 1},
    },
}
CONTROLS = 10


def brains(count: int, seed: int = 0) -> np.ndarray:
    """Volumes of smooth noise, (count, 1, X, Y, Z)."""
    random = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(random.normal(size=(count, 1, *SHAPE)), (0, 0, 1, 1, 1))
    return (0.5 + 0.1 * noise / noise.std()).clip(0, 1).astype(np.float16) * MASK


def fit_small_model(
    root: Path,
    *,
    name: str = "",
    settings: dict | None = None,
    ages: tuple[float, ...] = (),
    seed: int = 0,
    keep_controls: bool = False,
) -> Path:
    """Fit and write the model.

    Parameters
    ----------
    root : Path
    name : str
        Part of the ids of the controls.
    settings : dict, optional
        `SETTINGS` by default.
    ages : tuple of float
        Of the controls, of which there are at least as many.
    seed : int
    keep_controls : bool
        Keep what a run keeps of its controls: their volumes, latents and cross-validated scores.
    """
    model, config = OutputFolder(root), Config.model_validate(settings or SETTINGS)
    controls = max(CONTROLS, len(ages))
    keys = tuple(f"sub-{name}{number:02}" for number in range(controls))
    store = VolumeStore(None, keys, ("t1w",), GRID, brains(controls, seed), np.broadcast_to(MASK, (controls, *SHAPE)))
    channels = Channels(IntensityScale("percentiles", {"t1w": (0.0, 1.0)}))
    origin = Origin(("t1w",), (PatchShape("volume", 3),), 4.0, GRID.mask_hash, f"{name}subjects", 0)
    torch.manual_seed(2)
    autoencoder = build_autoencoder(config.models, origin)
    Checkpoint(autoencoder, {}, config.models, origin, 5, ()).save(model.encoder)
    train = StageRecord("train", {}, sizes(model.root, [model.encoder]), started="then")
    train.write(model.record("train"))
    source = FeatureSource(channels, (Checkpoint.load(model.encoder),))
    participants = [
        SubjectRecord(key.removeprefix("sub-"), "control", {}, age=age) for key, age in zip(keys, ages, strict=False)
    ]
    ensemble = fit_ensemble(
        store, keys, source, config.models, model.latents, seed=0, participants=participants, jobs=1
    )
    ensemble.save(model.detectors)
    channels.save(model.detectors)
    write_volume(model.detectors / "brain_mask.nii.gz", Volume(MASK, GRID.grid))
    save_config(model.fitted_config, config)
    write_json(model.trained_on, ["0123456789abcdef"])
    write_model_record(model, encoders=True)
    inputs = {MODEL_FORMAT: FORMAT, "the encoder": train.identity}
    StageRecord("fit", inputs, sizes(model.root, [model.detectors]), started="later").write(model.record("fit"))
    if keep_controls:
        _write_store(model.patches, store, channels)
    else:
        shutil.rmtree(model.latents)
    return model.root


def _write_store(folder: Path, store: VolumeStore, channels: Channels) -> None:
    channels.save(folder)
    for name, array in (("volumes", store.volumes), ("inside", store.inside), ("brain_mask", MASK)):
        np.save(folder / f"{name}.npy", array)
    index = {"keys": store.keys, "channels": store.channels, "affine": GRID.grid.affine.tolist()}
    write_json(folder / "store.json", index | {"qform_code": 1, "sform_code": 1, "mask_hash": GRID.mask_hash})
