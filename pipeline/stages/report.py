"""The stage report: a page per subject, and the page of the cohort."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import yaml

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.errors import Failure, counted, private
from ...evaluation.report.cohort_page import (
    CohortReport,
    StageTime,
    write_report,
)
from ...evaluation.report.report_inputs import Threshold
from ...evaluation.scoring.reference_results import RunScores, read_run
from ...evaluation.scoring.score_cohort import CohortScores
from ..model.model_files import adapted_on, labelled_patients
from ..workflow.per_subject import work_by_subject
from ..workflow.records import StageRecord, file_fingerprint, fingerprint, versions
from ..workflow.runner import Run, Stage, StageResult, all_failures
from ..workflow.scan_places import state_of_scans
from ..workflow.stage_inputs import (
    cohort_of,
    mapped_earlier,
    record_of,
    roles_of,
)
from ..workflow.stage_titles import STAGE_TITLES
from .report_pages import Shared, report_subject, run_summary, write_page
from .score import load_scores
from .training_curves import training_curves


def _report_inputs(run: Run) -> dict[str, Any]:
    from ...evaluation.scoring.reference_results import scores_file

    # Results of the early stages, not their times: retrying a broken scan does not change the page.
    early = {name: record_of(run, name) for name in ("check", "prepare")}
    inputs = {f"stage {n}": fingerprint([r.done, [asdict(f) for f in r.failed], r.warnings]) for n, r in early.items()}
    inputs |= {
        f"reference run {name or path.name}": file_fingerprint(scores_file(path)) for name, path in run.reference_runs
    }
    if earlier := mapped_earlier(run):
        states = {key: state_of_scans(run.out, subject) for key, subject in earlier.items()}
        inputs["scans of earlier calls"] = fingerprint(states)
    return inputs | {f"stage {name}": record_of(run, name).identity for name in ("map", "score")}


def _report(run: Run) -> StageResult:
    return write_pages(run, roles_of(run), _page_inputs(run))


def _page_inputs(run: Run) -> dict[str, dict[str, Any]]:
    score, roles = record_of(run, "score"), roles_of(run)
    subjects = cohort_of(run)
    maps = {key: StageRecord.read(run.out.map_record(subjects[key])) for key in score.done}
    inputs = {
        key: {"the map": record and record.identity, "the scores": score.identity, "the role": roles[key]}
        for key, record in maps.items()
    }
    for key in inputs.keys() & mapped_earlier(run).keys():
        inputs[key]["the scans"] = state_of_scans(run.out, subjects[key])
    return inputs


def write_pages(run: Run, roles: Mapping[str, str], inputs: Mapping[str, Mapping[str, Any]]) -> StageResult:
    """Write the pages of the subjects in parallel, then the cohort page, which links to them.

    Parameters
    ----------
    run : Run
    roles : mapping from subject key to its role, such as "held-out control"
    inputs : mapping from subject key to all inputs of the subject's page
    """
    # Read first, so that an unreadable run stops the stage early.
    reference_runs = [read_run(path, name or None) for name, path in run.reference_runs]
    scores = load_scores(run)
    shared = Shared.from_scores(scores, roles, versions(), run.model)
    work = work_by_subject(
        run, "report", write_page, inputs, run.out.page_record, run.config, run.out, shared, all_may_fail=True
    )
    write_cohort_report(run, scores, roles, reference_runs, work.failed)
    subjects = cohort_of(run)
    _gather_clusters(run.out, [subjects[key] for key in work.done])
    # The page is moved to its place when the stage is finished.
    page = private(OutputFolder(run.out.root).report, "the report")
    summary = f"{counted(len(work.done), 'subject page')}; open {page} in a browser"
    return replace(work, summary=summary)


def _gather_clusters(out: OutputFolder, subjects: Sequence[SubjectRecord]) -> None:
    """Join the clusters of all subjects in one table."""
    tables = [out.subject_clusters(subject).read_text(encoding="utf-8").splitlines(True) for subject in subjects]
    if tables:
        with atomic_write(out.clusters) as temporary:
            temporary.write_text("".join([*tables[0], *(line for table in tables[1:] for line in table[1:])]))


def write_cohort_report(
    run: Run,
    scores: CohortScores,
    role: Mapping[str, str],
    reference_runs: Sequence[RunScores] = (),
    without_page: Sequence[Failure] = (),
) -> None:
    """Write the cohort page: scores, cohort, training, pictures, failures, run times, settings.

    Parameters
    ----------
    run : Run
    scores : CohortScores
    role : mapping from subject key to its role, such as "held-out control"
    reference_runs : sequence of RunScores
        Other runs, shown for comparison.
    without_page : sequence of Failure
        Subjects whose own page could not be written.
    """
    # An encoder kept from other settings was not used for these maps.
    needs_encoder = run.config.models.ensemble.needs_encoder
    stages = [name for name in STAGE_TITLES if name != "train" or needs_encoder]
    records = {name: StageRecord.read(run.out.record(name)) for name in stages}
    by_key = {scored.key: scored for scored in scores.subjects}
    write_report(
        run.out.report,
        CohortReport(
            title="Anomaly maps",
            created=datetime.now().astimezone(),
            subjects=[
                report_subject(subject, role[subject.key], run.out, run.config, by_key.get(subject.key))
                for subject in cohort_of(run)
            ],
            scores=scores,
            threshold=Threshold.of_z_maps(scores).value,
            runs=reference_runs,
            summary=run_summary(run.config, adapted_on(run.model), labelled_patients(run.model)),
            training=training_curves(run.model, run.config.models.ensemble.members) if needs_encoder else [],
            stages=stage_times(records, {name: StageRecord.read(run.model.record(name)) for name in stages}),
            failures=[*all_failures(run.out), *without_page],
            warnings=[warning for record in records.values() if record is not None for warning in record.warnings],
            settings_text=yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False),
            versions=next((record.versions for record in records.values() if record and record.versions), {}),
        ),
    )


def stage_times(own: Mapping[str, StageRecord | None], of_model: Mapping[str, StageRecord | None]) -> list[StageTime]:
    """Return the times of the stages of a run and, for an applied model, of those that only its own run has done.

    Parameters
    ----------
    own, of_model : mapping from the name of a stage to its record, or None
        Of the run and of the model; the same records if the run has fitted its own model.
    """
    # The time of the stage report is known only after its page is written.
    records = {name: own[name] or of_model[name] for name in own if name != "report"}
    return [
        StageTime(
            record.stage,
            record.wall_s,
            record.peak_memory_mb,
            done=len(record.done) or None,
            failed=len(record.failed),
            of_model=own[name] is None,
        )
        for name, record in records.items()
        if record is not None
    ]


STAGE = Stage(
    "report",
    _report_inputs,
    _report,
    ("cohort_page", "figures", "tables"),
    needs=("map", "score"),
    retry_failed=True,
)
