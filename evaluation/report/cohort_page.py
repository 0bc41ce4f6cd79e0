"""HTML report of a cohort: one self-contained file that needs no network access.

The images of the subjects are loaded one after the other, so that only one subject's volumes are in memory at a time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import UnidentifiedImageError

from ...data_manifests.errors import UserError
from ..figures.colour_scale import colour_bar
from ..figures.mosaic import subject_mosaic
from ..scoring.metric_labels import METRICS, is_oracle
from ..scoring.reference_results import COMPARED, RunScores
from ..scoring.sanity_checks import scoring_warnings
from ..scoring.tables import write_table
from .cohort_tables import (
    TableLine,
    columns_with_values,
    reading_order,
    run_table,
    runs_of,
    stratum_tables,
    subject_table,
    table_line,
)
from .embedded_plots import embedded, score_plots, training_plots
from .headlines import cohort_counts, headlines, metric_rows, threshold_notes
from .html import picture_file_uri, picture_uri, write_page
from .map_pictures import colour_scale_of, head_of, threshold_of, typical_patient
from .qc_table import QualityTable, quality_lines, quality_table
from .report_inputs import (
    CohortReport,
    ReportSubject,
    StageTime,
    SubjectImages,
    TrainingCurve,
)
from .widespread import widespread_share, widespread_warning

__all__ = [
    "CohortReport",
    "ReportSubject",
    "StageTime",
    "SubjectImages",
    "TrainingCurve",
    "write_report",
]

MOSAIC_BYTES, QUALITY_BYTES = 950_000, 320_000
"""Limits for all pictures of a page together; pictures are smaller in larger cohorts. The subject pages show more."""
MOST_QUALITY_PICTURES = 60
MOST_WITH_SCAN = 60
"""Scans are shown above the maps for at most this many subjects."""


def write_report(path: Path, report: CohortReport) -> Path:
    """Write the page atomically, with ``figures`` (SVG, PNG) and ``tables`` (CSV) in folders next to it.

    Parameters
    ----------
    path : Path
        Path of the HTML file.
    report : CohortReport

    Returns
    -------
    Path
        Path of the page.
    """
    with_truth = report.scores is not None and any(scored.truth_known for scored in report.scores.subjects)
    plots = score_plots(report.scores, report.subjects) if report.scores and with_truth else []
    training = training_plots(report.training)
    for plot in plots + training:
        plot.save(path.parent / "figures")
    subjects = sorted(report.subjects, key=reading_order)
    maps, map_warnings = _map_section(report, subjects)
    main_metrics = headlines(report.scores)
    table = quality_table(report.subjects, {failure.key: failure.reason for failure in report.failures})
    quality, quality_warnings = _quality_section(table)
    rows = {row.key: row for row in report.scores.rows} if report.scores else {}
    lines = [table_line(subject, rows.get(subject.key)) for subject in subjects]
    runs = runs_of(report)
    _write_tables(path.parent / "tables", lines, table if report.prepared else None, runs)
    # Warnings about metrics are shown with the metrics.
    metric_warnings = scoring_warnings(report.scores) if report.scores and with_truth else []
    warnings = [warning for warning in report.warnings if warning not in metric_warnings]
    return write_page(
        path,
        "report.html",
        styles=("report.css",),
        scripts=("report.js", "cohort.js"),
        report=report,
        headlines=main_metrics,
        measured=any(headline.estimate.value is not None for headline in main_metrics),
        metrics=metric_rows(report.scores),
        metric_warnings=metric_warnings,
        plots=[embedded(plot) for plot in plots],
        strata=stratum_tables(report.scores),
        threshold_notes=threshold_notes(report),
        counts=cohort_counts(report),
        lines=lines,
        columns=columns_with_values(lines),
        with_truth=with_truth,
        rows=rows,
        runs=runs,
        compared=[(n, METRICS[n].label, is_oracle(n)) for n in COMPARED if any(n in r.estimates for r in runs)],
        training=[embedded(plot) for plot in training],
        quality_lines=quality_lines(report.subjects),
        warnings=[*warnings, *map_warnings, *quality_warnings],
        **maps,
        **quality,
    )


def _map_section(report: CohortReport, subjects: Sequence[ReportSubject]) -> tuple[dict[str, Any], list[str]]:
    """Template variables of the maps, and warnings about maps that cannot be shown."""
    scale = colour_scale_of(report)
    with_map = [subject for subject in subjects if subject.images is not None]
    with_scan = len(with_map) <= MOST_WITH_SCAN
    most_bytes = min(60_000, MOSAIC_BYTES // max(len(with_map), 1))
    threshold = threshold_of(report)
    pictures: dict[str, tuple[str, str]] = {}
    flagged: dict[str, float] = {}
    warnings = []
    for subject in with_map:
        try:
            assert subject.images is not None and scale is not None
            head = head_of(subject.images(), scale)
            picture, alt = subject_mosaic(head, scan_row=with_scan)
            pictures[subject.key] = picture_uri(picture, most_bytes), f"{subject.key}: {alt}."
            # Without a threshold, the colours start at a percentile of all scores.
            if (
                threshold is not None
                and (share := widespread_share(head.scores, head.brain, head.affine, head.scale.low)) is not None
            ):
                flagged[subject.key] = share
        except UserError as error:
            warnings.append(f"No picture of {subject.key}: {error}")
    shown = [subject for subject in with_map if subject.key in pictures]
    typical, typical_caption = typical_patient(shown) or (None, "")
    return {
        "pictures": pictures,
        "shown": shown,
        "with_scan": with_scan,
        "typical": typical,
        "typical_caption": typical_caption,
        "scale": scale,
        "threshold": threshold,
        "widespread": widespread_warning(flagged),
        "bar": picture_uri(colour_bar(scale), 10_000) if scale else None,
    }, warnings


def _quality_section(table: QualityTable) -> tuple[dict[str, Any], list[str]]:
    """Template variables of the preprocessing quality, and warnings about pictures that cannot be shown."""
    outliers_first = [row.subject for row in table.rows if row.subject.quality_picture is not None]
    chosen = outliers_first[:MOST_QUALITY_PICTURES]
    most_bytes = min(30_000, QUALITY_BYTES // max(len(chosen), 1))
    pictures: dict[str, str] = {}
    warnings = []
    for subject in chosen:
        try:
            assert subject.quality_picture is not None
            pictures[subject.key] = picture_file_uri(subject.quality_picture, most_bytes)
        except (OSError, UnidentifiedImageError):
            warnings.append(f"{subject.key}: the quality-control picture is missing or damaged.")
    return {
        "quality_table": table,
        "quality": pictures,
        "with_quality": [subject for subject in chosen if subject.key in pictures],
        "not_shown": len(outliers_first) - len(chosen),
    }, warnings


def _write_tables(
    folder: Path, lines: Sequence[TableLine], quality: QualityTable | None, runs: Sequence[RunScores]
) -> None:
    if lines:
        write_table(folder / "subjects.csv", subject_table(lines))
    if lines and quality is not None:
        write_table(folder / "quality.csv", quality.as_lines())
    if runs:
        write_table(folder / "runs.csv", run_table(runs))
