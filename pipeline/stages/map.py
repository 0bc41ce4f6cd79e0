"""The stage map: the threshold of the model, and anomaly maps of patients and held-out controls."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.errors import UserError
from ...data_manifests.images.volume import Volume, read_map, read_mask
from ...data_manifests.open_file import is_readable
from ...evaluation.metrics.fdr import log_p, log_q
from ...evaluation.scoring.operating_point import StoredPoint
from ..config.config import Config
from ..model.anomaly_model import model_of_process
from ..model.map_files import MapContext, read_latent_distance, write_map
from ..model.matched_model import MATCHED, MatchedControls, matched_model, told_of
from ..model.model_files import adapted_on, labelled_patients, read_trained_on, require_files_of_model
from ..workflow.device import choose_device
from ..workflow.earlier_subjects import about_subject
from ..workflow.origin import Origin
from ..workflow.per_subject import cached, work_by_subject
from ..workflow.records import StageRecord, file_fingerprint, fingerprint
from ..workflow.removal import remove_with_record
from ..workflow.runner import Run, Stage, StageResult
from ..workflow.scan_places import keep_places
from ..workflow.stage_inputs import (
    covariates_of,
    fit_identity,
    mapped_earlier,
    prepared_of,
    settings_of,
    settings_of_map,
    split_of,
)

_THRESHOLD = "the threshold"
"""Name of the threshold among the inputs of a map: the files, not the scores, depend on it."""
SETTINGS_OF_THRESHOLD = ("false_clusters", "smallest_cluster_mm3", "space", "bootstrap_draws")


def _map_inputs(matched: MatchedControls | None, run: Run) -> dict[str, Any]:
    named = {f"{name} {key}": value for key, own in _mapped(run, matched).items() for name, value in own.items()}
    named |= {f"mapped before {key}": subject.group for key, subject in mapped_earlier(run).items()}
    if run.applies_a_model:
        named[_THRESHOLD] = _valid_threshold(run)
    else:
        named |= settings_of(run, *(f"evaluation.{name}" for name in SETTINGS_OF_THRESHOLD), "seed")
    return named | settings_of_map(run)


def _map(matched: MatchedControls | None, run: Run) -> StageResult:
    mapped = _mapped(run, matched)
    if not mapped:
        raise UserError("map: found no patients and no held-out controls. Add patients to the manifest.")
    unreachable = _remove_maps_of_failed(run, mapped)
    known = _known_to_the_model(run)
    require_files_of_model(run.model)
    if not run.applies_a_model and (own := _null_threshold(run)) is not None:
        own.save(run.out.operating_point)
    for_all = settings_of_map(run) | {_THRESHOLD: _valid_threshold(run)}
    mapped = {key: own | for_all for key, own in mapped.items()}
    device = run.device_of_workers or run.device
    threads = _threads(run, len(mapped)) if matched is not None else 1
    arguments = run.config, run.out, run.model, device, matched, threads
    work = work_by_subject(run, "map", write_maps, mapped, run.out.map_record, *arguments)
    if run.applies_a_model and run.config.evaluation.keep_scan_places:
        keep_places(run.out, [run.manifest[key] for key in work.done])
    notes = [
        f"{key}: its map shows too little, since the model was trained on this scan"
        if key in mapped
        else f"{key}: left out, since the model was trained on this scan"
        for key in sorted(known & {*mapped, *(control.key for control in run.manifest.controls)})
    ]
    notes += [f"{key}: cannot be reached now; its map and page of an earlier call are kept" for key in unreachable]
    earlier = tuple(mapped_earlier(run))
    summary = work.summary + (f", and {len(earlier)} from earlier calls" if earlier else "")
    if matched is not None and work.done:
        summary += f"; {_effective(matched, [run.manifest[key] for key in work.done])}"
    return replace(work, warnings=(*work.warnings, *notes), done=work.done + earlier, summary=summary)


def _threads(run: Run, subjects: int) -> int:
    """Threads for one subject, if there are fewer subjects than workers on this machine."""
    return max(1, run.engine.jobs // subjects) if run.device_of_workers is None else 1


def _effective(matched: MatchedControls, patients: Sequence[SubjectRecord]) -> str:
    """Say the effective numbers of controls of patients."""
    numbers = [matched.match(patient).effective for patient in patients]
    low, high = f"{min(numbers):.1f}", f"{max(numbers):.1f}"
    span = low if low == high else f"{low} to {high}"
    return f"matched controls: {len(matched.controls)} count as {span} equal ones"


def _null_threshold(run: Run) -> StoredPoint | None:
    from ..model.null_threshold import null_threshold

    return null_threshold(run)


def _valid_threshold(run: Run) -> float | None:
    """Return the stored threshold of the model; None if it has none for these settings, or the cohort sets another."""
    if run.applies_a_model and run.config.evaluation.recalibrate:
        return None
    point = StoredPoint.load(run.model.operating_point)
    if point is None or point.unfit_because(run.config.evaluation, fit_identity(run.model)) is not None:
        return None
    return point.threshold if math.isfinite(point.threshold) else None


def _remove_maps_of_failed(run: Run, mapped: Collection[str]) -> list[str]:
    """Delete maps of an earlier scan if the new scan could not be prepared.

    Returns
    -------
    list of str
        Keys of the subjects whose maps are kept, since a file of theirs is out of reach and the others are unchanged.
    """
    kept = []
    for subject in run.manifest:
        records = [run.out.map_record(subject), run.out.page_record(subject)]
        if subject.key in mapped or not any(StageRecord.read(path) for path in records):
            continue
        if _is_out_of_reach(subject, run.out):
            kept.append(subject.key)
            continue
        for path in records:
            remove_with_record(run.out, path)
    return kept


def _is_out_of_reach(subject: SubjectRecord, out: OutputFolder) -> bool:
    """Whether a file of a prepared subject cannot be read now (a drive is not mounted), and none has changed."""
    prepared = StageRecord.read(out.subject_record(subject))
    before = prepared.inputs if prepared else {}
    readable = {column: path for column, path in subject.files.items() if is_readable(path)}
    now = {column: file_fingerprint(path) for column, path in readable.items()}
    return now.keys() != subject.files.keys() and all(before.get(column, own) == own for column, own in now.items())


def _mapped(run: Run, matched: MatchedControls | None = None) -> dict[str, dict[str, Any]]:
    prepared = prepared_of(run)
    keys = {subject.key for subject in run.manifest.patients}
    controls = {subject.key for subject in run.manifest.controls}
    keys |= controls - _known_to_the_model(run) if run.applies_a_model else set(split_of(run)[1])
    mapped = [s.key for s in run.manifest if s.key in keys and s.key in prepared]
    inputs = {key: {"prepared": prepared[key]} | covariates_of(run, key) for key in mapped}
    if matched is not None:
        matches = {key: matched.match(run.manifest[key]) for key in mapped}
        inputs = {key: own | {MATCHED: fingerprint(matches[key].weights)} for key, own in inputs.items()}
    return inputs


def _known_to_the_model(run: Run) -> set[str]:
    """Return the keys of the subjects whose scan an applied model was trained on."""
    if not run.applies_a_model:
        return set()
    trained_on = read_trained_on(run.model)
    return {s.key for s in run.manifest if file_fingerprint(s.images["t1w"]) in trained_on}


def write_maps(
    subject: SubjectRecord,
    inputs: Mapping[str, Any],
    origin: Origin,
    config: Config,
    out: OutputFolder,
    model: OutputFolder,
    device: str,
    matched: MatchedControls | None = None,
    threads: int = 1,
) -> StageRecord:
    """Write the anomaly maps of one prepared subject, on the template grid and in native space.

    If only the threshold has changed, the maps are not computed again.
    """
    about, device = about_subject(subject), choose_device(device)
    told = {} if matched is None else told_of(matched.match(subject))
    adapted = adapted_on(model), labelled_patients(model)
    context = MapContext.of_model(config, fit_identity(model), inputs[_THRESHOLD], *adapted)
    context = replace(context, made_by=origin, scans={name: about[name] for name in subject.images}, matched=told)
    about |= {MATCHED: told} if told else {}
    earlier = StageRecord.read(out.map_record(subject))

    def work(out: OutputFolder) -> Sequence[str]:
        if earlier is not None and _is_same_map(earlier, inputs, out.root):
            _write_again(earlier, out, context)
            return earlier.warnings
        return map_subject(subject, config, out, model, device, context, matched, threads)

    path = out.map_record(subject)
    return cached("map", subject, path, inputs, out, ("maps",), work, origin=origin, device=device, about=about)


def _is_same_map(earlier: StageRecord, inputs: Mapping[str, Any], root: Path) -> bool:
    """Whether the maps of a record are unchanged, and its inputs but for the threshold are these."""
    before, now = (
        {name: value for name, value in every.items() if name != _THRESHOLD}
        for every in (earlier.comparable_inputs, inputs)
    )
    return not earlier.failed and before == now and all(earlier.owns(root, name) for name in earlier.outputs)


def _write_again(earlier: StageRecord, out: OutputFolder, context: MapContext) -> None:
    """Write the maps of a record with another threshold in their headers and JSON files."""
    for name in (name for name in earlier.outputs if name.endswith(".nii.gz")):
        context = replace(context, latent_distance=read_latent_distance(out.root / name))
        read = read_mask if name.endswith("_mask.nii.gz") else read_map
        write_map(out.maps / PurePosixPath(name).relative_to("maps"), read(out.root / name), context)


def map_subject(
    subject: SubjectRecord,
    config: Config,
    out: OutputFolder,
    model: OutputFolder,
    device: str,
    context: MapContext,
    matched: MatchedControls | None = None,
    threads: int = 1,
) -> tuple[str, ...]:
    """Score one subject at every voxel of the mask, and write its maps.

    These are the template map, the native map and their coverages; for several encoders, the standard deviation over
    them; and, with `evaluation.p_maps`, maps of -log10 p and -log10 q.

    Returns
    -------
    tuple of str
        Warnings about covariates that the map could not be adjusted for, and about matched controls.

    Raises
    ------
    UserError
        A part of the model is missing, or its parts do not match.
    """
    scoring, warnings = model_of_process(model.root, fit_identity(model), config, device), ()
    if matched is not None:
        match = matched.match(subject)
        scoring, warnings = matched_model(scoring, model, matched, match, jobs=threads), match.warnings
    scan = scoring.read_prepared(subject, out)
    found = scoring.map_of(scan, scoring.score(scan, jobs=threads))
    context = replace(context, latent_distance=found.latent_distance)
    for path, volume in found.volumes(out, subject).items():
        write_map(path, volume, context)
    if config.evaluation.p_maps:
        _write_p_maps(out.p_maps(out.template_map(subject)), found.template_z_map, found.template_coverage, context)
        _write_p_maps(out.p_maps(out.native_map(subject)), found.z_map, found.coverage, context)
    return (*warnings, *found.warnings)


def _write_p_maps(paths: Sequence[Path], z: Volume, covered: Volume, context: MapContext) -> None:
    """Write -log10 p and -log10 q of a z-map; 0 outside its coverage."""
    for path, minus_log10 in zip(paths, (log_p, log_q), strict=True):
        values = np.zeros(covered.voxels.shape, np.float32)
        values[covered.voxels] = minus_log10(z.voxels[covered.voxels])
        write_map(path, z.with_voxels(values), context)


def map_stage(matched: MatchedControls | None = None) -> Stage:
    """Return the stage; with the controls to match, each map is that of a model fitted for its subject."""
    inputs, work = partial(_map_inputs, matched), partial(_map, matched)
    return Stage("map", inputs, work, ("operating_point",), needs=("prepare", "fit"), retry_failed=True)


STAGE = map_stage()
