"""One HTML file for a cohort: opens from disk, asks no network, and holds all its pictures.

The style and the script are part of the page, and a content-security policy with their hashes forbids everything
else, so that the file may lie on any share. Images of the subjects are asked for one after the other: however large
the cohort, one subject's volumes are in memory at a time.
"""

from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path

import jinja2
from PIL import UnidentifiedImageError

from ..data_manifests.atomic import written_whole
from ..data_manifests.errors import UserError
from . import report_parts as parts
from .mosaic import colour_bar, webp
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

MOSAIC_BYTES, QUALITY_BYTES = 2_300_000, 900_000
"""All pictures of a page together; each one's share shrinks as the cohort grows."""


def write_report(
    path: Path,
    report: CohortReport,
    *,
    figures_folder: Path | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Path:
    """Write the page, whole or not at all, and the figures for papers beside it.

    Parameters
    ----------
    path : Path
        Of the HTML file.
    report : CohortReport
    figures_folder : Path, optional
        For SVG and PNG files; ``figures`` beside the page by default.
    progress : callable, optional
        Wraps the iteration over the subjects, as ``tqdm`` does.

    Returns
    -------
    Path
        Of the page.
    """
    plots = parts.score_plots(report.scores) if report.scores else []
    training = parts.training_plots(report.training)
    for plot in plots + training:
        plot.save(figures_folder or path.parent / "figures")
    scale = parts.colour_scale_of(report)
    shown = [s for s in report.subjects if s.images is not None]
    with_quality = [s for s in report.subjects if s.quality_picture is not None]
    mosaic_bytes = min(60_000, MOSAIC_BYTES // max(len(shown), 1))
    quality_bytes = min(30_000, QUALITY_BYTES // max(len(with_quality), 1))
    warnings = list(report.warnings)
    pictures: dict[str, tuple[str, str]] = {}
    for subject in progress(shown) if progress else shown:
        try:
            pictures[subject.key] = parts.mosaic_uri(subject, scale, mosaic_bytes)
        except UserError as error:
            warnings.append(f"No picture of {subject.key}: {error}")
    quality: dict[str, str] = {}
    for subject in with_quality:
        try:
            quality[subject.key] = parts.picture_uri(subject.quality_picture, quality_bytes)
        except (OSError, UnidentifiedImageError):
            warnings.append(f"{subject.key}: its quality picture is missing or damaged.")
    scored = [s for s in report.subjects if s.scores is not None]
    warnings += parts.coverage_warnings([s.scores for s in scored if s.scores is not None])

    templates = resources.files(__package__ or "voxout.evaluation") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (templates / name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": parts.number_text,
        "seconds": parts.duration_text,
        "estimate": parts.estimate_text,
    }
    style = (templates / "report.css").read_text(encoding="utf-8")
    script = (templates / "report.js").read_text(encoding="utf-8")
    rows = {row.key: row for row in report.scores.rows} if report.scores else {}
    typical, typical_words = parts.typical_patient([s for s in shown if s.key in pictures]) or (None, "")
    page = environment.get_template("report.html").render(
        report=report,
        style=style,
        script=script,
        style_hash=parts.csp_hash(style),
        script_hash=parts.csp_hash(script),
        headlines=parts.headlines(report.scores),
        metrics=parts.metric_rows(report.scores),
        plots=[parts.embedded(plot) for plot in plots],
        training=[parts.embedded(plot) for plot in training],
        lines=[parts.table_line(subject, rows.get(subject.key)) for subject in report.subjects],
        pictures=pictures,
        quality=quality,
        rows=rows,
        shown=[s for s in shown if s.key in pictures],
        typical=typical,
        typical_words=typical_words,
        with_quality=[s for s in with_quality if s.key in quality],
        warnings=warnings,
        scale=scale,
        bar=parts.data_uri(webp(colour_bar(scale), 10_000), "image/webp") if scale else None,
        counts=parts.cohort_counts(report),
    )
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path
