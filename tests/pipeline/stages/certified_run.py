"""A run in little: a model fitted to ten noisy template brains, its threshold, and held-out controls with maps."""

from pathlib import Path

import numpy as np
from scipy import ndimage
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.images.volume import Volume, write_volume
from voxout.evaluation.scoring.operating_point import StoredPoint
from voxout.models.anomaly.fit import NULL, fit_ensemble
from voxout.models.features.feature_store import LatentStore
from voxout.models.features.source import FeatureSource
from voxout.pipeline.config.config import Config, save_config
from voxout.pipeline.model.model_files import write_model_record
from voxout.pipeline.model.null_threshold import threshold_on
from voxout.pipeline.model.whole_model import FORMAT, MODEL_FORMAT
from voxout.pipeline.stages.map import write_maps
from voxout.pipeline.workflow.origin import Origin
from voxout.pipeline.workflow.records import StageRecord, file_fingerprint, sizes, write_json
from voxout.pipeline.workflow.stage_inputs import fit_identity
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.intensity.standardisation import IntensityScale
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.patches.voxel_mask import VoxelMask
from voxout.preprocessing.registration.template import load_template
from voxout.preprocessing.registration.template_transform import TemplateTransform

CONTROLS = 10
CONFIG = Config.model_validate(
    {
        "preprocessing": {"spacing_mm": 4.0, "modalities": ["t1w"], "intensity": {"method": "percentiles"}},
        "models": {"ensemble": {"scorers": ["intensity"], "brain_components": 0}},
        "evaluation": {"bootstrap_draws": 30},
    }
)
TEMPLATE = load_template(4.0)
MASK = VoxelMask(TEMPLATE.grid, TEMPLATE.brain_mask.voxels)
SHRINKAGE = 0.8


def brain(seed: int) -> np.ndarray:
    """Return the template with noise, in [0, 1], 0 outside the brain."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=TEMPLATE.grid.size_vox), 0.7)
    image = 0.9 * TEMPLATE.t1w.voxels + 0.03 * noise / noise.std()
    return np.where(MASK.brain_mask, image.clip(0, 1), 0).astype(np.float32)


def small_run(root: Path, *, held_out: int = 3, trained_on_them: bool = False) -> OutputFolder:
    """Fit the model, set its threshold, and prepare and map the held-out controls.

    With `trained_on_them`, the model says that it was fitted to the scans of these controls.
    """
    out, keys = OutputFolder(root), tuple(f"sub-{number:02}" for number in range(CONTROLS))
    brains = np.stack([brain(seed)[None] for seed in range(CONTROLS)]).astype(np.float16)
    inside = np.broadcast_to(MASK.brain_mask, (CONTROLS, *TEMPLATE.grid.size_vox))
    store = VolumeStore(None, keys, ("t1w",), MASK, brains, inside)
    channels = Channels(IntensityScale("percentiles", {"t1w": (0.0, 1.0)}))
    ensemble = fit_ensemble(store, keys, FeatureSource(channels, ()), CONFIG.models, out.latents, seed=0, jobs=1)
    ensemble.save(out.detectors)
    channels.save(out.detectors)
    write_volume(out.detectors / "brain_mask.nii.gz", Volume(MASK.brain_mask, MASK.grid))
    save_config(out.fitted_config, CONFIG)
    scans = [write_scan(out, "control", index) for index in range(held_out)] if trained_on_them else []
    write_json(out.trained_on, [file_fingerprint(scan) for scan in scans] or ["0123456789abcdef"])
    write_model_record(out, encoders=False)
    inputs = {MODEL_FORMAT: FORMAT, "the encoder": None}
    StageRecord("fit", inputs, sizes(root, [out.detectors]), started="then").write(out.record("fit"))
    set_threshold(out, keys)
    for index in range(held_out):
        add_control(out, index)
    return out


def set_threshold(out: OutputFolder, keys: tuple[str, ...]) -> None:
    null = LatentStore.open(out.latents / NULL, keys, MASK)

    def maps():
        for key in keys:
            yield np.where(MASK.brain_mask, MASK.inverse_transform(null.subject(key)[:, 0]), -np.inf).astype(np.float32)

    point = threshold_on(maps, keys, MASK.grid, CONFIG, ())
    StoredPoint.from_point(point, CONFIG.evaluation, fit_identity(out)).save(out.operating_point)


def write_scan(out: OutputFolder, group: str, index: int) -> Path:
    """Write the scan of a subject beside the run."""
    return write_volume(out.root.parent / f"scan-{group}{index}.nii.gz", Volume(brain(100 + index), TEMPLATE.grid))


def add_control(out: OutputFolder, index: int, *, group: str = "control") -> SubjectRecord:
    """Prepare and map a healthy scan."""
    scan = write_scan(out, group, index)
    subject = SubjectRecord(f"{group}{index}", group, {"t1w": scan}, age=40.0 + index)  # type: ignore[arg-type]
    mask = Volume(MASK.brain_mask, MASK.grid)
    for path, volume in (
        (out.prepared_image(subject, "t1w"), Volume(brain(100 + index), TEMPLATE.grid)),
        (out.prepared_brain_mask(subject), mask),
        (out.native_brain_mask(subject), mask),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(path, volume)
    smaller = np.diag([SHRINKAGE ** (1 / 3)] * 3 + [1.0])
    TemplateTransform.from_affine(smaller).save(out.transform_folder(subject))
    StageRecord("prepare", {"t1w": file_fingerprint(scan)}, {}).write(out.subject_record(subject))
    inputs = {"the detectors": fit_identity(out), "the threshold": 3.0}
    write_maps(subject, inputs, Origin(), CONFIG, out, out, "cpu")
    return subject
