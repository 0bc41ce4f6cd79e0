"""HTML report of a cohort: one self-contained file that needs no network access.

The images of the subjects are loaded one after the other, so that only one subject's volumes are in memory at a time.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import UnidentifiedImageError

from ...data_manifests.errors import UserError
from ..figures.colour_scale import colour_bar
from ..figures.mosaic import subject_mosaic
from ..scoring.metric_labels import METRICS, is_oracle
from ..scoring.reference_results import COMPARED
from ..scoring.sanity_checks import scoring_warnings
from ..scoring.tables import write_table
from . import elements as parts
from .html import picture_file_uri, picture_uri, write_page
from .qc_table import quality_table
from .report_inputs import (
    CohortReport,
    ReportSubject,
    StageTime,
    SubjectImages,
    TrainingCurve,
)

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


def write_report(
    path: Path,
    report: CohortReport,
    *,
    figures_folder: Path | None = None,
    tables_folder: Path | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Path:
    """Write the page atomically, with its figures (SVG, PNG) and tables (CSV) as separate files.

    Parameters
    ----------
    path : Path
        Path of the HTML file.
    report : CohortReport
    figures_folder : Path, optional
        Folder ``figures`` next to the page by default.
    tables_folder : Path, optional
        Folder ``tables`` next to the page by default.
    progress : callable, optional
        Wrapper of the iteration over the subjects, for example ``tqdm``.

    Returns
    -------
    Path
        Path of the page.
    """
    plots = parts.score_plots(report.scores, report.subjects) if report.scores else []
    training = parts.training_plots(report.training)
    for plot in plots + training:
        plot.save(figures_folder or path.parent / "figures")
    scale = parts.colour_scale_of(report)
    subjects = sorted(report.subjects, key=parts.reading_order)
    shown = [s for s in subjects if s.images is not None]
    quality_rows = quality_table(report.subjects, {failure.key: failure.reason for failure in report.failures})
    outliers_first = [row.subject for row in quality_rows.rows if row.subject.quality_picture is not None]
    with_quality = outliers_first[:MOST_QUALITY_PICTURES]
    mosaic_bytes = min(60_000, MOSAIC_BYTES // max(len(shown), 1))
    quality_bytes = min(30_000, QUALITY_BYTES // max(len(with_quality), 1))
    metric_warnings = scoring_warnings(report.scores) if report.scores else []
    # Warnings about metrics are shown with the metrics.
    warnings = [warning for warning in report.warnings if warning not in metric_warnings]
    pictures: dict[str, tuple[str, str]] = {}
    for subject in progress(shown) if progress else shown:
        try:
            assert subject.images is not None and scale is not None
            picture, alt = subject_mosaic(parts.head_of(subject.images(), scale), scan_row=len(shown) <= MOST_WITH_SCAN)
            pictures[subject.key] = picture_uri(picture, mosaic_bytes), f"{subject.key}: {alt}."
        except UserError as error:
            warnings.append(f"No picture of {subject.key}: {error}")
    quality: dict[str, str] = {}
    for subject in with_quality:
        try:
            assert subject.quality_picture is not None
            quality[subject.key] = picture_file_uri(subject.quality_picture, quality_bytes)
        except (OSError, UnidentifiedImageError):
            warnings.append(f"{subject.key}: the quality-control picture is missing or damaged.")

    rows = {row.key: row for row in report.scores.rows} if report.scores else {}
    lines = [parts.table_line(subject, rows.get(subject.key)) for subject in subjects]
    runs = parts.runs_of(report)
    tables = tables_folder or path.parent / "tables"
    if lines:
        write_table(tables / "subjects.csv", parts.subject_table(lines))
        write_table(tables / "quality.csv", quality_rows.as_lines())
    if runs:
        write_table(tables / "runs.csv", parts.run_table(runs))
    typical, typical_caption = parts.typical_patient([s for s in shown if s.key in pictures]) or (None, "")
    return write_page(
        path,
        "report.html",
        styles=("report.css",),
        scripts=("report.js", "cohort.js"),
        report=report,
        headlines=parts.headlines(report.scores),
        metrics=parts.metric_rows(report.scores),
        plots=[parts.embedded(plot) for plot in plots],
        training=[parts.embedded(plot) for plot in training],
        lines=lines,
        runs=runs,
        compared=[(n, METRICS[n].label, is_oracle(n)) for n in COMPARED if any(n in r.estimates for r in runs)],
        quality_lines=parts.quality_lines(report.subjects),
        quality_table=quality_rows,
        pictures=pictures,
        quality=quality,
        rows=rows,
        shown=[s for s in shown if s.key in pictures],
        with_scan=len(shown) <= MOST_WITH_SCAN,
        typical=typical,
        typical_caption=typical_caption,
        not_shown=len(outliers_first) - len(with_quality),
        with_quality=[s for s in with_quality if s.key in quality],
        metric_warnings=metric_warnings,
        warnings=warnings,
        scale=scale,
        threshold=parts.threshold_of(report),
        bar=picture_uri(colour_bar(scale), 10_000) if scale else None,
        strata=parts.stratum_lines(report.scores),
        stratum_labels=[METRICS[name].label for name in parts.STRATUM_METRICS],
        counts=parts.cohort_counts(report),
    )
