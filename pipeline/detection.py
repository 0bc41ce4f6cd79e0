"""From a trained encoder to detectors, and from detectors to the maps of one subject."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..data_manifests.derivatives import OutputFolder
from ..data_manifests.errors import UserError
from ..data_manifests.subject import SubjectRecord
from ..data_manifests.volume import Volume, read_grid, read_mask, write_volume
from ..models.anomaly_map import score_subject
from ..models.checkpoint import Checkpoint
from ..models.dense_encoding import encode_densely
from ..models.detector import DetectorField, fit_detectors
from ..models.latent_store import LatentStore
from ..models.settings import resolve_gamma
from ..models.whitening import WhitenedLatents, Whitening, fit_whitening
from ..preprocessing.channels import Channels
from ..preprocessing.patch_grid import PatchGrid
from ..preprocessing.patch_store import PatchStore
from ..preprocessing.prepared_images import PreparedImages
from ..preprocessing.template_transform import TemplateTransform
from .config import Config
from .console import Progress

_FIELD, _WHITENING, _BRAIN_MASK = "field", "whitening.safetensors", "brain_mask.nii.gz"


def fit_model(
    config: Config, out: OutputFolder, train: Sequence[str], *, device: str, jobs: int, progress: Progress
) -> DetectorField:
    """Encode every location of every training control; fit one one-class SVM a location; write both."""
    settings = config.models.detector
    checkpoint = Checkpoint.load(out.encoder, device=device)
    store, encoder = PatchStore.open(out.patches).only(checkpoint.origin.channels), checkpoint.encoder
    latents = LatentStore.create(out.latents, store.grid, encoder.code_size)
    for key, row in zip(train, store.index(train), strict=True):
        volume = torch.from_numpy(store.volumes[row].astype(np.float32))
        latents.write(key, encode_densely(encoder, volume, store.grid, device=device).numpy())
    codes = LatentStore.open(out.latents, train, store.grid)
    if settings.read_out == "whitened":
        whitening = fit_whitening(codes, store.grid, shrinkage=settings.shrinkage)
        whitening.save(out.detectors / _WHITENING)
        codes = WhitenedLatents(codes, whitening)
    detectors = fit_detectors(
        codes,
        nu=settings.nu,
        gamma=resolve_gamma(settings.gamma, encoder.code_size),
        jobs=jobs,
        precision=settings.precision,
        progress=progress,
    )
    detectors.save(out.detectors / _FIELD)
    # Where the locations lie, and how the channels are made: with these, a model travels without its scans.
    Channels.load(out.patches).save(out.detectors)
    write_volume(out.detectors / _BRAIN_MASK, Volume(store.grid.brain_mask, store.grid.grid))
    return detectors


def map_subject(
    subject: SubjectRecord, config: Config, out: OutputFolder, model: OutputFolder, device: str
) -> list[Path]:
    """Score every location of one subject; write the template map, the native map and its coverage.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    UserError
        A part of the model is missing, or its parts do not belong together.
    """
    locations = read_mask(model.detectors / _BRAIN_MASK)
    grid = PatchGrid(locations.grid, locations.voxels)
    checkpoint = Checkpoint.load(model.encoder, device=device)
    if checkpoint.origin.mask_hash != grid.mask_hash:
        raise UserError(f"{model.root}: encoder and detectors are of different brain masks. Fit the model again.")
    encoder = checkpoint.encoder
    whitened = config.models.detector.read_out == "whitened"
    whitening = Whitening.load(model.detectors / _WHITENING) if whitened else None
    detectors = DetectorField.load(model.detectors / _FIELD)

    prepared = PreparedImages.of(subject, out, config.preprocessing.modalities)
    # The model's own scale: what is mapped has no say in it.
    channels = Channels.load(model.detectors)
    images = channels.read(prepared, grid.grid)[channels.index(checkpoint.origin.channels)]
    codes = encode_densely(encoder, torch.from_numpy(images), grid, device=device).numpy()
    template_map = score_subject(detectors, codes, grid, whitening, jobs=1)
    # A score means something where the model has a detector and the subject has brain.
    known = template_map.with_voxels(grid.brain_mask & prepared.read_brain_mask(grid.grid).voxels)
    template_map = template_map.with_voxels(np.where(known.voxels, template_map.voxels, 0).astype(np.float32))

    transform = TemplateTransform.load(out.transform_folder(subject))
    native_map, coverage = transform.scores_to_native(template_map, known, read_grid(subject.images["t1w"]))
    return [
        write_volume(out.template_map(subject), template_map),
        write_volume(out.template_coverage(subject), known),
        write_volume(out.native_map(subject), native_map),
        write_volume(out.native_coverage(subject), coverage),
    ]
