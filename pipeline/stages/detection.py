"""Fit a model with trained encoders, and map one subject with a fitted model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.images.volume import Volume, write_volume
from ...evaluation.metrics.fdr import log_p, log_q
from ...models.anomaly.ensemble import Ensemble
from ...models.anomaly.fit import fit_ensemble
from ...preprocessing.intensity.channels import Channels
from ...preprocessing.patches.volume_store import VolumeStore
from ..config.config import Config
from ..model.anomaly_model import BRAIN_MASK, feature_source, model_of_process
from ..workflow.console import Progress
from ..workflow.records import StageRecord


def fit_model(
    config: Config, out: OutputFolder, train: Sequence[SubjectRecord], *, device: str, jobs: int, progress: Progress
) -> Ensemble:
    """Fit and calibrate all scorers on the training controls, and save them."""
    store = VolumeStore.open(out.patches)
    source = feature_source(config, Channels.load(out.patches), out, device)
    keys = [subject.key for subject in train]
    ensemble = fit_ensemble(
        store,
        keys,
        source,
        config.models,
        out.latents,
        seed=config.seed,
        participants=train,
        jobs=jobs,
        progress=progress,
    )
    ensemble.save(out.detectors)
    # With the brain mask and the channels, a model can be applied without its training scans.
    source.channels.save(out.detectors)
    write_volume(out.detectors / BRAIN_MASK, Volume(store.grid.brain_mask, store.grid.grid))
    return ensemble


def map_subject(
    subject: SubjectRecord, config: Config, out: OutputFolder, model: OutputFolder, device: str
) -> tuple[list[Path], tuple[str, ...]]:
    """Score one subject at every voxel of the mask, and write its maps.

    These are the template map, the native map and their coverages; for several encoders, the standard deviation over
    them; and, with `evaluation.p_maps`, maps of -log10 p and -log10 q.

    Returns
    -------
    list of Path
        The files written.
    tuple of str
        Warnings about covariates that the map could not be adjusted for.

    Raises
    ------
    UserError
        A part of the model is missing, or its parts do not match.
    """
    fitted = StageRecord.read(model.record("fit"))
    loaded = model_of_process(model.root, fitted.identity if fitted else "", config, device)
    found = loaded.map_prepared(subject, out, jobs=1)
    written = found.write(out, subject)
    if config.evaluation.p_maps:
        written += _write_p_maps(out.p_maps(out.template_map(subject)), found.template_z_map, found.template_coverage)
        written += _write_p_maps(out.p_maps(out.native_map(subject)), found.z_map, found.coverage)
    return written, found.warnings


def _write_p_maps(paths: Sequence[Path], z: Volume, covered: Volume) -> list[Path]:
    """Write -log10 p and -log10 q where the map is covered, 0 elsewhere."""
    brain, written = covered.voxels, []
    for path, convert in zip(paths, (log_p, log_q), strict=True):
        values = np.zeros(brain.shape, np.float32)
        values[brain] = convert(z.voxels[brain])
        written.append(write_volume(path, z.with_voxels(values)))
    return written
