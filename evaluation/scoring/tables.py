"""Output files of a cohort's metrics: ``scores.json`` and three tables, described in docs/scores.md."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.csv_file import write_csv
from ..metrics.bootstrap import Estimate
from .score_cohort import ORACLES, CohortScores, SubjectRow
from .subject_scores import SubjectScores

_LESION_COLUMNS = (
    "subject", "lesion", "volume_mm3", "x_mm", "y_mm", "z_mm", "found", "matched_iou10", "found_at", "highest_score",
    "mean_score", "covered_share",
)  # fmt: skip
_STRATUM_COLUMNS = ("by", "stratum", "metric", "value", "ci_low", "ci_high", "n", "reason_undefined")
FIELDS = ("value", "ci_low", "ci_high", "n", "reason_undefined")


def write_scores(folder: Path, scores: CohortScores, *, left_out: Sequence[str] = ()) -> Path:
    """Write ``scores.json``, ``scores.csv`` (per subject), ``lesions.csv`` (per lesion) and ``strata.csv``.

    Parameters
    ----------
    folder : Path
    scores : CohortScores
    left_out : sequence of str
        Subjects that could not be scored; they are listed in ``scores.json``.

    Returns
    -------
    Path
        Path of ``scores.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "space": scores.space,
        "mask": scores.mask,
        "subjects": len(scores.subjects),
        "healthy_subjects": sum(s.is_healthy for s in scores.subjects),
        "subjects_with_lesions": sum(s.has_lesions for s in scores.subjects),
        "subjects_left_out": list(left_out),
        "subjects_without_truth": [s.key for s in scores.subjects if not s.truth_known],
        "lesions": sum(len(s.lesions) for s in scores.subjects),
        "lesion_voxels_without_a_score": sum(s.n_lesion_uncovered for s in scores.subjects),
        "lesion_voxels_outside_the_mask": sum(s.n_lesion_outside for s in scores.subjects),
        "oracle": list(ORACLES),
        "threshold_from": scores.point.origin if scores.threshold is not None else None,
        "settings": scores.settings.model_dump(mode="json"),
    }
    strata = [
        {"by": stratum.by, "stratum": stratum.name, "metric": name} | _entry(measure.estimate())
        for stratum in scores.strata
        for name, measure in stratum.measures.items()
    ]
    metrics = {name: _entry(estimate) for name, estimate in scores.estimates.items()}
    content = {"about": about, **metrics, "strata": strata}
    path = folder / "scores.json"
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    write_table(
        folder / "scores.csv", [_subject_line(s, row) for s, row in zip(scores.subjects, scores.rows, strict=True)]
    )
    write_table(
        folder / "lesions.csv",
        [line for subject in scores.subjects for line in _lesion_lines(subject, scores.threshold)],
        columns=_LESION_COLUMNS,
    )
    write_table(folder / "strata.csv", strata, columns=_STRATUM_COLUMNS)
    return path


def _entry(estimate: Estimate) -> dict[str, object]:
    return {field: getattr(estimate, field) for field in FIELDS}


def _subject_line(subject: SubjectScores, row: SubjectRow) -> dict[str, object]:
    return {
        "subject": subject.key,
        "group": subject.group,
        "site": subject.site,
        "age": subject.age,
        "truth_known": subject.truth_known,
        "voxels": subject.n_voxels,
        "voxels_without_a_score": subject.n_uncovered,
        "lesions": len(subject.lesions) if subject.truth_known else None,
        "lesion_volume_ml": subject.lesion_volume_ml,
        "lesion_voxels_without_a_score": subject.n_lesion_uncovered,
        "lesion_voxels_outside_the_mask": subject.n_lesion_outside,
        "highest_score": subject.highest_score,
        "score_p999": subject.score_p999,
        "auroc": subject.auroc.value,
        "auroc_fpr30_normalised": subject.auroc_fpr30_normalised.value,
        "average_precision": subject.average_precision.value,
        "best_dice_oracle": subject.best_dice.value,
        "aupimo": row.aupimo,
        "dice_at_healthy_threshold": row.dice,
        "clusters": row.clusters,
        "false_clusters": row.false_clusters,
        "lesions_found": row.lesions_found,
        "lesions_matched_iou10": row.lesions_matched,
        "flagged_volume_ml": row.flagged_ml,
        "reason_undefined": subject.auroc.reason_undefined,
    }


def _lesion_lines(subject: SubjectScores, threshold: float | None) -> list[dict[str, object]]:
    matched = found = [None] * len(subject.lesions)
    if threshold is not None and subject.lesions:
        found = (subject.found_at >= np.float32(threshold)).tolist()
        matched = subject.overlaps.matched_at(np.array([threshold]), len(subject.lesions))[0].tolist()
    return [
        dict(
            zip(
                _LESION_COLUMNS,
                (
                    subject.key, lesion.number, lesion.volume_mm3, *lesion.centre_mm, is_found, is_matched,
                    lesion.found_at, lesion.highest_score, lesion.mean_score, lesion.covered_share,
                ),
                strict=True,
            )
        )
        for lesion, is_found, is_matched in zip(subject.lesions, found, matched, strict=True)
    ]  # fmt: skip


def write_table(path: Path, lines: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None) -> None:
    """Write a CSV file atomically; the columns default to the keys of the first line."""
    columns = tuple(columns or lines[0])
    write_csv(path, columns, ([_cell(line[column]) for column in columns] for line in lines))


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.7g}" if isinstance(value, float) else value
