"""Stage report: one page per subject, then the cohort page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...evaluation.metrics.fdr import Discovery
from ...evaluation.report.report_inputs import ScoredMap, SubjectReport, Threshold
from ...evaluation.report.subject_page import write_subject_page
from ...evaluation.scoring.reference_results import read_run
from ...evaluation.scoring.score_cohort import CohortScores, subject_row
from ...evaluation.scoring.subject_scores import SubjectScores
from ..config.config import Config
from ..workflow.per_subject import cached, work_by_subject
from ..workflow.records import StageRecord, versions
from ..workflow.runner import Run, StageResult
from ..workflow.stage_inputs import cohort_of
from .assessment import load_scores, maps_and_masks, report_subject, run_summary, write_cohort_report


@dataclass(frozen=True)
class Shared:
    """Inputs that all pages of a cohort share; small, since they are sent to every worker.

    Attributes
    ----------
    threshold : Threshold
    roles : mapping from subject key to its role, such as "held-out control"
    versions : mapping of str to str
    """

    threshold: Threshold
    roles: Mapping[str, str]
    versions: Mapping[str, str]

    @classmethod
    def from_scores(cls, scores: CohortScores, roles: Mapping[str, str], versions: Mapping[str, str]) -> "Shared":
        return cls(Threshold.of_z_maps(scores), roles, versions)


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
    shared = Shared.from_scores(scores, roles, versions())
    work = work_by_subject(
        run, "report", write_page, inputs, run.out.page_record, run.config, run.out, shared, all_may_fail=True
    )
    write_cohort_report(run, scores, roles, reference_runs, work.failed)
    subjects = cohort_of(run)
    _gather_clusters(run.out, [subjects[key] for key in work.done])
    summary = f"{len(work.done)} subject pages; open {run.out.report} in a browser"
    return replace(work, summary=summary)


def write_page(
    subject: SubjectRecord, inputs: Mapping[str, Any], config: Config, out: OutputFolder, shared: Shared
) -> StageRecord:
    """Write the page of a subject from its maps, scores and quality; runs in a worker."""

    def work(out: OutputFolder) -> Sequence[str]:
        _write_page(subject, config, out, shared)
        return ()

    return cached("report", subject, out.page_record(subject), inputs, out, ("pages",), work)


def _write_page(subject: SubjectRecord, config: Config, out: OutputFolder, shared: Shared) -> list[Path]:
    """Write one subject's page and the table of its clusters.

    Returns
    -------
    list of Path
        The files written.
    """
    from ...preprocessing.registration.template import load_template
    from ...preprocessing.registration.template_transform import TemplateTransform

    scores = SubjectScores.load(out.subject_scores(subject.key))
    space = config.evaluation.space
    map, evaluation_mask, truth, covered = maps_and_masks(subject, out, space)
    transform = TemplateTransform.load(out.transform_folder(subject)) if space == "native" else None
    template = load_template(config.preprocessing.spacing_mm)
    page = out.subject_page(subject)
    report = SubjectReport(
        subject=report_subject(subject, shared.roles[subject.key], out, config, scores),
        created=datetime.now().astimezone(),
        scored=ScoredMap(
            map,
            evaluation_mask.with_voxels(evaluation_mask.voxels & covered.voxels),
            transform.points_to_template if transform else lambda points: points,
            truth,
        ),
        space=space,
        threshold=shared.threshold,
        smallest_cluster_mm3=config.evaluation.smallest_cluster_mm3,
        grey=template.grey,
        white=template.white,
        discovery=Discovery.from_z(map.voxels[covered.voxels], config.evaluation.false_discovery_rate),
        row=subject_row(scores, shared.threshold.value),
        cohort_page="../" + out.report.name,
        summary=run_summary(config),
        settings_text=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
        versions=shared.versions,
    )
    return write_subject_page(page, report, table=out.subject_clusters(subject))


def _gather_clusters(out: OutputFolder, subjects: Sequence[SubjectRecord]) -> None:
    """Join the clusters of all subjects in one table."""
    tables = [out.subject_clusters(subject).read_text(encoding="utf-8").splitlines(True) for subject in subjects]
    if tables:
        with atomic_write(out.clusters) as temporary:
            temporary.write_text("".join([*tables[0], *(line for table in tables[1:] for line in table[1:])]))
