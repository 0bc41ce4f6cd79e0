"""Lesions by lobe and tissue: the share found, and the size from which half are found there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...data_manifests.synthetic.lesion_kinds import KINDS
from .detection_curve import DetectionCurve, expit, shifts
from .limits import Limit

FEWEST_LESIONS = 20
"""Of a region that is listed."""


@dataclass(frozen=True)
class Region:
    """Lesions of all kinds in a lobe or a tissue.

    Attributes
    ----------
    by, name : str
        "lobe" or "tissue", and which.
    lesions : int
    found, foretold : float
        Share found, and the share that the curves of the whole brain foretell for these lesions.
    limit : Limit
        Of one kind, here.
    """

    by: str
    name: str
    lesions: int
    found: float
    foretold: float
    limit: Limit


def regions_of(
    names: Mapping[str, Sequence[str]],
    logits: np.ndarray,
    found: np.ndarray,
    weights: np.ndarray,
    curve: DetectionCurve,
    kind: str,
) -> tuple[Region, ...]:
    """Return the regions with enough lesions, the largest first.

    Parameters
    ----------
    names : mapping from "lobe" or "tissue" to the name for each of N lesions
    logits : ndarray, (1 + draws, N)
        By the curves of the whole brain, in each bootstrap sample.
    found : ndarray of bool, (N,)
    weights : ndarray, (1 + draws, N)
    curve, kind
        Of the lesions whose limit is given.
    """
    rows = [
        (by, name, own)
        for by, each in names.items()
        for name in sorted(set(each))
        if (own := np.array([other == name for other in each])).sum() >= FEWEST_LESIONS
    ]
    if not rows:
        return ()
    inside = np.array([own for _, _, own in rows])
    moved = np.array([shifts(own, found, inside * weight) for own, weight in zip(logits, weights, strict=True)])
    foretold, usual = expit(logits[0]), KINDS[kind].usual
    regions = [
        Region(
            by,
            name,
            int(own.sum()),
            float(found[own].mean()),
            float(foretold[own].mean()),
            Limit(kind, usual, 0.5, curve.limit(0.5, usual, shift).estimate()),
        )
        for (by, name, own), shift in zip(rows, moved.T, strict=True)
    ]
    return tuple(sorted(regions, key=lambda region: (region.by, -region.lesions)))
