"""HTML page of the scores of `voxout evaluate`: what a run shows of its scores, without scans and preparation."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import yaml

from ...data_manifests.errors import Failure, without_names
from ...evaluation.report.cohort_page import CohortReport, ReportSubject, write_report
from ...evaluation.scoring.score_cohort import CohortScores
from ..workflow.records import versions

PAGE = Path("report", "index.html")
"""Place of the page in the folder of the scores."""
_LEAD = (
    "Anomaly maps compared with lesion masks. Higher scores mean more unusual tissue. The threshold is set on the maps "
    "of healthy subjects, without using any lesion."
)


def write_score_page(folder: Path, scores: CohortScores, failures: Sequence[Failure], warnings: Sequence[str]) -> Path:
    """Write the page of scored maps below a folder of scores.

    Parameters
    ----------
    folder : Path
    scores : CohortScores
    failures : sequence of Failure
        Subjects that could not be scored.
    warnings : sequence of str

    Returns
    -------
    Path
        Path of the page.
    """
    subjects = [
        ReportSubject(s.key, s.group, "patient" if s.group == "patient" else "healthy", s.site, s.age, scores=s)
        for s in scores.subjects
    ]
    report = CohortReport(
        "Scores of anomaly maps",
        datetime.now().astimezone(),
        subjects,
        scores,
        lead=_LEAD,
        prepared=False,
        failures=[Failure(f.key, f.stage, without_names(f.reason)) for f in failures],
        warnings=[without_names(warning) for warning in warnings],
        settings_text=yaml.safe_dump(scores.settings.model_dump(mode="json"), sort_keys=False),
        versions=versions(),
    )
    return write_report(folder / PAGE, report)
