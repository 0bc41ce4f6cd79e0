"""The result of a comparison of two methods in sentences."""

from ...data_manifests.errors import counted
from ..metrics.sign_flips import MOST_ENUMERATED, smallest_sign_flip_p
from .compare import Comparison, Difference
from .metric_labels import METRICS
from .paired_test import LOWER_IS_BETTER

SIGNIFICANT = 0.05
TOLD = (
    "average_precision_per_subject_mean",
    "lesion_sensitivity",
    "false_clusters_per_subject",
)
"""Metrics that are told in words: the ranking of voxels, and both sides of the operating point."""


def in_words(comparison: Comparison, first: str, second: str) -> list[str]:
    """Return a sentence per metric in `TOLD`: which of two methods is better, and how sure that is.

    Parameters
    ----------
    comparison : Comparison
    first, second : str
        Two of its names, in its order.
    """
    told = [d for d in comparison.differences if (d.first, d.second) == (first, second) and d.metric in TOLD]
    defined = [d for d in told if d.p_value is not None]
    sentences = [_sentence(d) for d in defined]
    if any(d.p_value is not None and d.p_value < SIGNIFICANT for d in defined):
        sentences.append(f"p-values are not adjusted for the number of metrics ({len(defined)} here).")
    return sentences


def _sentence(d: Difference) -> str:
    one, other, p, n = d.of_first.value, d.of_second.value, d.p_value, d.difference.n
    assert one is not None and other is not None and p is not None
    label = METRICS[d.metric].label
    label = label[0].lower() + label[1:]
    if p >= SIGNIFICANT:
        both = f"{d.first} ({one:.3g}) and {d.second} ({other:.3g})"
        return f"{label}: no difference is shown between {both}, {p_text(p, n)}."
    better, best, worst = (
        (d.second, other, one) if (other > one) != (d.metric in LOWER_IS_BETTER) else (d.first, one, other)
    )
    return f"{label}: {better} is better, {best:.3g} against {worst:.3g}, {p_text(p, n)}."


def p_text(p: float, subjects: int = MOST_ENUMERATED + 1) -> str:
    """Format the p-value of a paired test, as "p = 0.031", and say if so few subjects allow no smaller one."""
    text = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    if subjects > MOST_ENUMERATED or p > smallest_sign_flip_p(subjects):
        return text
    return f"{text} (the smallest that {counted(subjects, 'subject')} allow{'s' if subjects == 1 else ''})"
