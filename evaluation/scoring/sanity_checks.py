"""Warnings about maps and masks that are no errors but affect the interpretation of the metrics."""

from collections.abc import Sequence

from ...data_manifests.errors import some_of
from .operating_point import LOWEST_DETECTION, OWN_CUT
from .score_cohort import CohortScores
from .subject_scores import SubjectScores

_SAME_SIZE = 1.1
"""Voxel volumes that differ by less than this ratio count as equal."""

_FEW_SCORES = 256
"""Maps with at most this many distinct scores in healthy tissue count as labels."""
_INVERTED = "lesions have lower scores than healthy tissue"
_LOWEST_AUROC = 0.3
"""A single map with a lower AUROC is worse than chance and probably inverted."""


def scoring_warnings(scores: CohortScores) -> list[str]:
    """Return the warnings for the metrics of a cohort, one sentence each."""
    known = [s for s in scores.subjects if s.truth_known]
    return [
        *_direction_warnings(scores),
        *_threshold_warnings(scores, known),
        *_voxel_size_warnings(known),
        *_subject_warnings(scores.subjects),
    ]


def _direction_warnings(scores: CohortScores) -> list[str]:
    auroc = scores.estimates["auroc_per_subject_mean"]
    # Without an interval, a single poor map must not be reported as inverted.
    upper = auroc.ci_high if auroc.ci_high is not None else None if auroc.value is None else auroc.value + 0.2
    if upper is None or upper >= 0.5:
        each = {s.key: s.auroc.value for s in scores.subjects}
        few = [f"{key} ({own:.2f})" for key, own in each.items() if own is not None and own < _LOWEST_AUROC]
        return [f"{_INVERTED} (AUROC) in: {some_of(few)}. Check whether these maps are inverted."] if few else []
    return [
        f"{_INVERTED} (AUROC {auroc.value:.2f}), expected higher = more anomalous. Check whether the maps are inverted."
    ]


def _threshold_warnings(scores: CohortScores, known: Sequence[SubjectScores]) -> list[str]:
    threshold = scores.threshold
    if threshold is None:
        return []
    if scores.point.origin == OWN_CUT:
        return [
            f"the maps have two values: voxels at or above {threshold:.3g} count as detections, regardless of the "
            "healthy scans. Interpret the lesions found together with the false clusters in healthy subjects."
        ]
    if scores.point.origin == LOWEST_DETECTION:
        background = max(s.background for s in known if s.background is not None)
        return [
            f"the most common score ({background:.3g}) counts as background. The healthy maps have no more clusters "
            f"above it than allowed, so the threshold is the lowest score above the background, {threshold:.3g}."
        ]
    # Nothing above the threshold is what a quiet scan without lesions should show.
    if any(s.has_lesions for s in scores.subjects) and all(s.highest_score < threshold for s in scores.subjects):
        labels = all(len(s.histogram.healthy_scores) <= _FEW_SCORES for s in scores.subjects)
        return [
            f"the threshold ({threshold:.3g}), set on {scores.point.origin}, lies above every score: no voxel is "
            "flagged and no lesion can be found."
            + (" The maps have few distinct values, such as labels; score continuous maps." if labels else "")
        ]
    return []


def _voxel_size_warnings(known: Sequence[SubjectScores]) -> list[str]:
    sizes = [s.voxel_mm3 for s in known]
    if not sizes or max(sizes) < _SAME_SIZE * min(sizes):
        return []
    return [
        f"voxels of {min(sizes):.3g} to {max(sizes):.3g} mm³ are pooled: pooled metrics count voxels, so the finest "
        f"scans have {max(sizes) / min(sizes):.2g} times the weight of the coarsest. See also the means over subjects."
    ]


def _subject_warnings(subjects: Sequence[SubjectScores]) -> list[str]:
    constant = [s.key for s in subjects if s.highest_score == s.lowest_score]
    uncovered = {s.key: s.n_lesion_uncovered for s in subjects if s.n_lesion_uncovered}
    outside = {s.key: s.n_lesion_outside for s in subjects if s.n_lesion_outside}
    empty = [s.key for s in subjects if s.truth_known and not s.n_lesion + s.n_lesion_outside and not s.is_healthy]
    sentences = []
    if empty:
        sentences.append(
            f"empty lesion masks of subjects not listed as healthy: {some_of(empty)}. They count as free of lesions; "
            "check whether the lesions were lost in resampling."
        )
    if constant:
        sentences.append(f"maps with the same score in all voxels: {some_of(constant)}.")
    if uncovered:
        sentences.append(
            f"{sum(uncovered.values())} lesion voxels have no score and count as missed: {some_of(uncovered)}."
        )
    if outside:
        sentences.append(
            f"{sum(outside.values())} lesion voxels lie outside the evaluation mask and are not scored: "
            f"{some_of(outside)}."
        )
    return sentences
