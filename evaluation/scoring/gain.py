"""What a change of a model gains on patients with lesion masks, and whether that is shown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..metrics import voxel_metrics as vm
from ..metrics.bootstrap import Estimate, Measure, mean_over_subjects, resample_subjects
from ..metrics.lesion_metrics import froc_scores
from ..metrics.sign_flips import sign_flip_p
from .subject_scores import SubjectScores

FEWEST_TO_SHOW = 6
"""Participants. With five, even differences that all have the same sign occur by chance in one of sixteen cases."""
_LARGEST_P = 0.05
PER_SUBJECT, POOLED, FOUND = "average_precision_per_subject_mean", "average_precision", "lesions_found_at_1"
NAMES = {
    PER_SUBJECT: "average precision of a patient",
    POOLED: "average precision, all voxels pooled",
    FOUND: "lesions found at one false-positive cluster a scan",
}
_EDGES_OF_DRAWS = 4096
_DRAWS_AT_ONCE = 64
_NO_LESION = "no lesion voxel"


@dataclass(frozen=True)
class Gain:
    """A metric before and after a change, on the same patients; higher is better.

    Attributes
    ----------
    metric : str
        One of `NAMES`.
    before, after, difference : Estimate
        With intervals paired by participant.
    p_value : float or None
        From random signs of the participants' differences; None for metrics that do not add up over subjects.
    participants : int
    """

    metric: str
    before: Estimate
    after: Estimate
    difference: Estimate
    p_value: float | None
    participants: int

    @property
    def is_shown(self) -> bool:
        """Whether a gain may be claimed: there are enough participants, and neither interval nor p allow for none."""
        low = self.difference.ci_low
        by_chance = self.p_value is not None and self.p_value >= _LARGEST_P
        return self.participants >= FEWEST_TO_SHOW and low is not None and low > 0 and not by_chance

    @property
    def is_loss(self) -> bool:
        """Whether the whole interval of the difference is below 0."""
        return self.difference.ci_high is not None and self.difference.ci_high < 0

    @property
    def sentence(self) -> str:
        """Say both values and their difference; a gain only if it is shown."""
        if self.difference.value is None:
            return f"{NAMES[self.metric]}: not defined ({self.difference.reason_undefined})"
        low, high = self.difference.ci_low, self.difference.ci_high
        p_value = f"; p = {self.p_value:.2g}" if self.p_value is not None else ""
        interval = f" (95 % interval {low:+.3f} to {high:+.3f}{p_value})" if low is not None else ""
        verdict = "a gain" if self.is_shown else "a loss" if self.is_loss else "no gain shown"
        return (
            f"{NAMES[self.metric]}: {self.before.value:.3f} without the labels, {self.after.value:.3f} with them, "
            f"difference {self.difference.value:+.3f}{interval}: {verdict}"
        )


def gains(
    before: Sequence[SubjectScores], after: Sequence[SubjectScores], *, draws: int, seed: int
) -> tuple[Gain, ...]:
    """Compare the scores of the same patients, in the same order, before and after a change.

    Parameters
    ----------
    before, after : sequence of SubjectScores
        With lesions.
    draws : int
        Bootstrap samples of the participants.
    seed : int
    """
    if [scores.key for scores in before] != [scores.key for scores in after]:
        raise ValueError("expected the same patients in the same order")
    participants = [scores.participant for scores in before]
    weights = resample_subjects([""] * len(before), draws, seed, participants)
    measures = [_measures(scores, weights) for scores in (before, after)]
    own = [[scores.average_precision.value for scores in each] for each in (before, after)]
    differences = [
        (y - x, who) for x, y, who in zip(*own, participants, strict=True) if x is not None and y is not None
    ]
    p_value = sign_flip_p(*map(list, zip(*differences, strict=True)), seed=seed) if differences else None
    count = len(set(participants))
    return tuple(
        Gain(
            name,
            measures[0][name].estimate(),
            measures[1][name].estimate(),
            measures[1][name].minus(measures[0][name]).estimate(),
            p_value if name == PER_SUBJECT else None,
            count,
        )
        for name in NAMES
    )


def _measures(subjects: Sequence[SubjectScores], weights: np.ndarray) -> dict[str, Measure]:
    count = len({scores.participant for scores in subjects})
    per_subject = mean_over_subjects([s.average_precision.value for s in subjects], weights, why_none=_NO_LESION)
    per_subject = Measure(per_subject.value, per_subject.draws, per_subject.n, count, _NO_LESION)
    curves = [scores.curves.clusters.false_cluster_thresholds for scores in subjects]
    found = [
        np.array([-np.inf if lesion.found_at is None else lesion.found_at for lesion in scores.lesions], np.float32)
        for scores in subjects
    ]
    values = froc_scores(curves, found, weights, at=(1.0,))
    n_lesions = sum(len(scores) for scores in found)
    return {
        PER_SUBJECT: per_subject,
        POOLED: _pooled(subjects, weights, count),
        FOUND: Measure(float(values[0]), values[1:], n_lesions, count, _NO_LESION),
    }


def _pooled(subjects: Sequence[SubjectScores], weights: np.ndarray, count: int) -> Measure:
    histograms = [scores.curves.histogram for scores in subjects]
    exact = vm.rank_counts(histograms, vm.common_edges(histogram.lesion_scores for histogram in histograms))
    every = sum(len(histogram.lesion_scores) for histogram in histograms)
    edges = vm.common_edges((h.lesion_scores for h in histograms), max(-(-every // _EDGES_OF_DRAWS), 1))
    each = vm.RankCounts.empty(edges, len(histograms))
    for row, histogram in enumerate(histograms):
        each.add(histogram, edges, row)
    drawn = [
        vm.average_precision(each.reweighted(weights[start : start + _DRAWS_AT_ONCE]))
        for start in range(1, len(weights), _DRAWS_AT_ONCE)
    ]
    value = float(vm.average_precision(exact))
    return Measure(value, np.concatenate([np.zeros(0), *drawn]), len(subjects), count, _NO_LESION)
