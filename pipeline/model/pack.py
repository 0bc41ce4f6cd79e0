"""Packing of a fitted model into one file that other sites can use.

Every part of the model is loaded and written anew, so that the file holds only what the code that reads it knows, and
nothing else of the folder. Left out or changed are: what only names or recognises participants (hashes of scans and
ids), the exact ages at the ends of the range, the decoder, and the path of a program. Arrays are stored as small whole
numbers (`quantised`), the support vectors of the one-class SVMs merged (`merged`), as far as the scores hardly move.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.errors import UserError, private
from ...models.anomaly.calibrated_scorer import CalibratedScorer
from ...models.anomaly.merged import merge_support_vectors
from ...models.anomaly.score_change import ScoreChange, score_change, whitening_of
from ...models.anomaly.scorers import OneClassSvms
from ...models.confounds.covariates import AgeRange
from ...models.encoder.checkpoint import Checkpoint, build_autoencoder
from ...models.learned.norm import Norm
from ...models.learned.scorer import LearnedScorer
from ...models.prototypes.scorer import Prototypes
from ...models.quantised import STEPS, STEPS_OF_LEARNED, read_quantised, write_quantised, write_units
from ...models.tensor_file import write_tensors
from ..config.config import Config
from ..workflow.folders import make_folder
from ..workflow.scratch import scratch_folder
from .anomaly_model import AnomalyModel
from .model_card import about_model, model_card
from .pack_file import BRAIN_MASK, CARD, LONGEST_LICENCE, LONGEST_NOTE, SETTINGS, SUFFIX, THRESHOLD, UNITS, write_pack
from .whole_model import require_whole_model

LARGEST_CHANGE, LARGEST_CHANGE_OF_LEARNED = 0.013, 0.004
"""Root mean square of the change of a score by packing, as a share of the standard deviation of the score.

The network of the scorer `learned` makes more of a change of its inputs in real heads than in random features. The
z-scores of real heads then differ by less than 0.02 (docs/sharing-models.md).
"""
_TRIES = 5
"""Steps of the rounding that are tried, each finer as the change asks for; then arrays are stored as they are."""
_MARGIN = 0.95
_AGES_TO = 5
"""Years; ends of the age range are rounded outwards to these."""
PLACEHOLDER = "program {image} {mask}"
"""In place of the site's own program for brain extraction."""


@dataclass(frozen=True)
class Packed:
    """A packed model that was written.

    Attributes
    ----------
    path : Path
    before : int
        Bytes of the model in its folder.
    changes : dict of str to ScoreChange or None
        Of each scorer.
    merged : tuple of str
        Scorers whose support vectors were merged.
    threshold : float or None
    """

    path: Path
    before: int
    changes: dict[str, ScoreChange | None]
    merged: tuple[str, ...]
    threshold: float | None = None


def pack(model: OutputFolder, path: Path, licence: str | None = None, note: str | None = None) -> Packed:
    """Write a model to one file.

    Parameters
    ----------
    model : OutputFolder
    path : Path
        A new file, ``<name>.voxout``.
    licence : str, optional
        For the card, as ``"CC BY 4.0"``.
    note : str, optional
        A sentence of the sender for the card.

    Raises
    ------
    UserError
        No whole model, a path that cannot be used, or more than one line of text.
    """
    fitted = require_whole_model(model)
    if path.suffix != SUFFIX or path.exists() or path.is_symlink():
        found = "exists already" if path.suffix == SUFFIX else f"ends in {path.suffix or 'no suffix'}"
        raise UserError(f"{private(path)}: {found}, expected a new file *{SUFFIX}. Choose another name.")
    _require_line("--licence", licence, LONGEST_LICENCE, "Name the licence, as in 'CC BY 4.0'")
    _require_line("--note", note, LONGEST_NOTE, "Write a shorter sentence")
    loaded = AnomalyModel.load(model, fitted.config, "cpu").with_stored_threshold(model)
    make_folder(path.parent)
    with scratch_folder(path.parent) as scratch:
        shared, merged = _without_persons(loaded)
        staged, packed = OutputFolder(scratch / "model"), scratch / "packed"
        _write_parts(shared, staged)
        changes = {
            scorer.name: _pack_scorer(scorer, loaded, staged.detectors / scorer.name, packed, scratch / "restored")
            for scorer in loaded.ensemble.scorers
        }
        files = {name: _packed(name, file, packed) for name, file in _files_of(staged.root)}
        files |= {name: file for name, file in _files_of(packed) if name not in files}
        about = about_model(model, loaded, licence, note)
        (staged.root / CARD).write_text(model_card(shared, about, changes))
        write_pack(path, {CARD: staged.root / CARD, **files}, about)
    before = sum(file.stat().st_size for folder in (model.detectors, model.encoder) for _, file in _files_of(folder))
    return Packed(path, before, changes, merged, loaded.threshold)


def _require_line(option: str, text: str | None, longest: int, advice: str) -> None:
    if text is not None and (not text.isprintable() or not 0 < len(text.strip()) <= len(text) <= longest):
        raise UserError(
            f"{option}: found {len(text)} characters or a line break, expected one line of at most {longest}. {advice}."
        )


def _without_persons(model: AnomalyModel) -> tuple[AnomalyModel, tuple[str, ...]]:
    """Return a model without what belongs to single persons, and the scorers whose support vectors were merged."""
    merged: dict[str, CalibratedScorer] = {}
    for scorer in model.ensemble.scorers:
        own = merge_support_vectors(scorer.scorer) if isinstance(scorer.scorer, OneClassSvms) else None
        if own is not None:
            candidate = replace(scorer, scorer=own)
            change = score_change(scorer, candidate)
            if change is not None and change.typical <= LARGEST_CHANGE / 2:  # the rest is for rounding
                merged[scorer.name] = candidate
    scorers = tuple(merged.get(scorer.name, scorer) for scorer in model.ensemble.scorers)
    covariates = model.ensemble.confounds.covariates
    if covariates.age is not None:
        covariates = replace(covariates, age=_rounded(covariates.age))
    ensemble = replace(
        model.ensemble, scorers=scorers, confounds=replace(model.ensemble.confounds, covariates=covariates)
    )
    source = replace(model.source, checkpoints=tuple(map(_encoder_only, model.source.checkpoints)))
    point = model.operating_point
    if point is not None:
        point = replace(point, model="", largest_mm3=tuple(sorted(point.largest_mm3, reverse=True)))
    config = _without_command(model.config)
    return replace(model, config=config, ensemble=ensemble, source=source, operating_point=point), tuple(merged)


def _rounded(age: AgeRange) -> AgeRange:
    """Round the ends of an age range, which are the ages of two persons, outwards."""
    lowest, highest = (_AGES_TO * round_ for round_ in (age.lowest // _AGES_TO, -(-age.highest // _AGES_TO)))
    return replace(age, lowest=float(lowest), highest=float(highest))


def _encoder_only(checkpoint: Checkpoint) -> Checkpoint:
    """Return a trained encoder with an untrained decoder, without the state of the optimiser and hashes of ids.

    With the trained decoder, latents could be turned back into patches.
    """
    origin = replace(checkpoint.origin, subjects_hash="")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        autoencoder = build_autoencoder(checkpoint.settings, origin).eval()
    autoencoder.encoder.load_state_dict(checkpoint.encoder.state_dict())
    return replace(checkpoint, autoencoder=autoencoder, optimiser={}, contrast={}, origin=origin)


def _without_command(config: Config) -> Config:
    extraction = config.preprocessing.brain_extraction
    if not extraction.command:
        return config
    command = PLACEHOLDER if extraction.method == "command" else ""
    extraction = extraction.model_copy(update={"command": command})
    preprocessing = config.preprocessing.model_copy(update={"brain_extraction": extraction})
    return config.model_copy(update={"preprocessing": preprocessing})


def _write_parts(model: AnomalyModel, staged: OutputFolder) -> None:
    """Write all parts of a model; names are those in the packed file."""
    staged.root.mkdir()
    model.ensemble.save(staged.detectors)
    model.source.channels.save(staged.detectors)
    for number, checkpoint in enumerate(model.source.checkpoints):
        checkpoint.save(staged.member(number))
    mask = model.mask
    arrays = {"voxels": np.packbits(mask.brain_mask.ravel()), "affine": mask.grid.affine.astype(np.float64)}
    write_tensors(staged.root / BRAIN_MASK, arrays, size_vox=" ".join(map(str, mask.grid.size_vox)))
    (staged.root / SETTINGS).write_text(json.dumps(model.config.model_dump(mode="json"), indent=1))
    if model.operating_point is not None:
        model.operating_point.save(staged.root / THRESHOLD)


def _pack_scorer(
    scorer: CalibratedScorer, model: AnomalyModel, folder: Path, packed: Path, restored: Path
) -> ScoreChange | None:
    """Pack the files of a scorer with the coarsest steps that hardly move its scores."""
    settings = model.config.models
    spec = model.source.specs(settings.ensemble.scorers)[scorer.name]
    residualised = model.ensemble.confounds.size > 0
    target, restored = packed / "detectors" / scorer.name, restored / scorer.name
    whitening, change = whitening_of(scorer), None
    usual, largest = STEPS, LARGEST_CHANGE
    if isinstance(scorer.scorer, LearnedScorer):
        usual, largest = STEPS_OF_LEARNED, LARGEST_CHANGE_OF_LEARNED
    units = write_units(target / UNITS, Norm(whitening).sd) if whitening is not None else None
    # Where the change cannot be measured, nothing is rounded.
    factor, tries = 1.0, _TRIES if whitening is not None or isinstance(scorer.scorer, Prototypes) else 0
    for tried in range(tries + 1):
        steps = {name: step * factor for name, step in usual.items()} if tried < tries else {}
        for name, file in _files_of(folder):
            if file.suffix == ".safetensors":
                write_quantised(file, target / name, steps=steps, units=units)
                read_quantised(target / name, restored / name, units=units)
            else:
                (restored / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, restored / name)
        again = CalibratedScorer.load(scorer.name, spec, restored, model.mask, model.source, settings, residualised)
        change = score_change(scorer, again)
        if change is None or change.typical <= largest:
            break
        factor *= _MARGIN * largest / change.typical  # the change is proportional to the steps
    return change


def _packed(name: str, file: Path, packed: Path) -> Path:
    """Return the file to store: arrays of the detectors as whole numbers, other files as they are."""
    if not name.startswith("detectors/") or file.suffix != ".safetensors":
        return file
    return packed / name if (packed / name).exists() else write_quantised(file, packed / name)


def _files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    files = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
    return ((path.relative_to(folder).as_posix(), path) for path in files)
