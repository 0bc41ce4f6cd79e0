"""Sizes from which a share of lesions is found, and how they are said."""

from dataclasses import dataclass

from ...data_manifests.synthetic.painted_copies import LARGEST_ML, SMALLEST_ML
from ..metrics.bootstrap import Estimate


@dataclass(frozen=True)
class Limit:
    """Size from which a share of lesions is found.

    Attributes
    ----------
    kind : str
    strength, share : float
    size_ml : Estimate
    """

    kind: str
    strength: float
    share: float
    size_ml: Estimate

    @property
    def text(self) -> str:
        """The size in words, as "0.41 ml" or "more than 10 ml"."""
        return size_text(self.size_ml.value)

    @property
    def interval(self) -> str:
        """Its 95 % interval, as "0.33 to 0.52 ml"; empty without one."""
        low, high = self.size_ml.ci_low, self.size_ml.ci_high
        if low is None or high is None:
            return ""
        first, last = size_text(low), size_text(high)
        return f"{first.removesuffix(' ml') if 'than' not in first + last else first} to {last}"


def size_text(ml: float | None) -> str:
    """Return a size in words; the ends of the painted range stand for all that is beyond them."""
    if ml is None:
        return "not defined"
    if ml >= LARGEST_ML * (1 - 1e-9):
        return f"more than {LARGEST_ML:g} ml"
    return f"less than {SMALLEST_ML:g} ml" if ml <= SMALLEST_ML * (1 + 1e-9) else f"{ml:.2g} ml"
