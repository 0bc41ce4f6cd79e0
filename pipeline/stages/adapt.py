"""Adaptation of a fitted model to another scanner: its calibration and its threshold, on healthy controls of it.

The stages `ADAPT` and `THRESHOLD` take the places of fit and map, so that the output folder holds a model like that of
a run. The model that is adapted is not changed.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import Manifest, SubjectRecord, count_participants, participant_of_key
from ...data_manifests.errors import UserError, counted, private, some_of
from ...data_manifests.user_paths import real
from ...evaluation.scoring.operating_point import StoredPoint
from ...models.anomaly.calibration import z_from_neg_log10_p
from ...models.anomaly.fit import NULL
from ...models.anomaly.scanner import FILE, ScannerCalibration, require_enough_controls
from ...models.features.feature_store import LatentStore
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..config.config import save_config
from ..model.anomaly_model import AnomalyModel, read_voxel_mask
from ..model.map_files import of_scanner
from ..model.model_files import CONTROLS, copy_model, number_of_controls, read_trained_on, write_model_record
from ..model.null_threshold import threshold_on
from ..model.whole_model import FORMAT, MODEL_FORMAT
from ..workflow.records import StageRecord, file_fingerprint, fingerprint, write_json
from ..workflow.runner import Run, Stage, StageResult
from ..workflow.stage_inputs import covariates_of, fit_identity, prepared_of, settings_of
from .score import ENOUGH_HEALTHY

ADAPTED_MODEL = "the adapted model"
"""Name of the identity of the model before its adaptation among the inputs of the stage fit."""


def require_can_adapt(manifest: Manifest, model: OutputFolder, out: OutputFolder) -> None:
    """Refuse patients, too few controls, and an output folder that holds another model, before anything is done.

    Raises
    ------
    UserError
    """
    if patients := len(manifest.patients):
        raise UserError(
            f"adapt-scanner: found {counted(patients, 'patient')} among {counted(len(manifest), 'scan')}, expected "
            "healthy controls of the scanner only. Take the patients out, and map them with the adapted model."
        )
    require_enough_controls([participant_of_key(subject.key) for subject in manifest.controls])
    if real(out.root).is_relative_to(real(model.root)):
        raise UserError(
            f"{private(out.root, 'the output folder')}: lies in the model's own folder, expected a separate folder. "
            "Choose another output folder."
        )
    fit = StageRecord.read(out.record("fit"))
    if fit is not None and ADAPTED_MODEL not in fit.inputs:
        raise UserError(
            f"{private(out.root, 'the output folder')}: holds a model of `voxout run`, expected a new folder or one of "
            "`voxout adapt-scanner`. Choose another output folder."
        )


def _local_controls(run: Run) -> list[SubjectRecord]:
    """Return the prepared controls that the model was not fitted to."""
    prepared, known = prepared_of(run), _known(run)
    return [subject for subject in run.manifest.controls if subject.key in prepared and subject.key not in known]


def _known(run: Run) -> set[str]:
    trained_on = read_trained_on(run.model)
    return {s.key for s in run.manifest.controls if file_fingerprint(s.images["t1w"]) in trained_on}


def _adapt_inputs(run: Run) -> dict[str, Any]:
    prepared = prepared_of(run)
    used = {s.key: [prepared[s.key], covariates_of(run, s.key)] for s in _local_controls(run)}
    train = copied_train_record(run.model, ADAPTED_MODEL)
    return {
        MODEL_FORMAT: FORMAT,
        ADAPTED_MODEL: fit_identity(run.model),
        CONTROLS: number_of_controls(run.model),
        "the encoder": train.identity if train is not None else None,
        # Without ids, since the record is part of the model.
        "the local controls": fingerprint(used),
    }


def copied_train_record(model: OutputFolder, name: str) -> StageRecord | None:
    """Return the record of the encoder in the adapted model; it lists no files, which may be left out of a model.

    Parameters
    ----------
    model : OutputFolder
        Before its adaptation.
    name : str
        Of its identity among the inputs.
    """
    fit, train = StageRecord.read(model.record("fit")), StageRecord.read(model.record("train"))
    if fit is None or train is None or not fit.inputs.get("the encoder"):
        return None
    return StageRecord("train", {name: train.identity}, {}, started=train.started)


def _adapt(run: Run) -> StageResult:
    controls = _local_controls(run)
    require_enough_controls([participant_of_key(subject.key) for subject in controls])
    encoders = copy_model(run.model, run.out)
    model = AnomalyModel.load(run.model, run.config, run.device).with_stored_threshold(run.model)
    values, inside = _scores(run, model, controls)
    participants = [participant_of_key(subject.key) for subject in controls]
    scanner, left_out = ScannerCalibration.fit(values, inside, participants, model.mask)
    scanner.save(run.out.detectors / FILE)
    null = LatentStore.create(run.out.latents / NULL, model.mask, 1)
    for subject, row, brain in zip(controls, left_out, inside, strict=True):
        null.write(subject.key, z_from_neg_log10_p(row)[:, None], available=brain)
    save_config(run.out.fitted_config, run.config)
    scans = {file_fingerprint(subject.images["t1w"]) for subject in controls}
    write_json(run.out.trained_on, sorted(scans | read_trained_on(run.model)))
    if (train := copied_train_record(run.model, ADAPTED_MODEL)) is not None:
        train.write(run.out.record("train"))
    write_model_record(run.out, encoders=encoders)
    before = values if model.ensemble.scanner is None else model.ensemble.scanner.neg_log10_p(values)
    shares = [_share_above(each, inside) for each in (before, left_out)]
    return StageResult(
        warnings=_notes(run, controls),
        summary=f"{counted(len(controls), 'healthy scan')}; voxels with p < .001, expected 0.1 %: {shares[0]:.2g} % "
        f"before, {shares[1]:.2g} % in scans that were left out",
    )


def _scores(run: Run, model: AnomalyModel, controls: list[SubjectRecord]) -> tuple[np.ndarray, np.ndarray]:
    """Compute -log10 p (S, P), 0 outside the brain, and the scored voxels (S, P) of each control."""
    values = np.zeros((len(controls), model.mask.size), np.float32)
    inside = np.zeros(values.shape, bool)
    with run.console.progress("fit", "scan") as progress:
        for index, subject in enumerate(controls):
            progress(index, len(controls), subject.key)
            channels, brain = model.read_channels(subject, run.out)
            found, inside[index] = model.ensemble.neg_log10_p(
                channels, model.mask.transform(brain.voxels), subject, jobs=run.engine.jobs
            )
            values[index] = np.where(inside[index], found[0], 0)
    return values, inside


def _share_above(neg_log10_p: np.ndarray, inside: np.ndarray) -> float:
    """Share of the voxels with p < .001, in per cent: the mean over the scans."""
    return 100 * float(np.mean([(row[brain] > 3).mean() for row, brain in zip(neg_log10_p, inside, strict=True)]))


def _notes(run: Run, controls: list[SubjectRecord]) -> tuple[str, ...]:
    known, used = sorted(_known(run)), {subject.key for subject in controls}
    failed = [s.key for s in run.manifest.controls if s.key not in used and s.key not in known]
    notes = []
    if failed:
        notes.append(
            f"{len(failed)} of {counted(len(run.manifest.controls), 'control')} left out, since the check or the "
            f"preparation failed ({some_of(failed)})"
        )
    if known:
        notes.append(f"{len(known)} left out, since the model was fitted to these scans ({some_of(known)})")
    if (count := count_participants([*used])) < ENOUGH_HEALTHY:
        notes.append(
            f"{counted(count, 'control')}: enough to set the overall level of the scores. With fewer than "
            f"{ENOUGH_HEALTHY}, the threshold is uncertain (see its interval). Places where all scans of this scanner "
            "score high are not corrected: a cluster that several healthy scans have says nothing"
        )
    return tuple(notes)


def _threshold_inputs(run: Run) -> dict[str, Any]:
    names = ("false_clusters", "smallest_cluster_mm3", "space", "bootstrap_draws")
    return {"the detectors": fit_identity(run.out)} | settings_of(
        run, *(f"evaluation.{name}" for name in names), "seed"
    )


def _threshold(run: Run) -> StageResult:
    mask, folder = read_voxel_mask(run.out), run.out.latents / NULL
    controls = [subject for subject in _local_controls(run) if (folder / f"{subject.key}.npy").exists()]
    keys = [subject.key for subject in controls]
    null = LatentStore.open(folder, keys, mask)
    point = threshold_on(lambda: null_maps(null, mask), keys, mask.grid, run.config, controls)
    before = StoredPoint.load(run.model.operating_point)
    summary = point.controls
    if summary is not None and before is not None and before.controls is not None:
        # What healthy brains look like was learnt from the model's controls, whoever these are.
        learnt_from = {name: getattr(before.controls, name) for name in ("ages", "females", "males", "sites")}
        summary = replace(summary, **learnt_from)
    stored = StoredPoint.from_point(replace(point, controls=summary), run.config.evaluation, fit_identity(run.out))
    replace(stored, origin=of_scanner(len(keys))).save(run.out.operating_point)
    return StageResult(summary=threshold_in_words(stored, before))


def null_maps(null: LatentStore, mask: VoxelMask) -> Iterator[np.ndarray]:
    """Yield the stored z-maps (X, Y, Z), -inf where there is no score."""
    for key in null.keys:
        values = null.subject(key)[:, 0].astype(np.float32)
        outside = np.full(mask.grid.size_vox, -np.inf, np.float32)
        inside = mask.inverse_transform(np.isfinite(values))
        yield np.where(inside, mask.inverse_transform(np.nan_to_num(values)), outside)


def threshold_in_words(point: StoredPoint, before: StoredPoint | None) -> str:
    """Say a threshold with its interval, and that of the model before its adaptation."""
    if not np.isfinite(point.threshold):
        return "no threshold: the healthy scans have no more clusters than allowed even with every voxel flagged"
    low, high = np.percentile(point.draws, [2.5, 97.5]) if point.draws else (point.threshold, point.threshold)
    model = f"; the model's was {before.threshold:.2f}" if before is not None and np.isfinite(before.threshold) else ""
    return f"threshold {point.threshold:.2f} (95 % bootstrap interval {low:.2f} to {high:.2f}){model}"


ADAPT = Stage(
    "fit",
    _adapt_inputs,
    _adapt,
    ("encoder", "detectors", "latents"),
    needs=("prepare",),
    title="calibrate the model to the scanner of these controls",
)
THRESHOLD = Stage(
    "map",
    _threshold_inputs,
    _threshold,
    ("operating_point",),
    needs=("fit",),
    title="set the threshold on these controls, each left out in turn",
)
