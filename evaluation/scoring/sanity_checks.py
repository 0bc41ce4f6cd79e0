"""What is odd about maps and masks and yet no error: said beside the figures, so that nobody reads them wrongly."""

from collections.abc import Sequence

from ...data_manifests.errors import some_of
from .operating_point import LOWEST_DETECTION, OWN_CUT
from .score_cohort import CohortScores
from .subject_scores import SubjectScores

_SAME_SIZE = 1.1
"""Voxels whose volumes differ by less than this ratio count as alike."""


_UPSIDE_DOWN = "lesions have lower scores than healthy tissue"
_LOWEST_AUROC = 0.3
"""A poor map guesses; one as wrong as this knows something."""


def scoring_warnings(scores: CohortScores) -> list[str]:
    """What a reader of a cohort's figures should know, a sentence each."""
    known = [s for s in scores.subjects if s.truth_known]
    return [
        *_of_direction(scores),
        *_of_threshold(scores, known),
        *_of_voxel_sizes(known),
        *_of_subjects(scores.subjects),
    ]


def _of_direction(scores: CohortScores) -> list[str]:
    auroc = scores.estimates["auroc_per_subject_mean"]
    # Without an interval a single poor map must not pass for one upside down.
    most = auroc.ci_high if auroc.ci_high is not None else None if auroc.value is None else auroc.value + 0.2
    if most is None or most >= 0.5:
        each = {s.key: s.auroc.value for s in scores.subjects}
        few = [f"{key} ({own:.2f})" for key, own in each.items() if own is not None and own < _LOWEST_AUROC]
        return [f"{_UPSIDE_DOWN}, by their AUROC, in: {some_of(few)}. Are these maps upside down?"] if few else []
    return [f"{_UPSIDE_DOWN} (AUROC {auroc.value:.2f}), expected higher = more anomalous. Are the maps upside down?"]


def _of_threshold(scores: CohortScores, known: Sequence[SubjectScores]) -> list[str]:
    threshold = scores.threshold
    if threshold is None:
        return []
    if scores.point.origin == OWN_CUT:
        return [
            f"maps of two values are scored at their own cut ({threshold:.3g} and above), whatever the healthy ones "
            "hold: read the false clusters of healthy subjects beside the lesions found."
        ]
    if scores.point.origin == LOWEST_DETECTION:
        background = max(s.background for s in known if s.background is not None)
        return [
            f"the commonest score ({background:.3g}) counts as no detection. Without it the healthy maps hold no more "
            f"clusters than allowed, so every detection counts: the threshold is the lowest of all, {threshold:.3g}."
        ]
    if all(s.highest_score < threshold for s in known):
        return [
            f"the threshold ({threshold:.3g}), set on {scores.point.origin}, lies above every score: no voxel is "
            "flagged, so no lesion can be found. Maps of a few values, such as labels, leave no threshold between "
            "them; score maps of finer scores."
        ]
    return []


def _of_voxel_sizes(known: Sequence[SubjectScores]) -> list[str]:
    sizes = [s.voxel_mm3 for s in known]
    if not sizes or max(sizes) < _SAME_SIZE * min(sizes):
        return []
    return [
        f"voxels of {min(sizes):.3g} to {max(sizes):.3g} mm³ are pooled: pooled figures count voxels, so the finest "
        f"scans weigh {max(sizes) / min(sizes):.2g} times as much. Read the means over subjects beside them."
    ]


def _of_subjects(subjects: Sequence[SubjectScores]) -> list[str]:
    constant = [s.key for s in subjects if s.highest_score == s.lowest_score]
    uncovered = {s.key: s.n_lesion_uncovered for s in subjects if s.n_lesion_uncovered}
    outside = {s.key: s.n_lesion_outside for s in subjects if s.n_lesion_outside}
    empty = [s.key for s in subjects if s.truth_known and not s.n_lesion + s.n_lesion_outside and not s.is_healthy]
    sentences = []
    if empty:
        sentences.append(
            f"lesion masks without a lesion, of subjects that are not called healthy: {some_of(empty)}. They count as "
            "free of lesions; were these masks lost in resampling?"
        )
    if constant:
        sentences.append(f"maps of one and the same score everywhere: {some_of(constant)}.")
    if uncovered:
        sentences.append(
            f"{sum(uncovered.values())} lesion voxels carry no score and count as missed: {some_of(uncovered)}."
        )
    if outside:
        sentences.append(
            f"{sum(outside.values())} lesion voxels lie outside the evaluation mask and enter no figure: "
            f"{some_of(outside)}."
        )
    return sentences
