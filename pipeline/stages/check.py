"""The stage check: every header and every array, before any long computation."""

from typing import Any

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.errors import Failure, UserError, counted
from ...data_manifests.open_file import is_readable
from ..workflow.records import StageRecord, file_fingerprint, fingerprint
from ..workflow.runner import Run, Stage, StageResult
from ..workflow.stage_inputs import (
    files_of,
    record_of,
    settings_of,
    split_controls_of,
)


def _check_inputs(run: Run) -> dict[str, Any]:
    rows = {f"row and files of {s.key}": fingerprint([s.group, s.split, files_of(s)]) for s in run.manifest}
    return rows | settings_of(
        run,
        "preprocessing.modalities",
        "preprocessing.brain_extraction",
        "models.ensemble.covariates",
        "data_manifests.held_out_share",
        "seed",
    )


def _check(run: Run) -> StageResult:
    from ...data_manifests.cohort.check import check_manifest
    from ...preprocessing.subject_inputs import refusals

    _judge_replaced_scans(run)
    settings = run.config.preprocessing
    limits = {} if run.needs_controls else {"fewest_controls": 0}
    with run.console.progress("check", "scan") as progress:
        result = check_manifest(
            run.manifest,
            modalities=settings.modalities,
            judge=lambda subject, scans, brain: refusals(subject, settings, scans, brain),
            progress=progress,
            **limits,
        )
    sentences: dict[str, list[str]] = {}
    for problem in result.problems:
        sentences.setdefault(problem.subject_key, []).append(problem.sentence)
    unmet = _unmet_settings(run)
    if unmet or "" in sentences or not result.good:
        raise UserError([*unmet, *result.sentences])
    return StageResult(
        done=result.good,
        failed=tuple(Failure(key, "check", " ".join(messages)) for key, messages in sentences.items()),
        warnings=tuple(run.manifest.notes) + tuple(warning.sentence for warning in result.warnings),
        summary=f"{_groups(run)}; {len(result.good)} of {len(run.manifest)} subjects passed",
    )


def _judge_replaced_scans(run: Run) -> None:
    """Warn of maps that a new scan with the same id will replace; refuse it where a model is applied.

    The T1w of a cohort may be converted again. An applied model meets one scan after the other, and two people may have
    the same id there.

    Raises
    ------
    UserError
    """
    replaced = [subject.key for subject in run.manifest if _is_of_another_scan(subject, run.out)]
    if replaced and run.applies_a_model:
        raise UserError(
            [
                f"{key}: the output folder has a map of another scan with this id. If this is another person, give "
                "another id or another output folder. To replace the map, first remove the subject: `voxout remove "
                f"OUT {key}`."
                for key in replaced
            ]
        )
    for key in replaced:
        run.console.warn(
            f"warning: {key}: was mapped from another scan before; its map is replaced. If this is another person, "
            "give another id."
        )


def _is_of_another_scan(subject: SubjectRecord, out: OutputFolder) -> bool:
    mapped, prepared = StageRecord.read(out.map_record(subject)), StageRecord.read(out.subject_record(subject))
    before = mapped and mapped.about.get("t1w", prepared and prepared.inputs.get("t1w"))
    t1w = subject.images["t1w"]
    return bool(before) and is_readable(t1w) and before != file_fingerprint(t1w)


def _groups(run: Run) -> str:
    """Return the number of controls and patients, as text."""
    text = counted(len(run.manifest.controls), "control")
    if run.needs_controls:
        split = split_controls_of(run)
        text += f" ({len(split.train)} for training, {len(split.held_out)} held out)"
    return f"{text} and {counted(len(run.manifest.patients), 'patient')}"


def _unmet_settings(run: Run) -> tuple[str, ...]:
    """Return the requirements of the settings that the manifest or the machine does not meet."""
    from ...models.confounds.covariates import Covariates
    from ...preprocessing.brain_extraction.availability import require_method

    def require_covariates() -> None:
        split = split_controls_of(run)
        Covariates.learn(run.config.models.ensemble.covariates, [run.manifest[key] for key in split.train])

    needs = [lambda: require_method(run.config.preprocessing.brain_extraction)]
    if run.needs_controls:
        needs.append(require_covariates)
    unmet: list[str] = []
    for need in needs:
        try:
            need()
        except UserError as error:
            unmet += error.problems
    return tuple(unmet)


def _too_few_controls(run: Run) -> list[str]:
    """Return warnings if there are too few controls for train or fit, which would stop hours later."""
    from ...models.anomaly.calibration import require_enough_participants
    from ...models.encoder.schedule import require_enough_controls

    if not run.needs_controls:
        return []
    good, messages = record_of(run, "check").done, []
    train = [key for key in split_controls_of(run).train if key in good]
    needs = {"fit": lambda: require_enough_participants(train)}
    if run.config.models.ensemble.needs_encoder:
        needs = {"train": lambda: require_enough_controls(len(train), run.config.models)} | needs
    for stage, need in needs.items():
        try:
            need()
        except UserError as error:
            messages.append(f"{stage} will stop: {error}")
    return messages


STAGE = Stage("check", _check_inputs, _check, preflight=_too_few_controls)
