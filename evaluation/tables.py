"""The figures of a cohort on disk: ``scores.json``, ``scores.csv`` and ``lesions.csv``."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data_manifests.atomic import written_whole
from .score_cohort import ORACLES, CohortScores, SubjectRow
from .score_subject import SubjectScores

_LESION_COLUMNS = (
    "subject", "lesion", "volume_mm3", "x_mm", "y_mm", "z_mm", "found", "found_at", "highest_score", "mean_score",
    "covered_share",
)  # fmt: skip


def write_scores(folder: Path, scores: CohortScores) -> Path:
    """Write ``scores.json``, ``scores.csv`` (a row a subject) and ``lesions.csv`` (a row a lesion).

    Returns
    -------
    Path
        Of ``scores.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "space": scores.space,
        "mask": scores.mask,
        "subjects": len(scores.subjects),
        "healthy_subjects": sum(s.is_healthy for s in scores.subjects),
        "subjects_with_lesions": sum(s.has_lesions for s in scores.subjects),
        "subjects_without_truth": [s.key for s in scores.subjects if not s.truth_known],
        "lesions": sum(len(s.lesions) for s in scores.subjects),
        "lesion_voxels_without_a_score": sum(s.n_lesion_uncovered for s in scores.subjects),
        "lesion_voxels_outside_the_mask": sum(s.n_lesion_outside for s in scores.subjects),
        "oracle": list(ORACLES),
        "settings": scores.settings.model_dump(mode="json"),
    }
    content = {"about": about} | {
        name: {field: getattr(e, field) for field in ("value", "ci_low", "ci_high", "n", "reason_undefined")}
        for name, e in scores.estimates.items()
    }
    path = folder / "scores.json"
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    write_table(
        folder / "scores.csv", [_subject_line(s, row) for s, row in zip(scores.subjects, scores.rows, strict=True)]
    )
    write_table(
        folder / "lesions.csv",
        [_lesion_line(s, number, scores.threshold) for s in scores.subjects for number in range(len(s.lesions))],
        columns=_LESION_COLUMNS,
    )
    return path


def _subject_line(subject: SubjectScores, row: SubjectRow) -> dict[str, object]:
    return {
        "subject": subject.key,
        "group": subject.group,
        "truth_known": subject.truth_known,
        "voxels": subject.n_voxels,
        "voxels_without_a_score": subject.n_uncovered,
        "lesions": len(subject.lesions) if subject.truth_known else None,
        "lesion_volume_ml": subject.lesion_volume_ml,
        "lesion_voxels_without_a_score": subject.n_lesion_uncovered,
        "lesion_voxels_outside_the_mask": subject.n_lesion_outside,
        "highest_score": subject.highest_score,
        "auroc": subject.auroc.value,
        "auroc_fpr30_normalised": subject.auroc_fpr30_normalised.value,
        "average_precision": subject.average_precision.value,
        "best_dice_oracle": subject.best_dice.value,
        "dice_at_healthy_threshold": row.dice,
        "clusters": row.clusters,
        "false_clusters": row.false_clusters,
        "lesions_found": row.lesions_found,
        "flagged_volume_ml": row.flagged_ml,
        "reason_undefined": subject.auroc.reason_undefined,
    }


def _lesion_line(subject: SubjectScores, number: int, threshold: float | None) -> dict[str, object]:
    lesion = subject.lesions[number]
    found = None if threshold is None else lesion.found_at is not None and lesion.found_at >= threshold
    values = (
        subject.key, lesion.number, lesion.volume_mm3, *lesion.centre_mm, found, lesion.found_at,
        lesion.highest_score, lesion.mean_score, lesion.covered_share,
    )  # fmt: skip
    return dict(zip(_LESION_COLUMNS, values, strict=True))


def write_table(path: Path, lines: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None) -> None:
    """Write a CSV file, whole or not at all; its columns are the keys of the first line where they are not named."""
    columns = tuple(columns or lines[0])
    with written_whole(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for line in lines:
            writer.writerow([_cell(line[column]) for column in columns])


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.7g}" if isinstance(value, float) else value
