"""Inputs of the stages: settings, files, and results of earlier stages."""

from typing import Any

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.splits import Split, split_controls
from ...data_manifests.cohort.subject import Manifest, SubjectRecord
from ..config.diff import flat_settings
from .earlier_subjects import earlier_subjects
from .records import StageRecord, file_fingerprint
from .runner import Run, all_failures


def settings_of(run: Run, *names: str) -> dict[str, Any]:
    """Return the named settings, or sections of settings, flat."""
    every = flat_settings(run.config.model_dump(mode="json"))
    prefixes = [f"settings.{name}" for name in names]
    return {key: value for key, value in every.items() if any(key == p or key.startswith(f"{p}.") for p in prefixes)}


def files_of(subject: SubjectRecord) -> dict[str, str]:
    """Return the hash of each input file, and the image on which lesions were drawn."""
    return {name: file_fingerprint(path) for name, path in subject.files.items()} | {"mask_of": subject.mask_of}


def checked(run: Run) -> list[SubjectRecord]:
    """Return the subjects that passed the stage check."""
    good = record_of(run, "check").done
    return [s for s in run.manifest if s.key in good]


def record_of(run: Run, stage: str) -> StageRecord:
    """Return the record of a stage; an empty record if it has not run."""
    return StageRecord.read(run.out.record(stage)) or StageRecord(stage, {}, {})


def prepared_of(run: Run) -> dict[str, str]:
    """Return the identity of each prepared subject's record."""
    records = {s.key: StageRecord.read(run.out.subject_record(s)) for s in run.manifest}
    done = record_of(run, "prepare").done
    return {key: record.identity for key, record in records.items() if record is not None and key in done}


def fit_identity(model: OutputFolder) -> str:
    """Return the identity of the fit of a model; empty if it was not fitted."""
    record = StageRecord.read(model.record("fit"))
    return record.identity if record else ""


def settings_of_map(run: Run) -> dict[str, Any]:
    """Return the model and the settings that maps depend on."""
    return {"the detectors": fit_identity(run.model) or None} | settings_of(run, "evaluation.p_maps")


def mapped_earlier(run: Run) -> dict[str, SubjectRecord]:
    """Return the subjects that an earlier call mapped with the same model and that are not in the manifest."""
    return earlier_subjects(run.out, run.manifest, settings_of_map(run))


def cohort_of(run: Run) -> Manifest:
    """Return the subjects of the manifest, followed by those that an earlier call mapped."""
    return Manifest((*run.manifest, *mapped_earlier(run).values()), run.manifest.notes)


def roles_of(run: Run) -> dict[str, str]:
    """Return the role of each subject, such as "held-out control"."""
    cohort = cohort_of(run)
    train, held_out = split_of(run) if not run.applies_a_model else ([], [s.key for s in cohort.controls])
    named = {s.key: "patient" if s.group == "patient" else "control" for s in cohort}
    named |= dict.fromkeys(train, "training control") | dict.fromkeys(held_out, "held-out control")
    failed = {failure.key for failure in all_failures(run.out)}
    return {key: f"{role}, failed" if key in failed else role for key, role in named.items()}


def split_controls_of(run: Run) -> Split:
    """Split the controls as the manifest and the settings say, prepared or not."""
    return split_controls(run.manifest, held_out_share=run.config.data_manifests.held_out_share, seed=run.config.seed)


def split_of(run: Run) -> tuple[list[str], list[str]]:
    """Return the prepared training controls and held-out controls, in the order of the manifest."""
    split = split_controls_of(run)
    prepared = prepared_of(run)
    return [key for key in split.train if key in prepared], [key for key in split.held_out if key in prepared]


def covariates_of(run: Run, key: str) -> dict[str, Any]:
    """Return the covariates of a subject that the settings name; None where the manifest has no value."""
    return {name: getattr(run.manifest[key], name) for name in run.config.models.ensemble.covariates}
