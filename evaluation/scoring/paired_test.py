"""P-values of the difference between two methods, for metrics that add up over subjects, and the result in words.

For the mean of a number per subject, and for lesions found, exchanging the two maps of a subject changes only the sign
of this subject's term. The pooled metrics have no such term: maps of different methods have different units, and cannot
be exchanged before their voxels are pooled. They keep their bootstrap interval alone.
"""

from collections.abc import Callable, Mapping

from ..metrics.sign_flips import sign_flip_p
from .score_cohort import CohortScores, SubjectRow
from .subject_scores import SubjectScores

PAIRED: Mapping[str, Callable[[SubjectScores, SubjectRow], float | None]] = {
    "auroc_per_subject_mean": lambda scores, row: scores.auroc.value,
    "average_precision_per_subject_mean": lambda scores, row: scores.average_precision.value,
    "best_dice_per_subject_mean": lambda scores, row: scores.best_dice.value,
    "dice_at_healthy_threshold_per_subject_mean": lambda scores, row: row.dice,
    "aupimo": lambda scores, row: row.aupimo,
    "lesion_sensitivity": lambda scores, row: row.lesions_found,
    "lesion_sensitivity_iou10": lambda scores, row: row.lesions_matched,
    "false_clusters_per_subject": lambda scores, row: row.false_clusters,
}
"""The term of a subject with lesions in each metric."""
LOWER_IS_BETTER = frozenset({"false_clusters_per_subject"})


def paired_p_values(first: CohortScores, second: CohortScores, *, seed: int = 0) -> dict[str, float | None]:
    """P-value of each metric in `PAIRED`, for the same subjects in the same order; None if a term is undefined."""
    found: dict[str, float | None] = {}
    for name, term in PAIRED.items():
        differences, participants = [], []
        for scores, row, other_scores, other_row in zip(
            first.subjects, first.rows, second.subjects, second.rows, strict=True
        ):
            if not scores.has_lesions:
                continue
            one, other = term(scores, row), term(other_scores, other_row)
            if one is not None and other is not None:
                differences.append(other - one)
                participants.append(scores.participant)
        found[name] = sign_flip_p(differences, participants, seed=seed) if differences else None
    return found
