"""From a trained encoder to a fitted model, and from a model to the maps of one subject."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.volume import Volume, read_grid, read_mask, write_volume
from ...evaluation.metrics.fdr import log_p, log_q
from ...models.anomaly.ensemble import AnomalyModel
from ...models.anomaly.fit import fit_anomaly_model
from ...models.encoder.checkpoint import Checkpoint
from ...models.features.source import FeatureSource
from ...preprocessing.intensity.channels import Channels
from ...preprocessing.patches.volume_store import VolumeStore
from ...preprocessing.patches.voxel_mask import VoxelMask
from ...preprocessing.prepared_images import PreparedImages
from ...preprocessing.registration.template_transform import TemplateTransform
from ..config.config import Config
from ..workflow.console import Progress

_BRAIN_MASK = "brain_mask.nii.gz"


def fit_model(
    config: Config, out: OutputFolder, train: Sequence[SubjectRecord], *, device: str, jobs: int, progress: Progress
) -> AnomalyModel:
    """Fit and calibrate every reader on the training controls; write them."""
    store = VolumeStore.open(out.patches)
    source = _sight(config, Channels.load(out.patches), out, device)
    keys = [subject.key for subject in train]
    ensemble = fit_anomaly_model(
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
    # Where the locations lie, and how the channels are made: with these, a model travels without its scans.
    source.channels.save(out.detectors)
    write_volume(out.detectors / _BRAIN_MASK, Volume(store.grid.brain_mask, store.grid.grid))
    return ensemble


def map_subject(
    subject: SubjectRecord, config: Config, out: OutputFolder, model: OutputFolder, device: str
) -> tuple[list[Path], tuple[str, ...]]:
    """Read one subject at every location; write the template map, the native map and their coverages; of an
    ensemble, how far its members lie apart; and, where the settings ask for them, the maps of p and q.

    Returns
    -------
    list of Path
        The files written.
    tuple of str
        What the map could not be adjusted for.

    Raises
    ------
    UserError
        A part of the model is missing, or its parts do not belong together.
    """
    locations = read_mask(model.detectors / _BRAIN_MASK)
    grid = VoxelMask(locations.grid, locations.voxels)
    # The model's own channels: what is mapped has no say in their scale.
    source = _sight(config, Channels.load(model.detectors), model, device)
    if any(checkpoint.origin.mask_hash != grid.mask_hash for checkpoint in source.checkpoints):
        raise UserError(
            f"{private(model.root, 'the model')}: encoder and detectors are of different brain masks. Fit the model "
            "again."
        )
    ensemble = AnomalyModel.load(model.detectors, grid, source, config.models)

    prepared = PreparedImages.from_record(subject, out, config.preprocessing.modalities)
    # A score means something where the model has a detector and the subject has brain.
    brain = prepared.read_brain_mask(grid.grid)
    prediction = ensemble.predict(
        source.channels.read(prepared, grid.grid), grid.transform(brain.voxels), subject, jobs=1
    )
    known = brain.with_voxels(grid.inverse_transform(prediction.inside))
    template_map = Volume(grid.inverse_transform(prediction.z), grid.grid)

    transform = TemplateTransform.load(out.transform_folder(subject))
    native = read_grid(subject.images["t1w"])
    native_map, coverage = transform.scores_to_native(template_map, known, native)
    written = [
        write_volume(out.template_map(subject), template_map),
        write_volume(out.template_coverage(subject), known),
        write_volume(out.native_map(subject), native_map),
        write_volume(out.native_coverage(subject), coverage),
    ]
    if prediction.ensemble_sd is not None:
        ensemble_sd, _ = transform.scores_to_native(
            Volume(grid.inverse_transform(prediction.ensemble_sd), grid.grid), known, native
        )
        written.append(write_volume(out.spread_map(subject), ensemble_sd))
    if config.evaluation.p_maps:
        written += _write_p_maps(out.p_maps(out.template_map(subject)), template_map, known)
        written += _write_p_maps(out.p_maps(out.native_map(subject)), native_map, coverage)
    return written, ensemble.confounds.covariates.warnings(subject)


def _write_p_maps(paths: Sequence[Path], z: Volume, covered: Volume) -> list[Path]:
    """-log10 p and -log10 q where the map carries a score, 0 elsewhere."""
    brain, written = covered.voxels, []
    for path, residualised in zip(paths, (log_p, log_q), strict=True):
        values = np.zeros(brain.shape, np.float32)
        values[brain] = residualised(z.voxels[brain])
        written.append(write_volume(path, z.with_voxels(values)))
    return written


def _sight(config: Config, channels: Channels, model: OutputFolder, device: str) -> FeatureSource:
    ensemble = config.models.ensemble
    folders = [model.member(number) for number in range(ensemble.members)] if ensemble.needs_encoder else []
    return FeatureSource(channels, tuple(Checkpoint.load(folder, device=device) for folder in folders), device)
