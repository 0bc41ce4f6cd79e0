"""How a patient relates to the controls of the model, in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data_manifests.errors import counted
from ..scoring.control_summary import P001_Z, ControlSummary


@dataclass(frozen=True)
class Statement:
    """A comparison, and whether the patient lies outside of what the controls show."""

    text: str
    unusual: bool


def relation_to_controls(
    controls: ControlSummary | None,
    *,
    scores: np.ndarray,
    clusters: int,
    age: float | None,
    spacing_mm: Sequence[float] | None,
    latent_distance: float | None = None,
) -> tuple[Statement, ...]:
    """Compare a patient with the controls; empty for a model without the summary of its controls.

    The age itself is not told: a page shows no demographic data.

    Parameters
    ----------
    controls : ControlSummary or None
    scores : array, (N,)
        z-scores of the subject's map, at the voxels that have one.
    clusters : int
        Number of connected clusters at the threshold.
    age : float or None
        Years.
    spacing_mm : sequence of float or None
        Edges of a voxel of the scan.
    latent_distance : float or None
        Of the whole brain, median of -log10 p.
    """
    if controls is None or not controls.clusters or not scores.size:
        return ()
    found = []
    if age is not None and controls.ages is not None:
        low, high = controls.ages
        side = "younger" if age < low else "older" if age > high else None
        found.append(
            Statement(
                f"{side} than all controls ({low:g} to {high:g} years)"
                if side
                else f"of an age within that of the controls ({low:g} to {high:g} years)",
                side is not None,
            )
        )
    if spacing_mm is not None and controls.spacing_mm is not None:
        own, (low, high) = (min(spacing_mm), max(spacing_mm)), controls.spacing_mm
        # A tenth more or less makes no other image.
        coarse, fine = own[1] > 1.1 * high, own[0] < low / 1.1
        edges = " x ".join(f"{edge:.2g}" for edge in spacing_mm)
        text = f"voxels of {edges} mm (controls {range_in_words(low, high, '.2g')} mm)"
        found.append(Statement(text, coarse or fine))
    if latent_distance is not None and controls.latent_distances is not None:
        middle, most = float(np.median(controls.latent_distances)), controls.latent_distances[-1]
        found.append(
            Statement(
                f"latents of the whole brain at a distance of {latent_distance:.2f}, median of -log10 p (controls: "
                f"median {middle:.2f}, at most {most:.2f})",
                latent_distance > most,
            )
        )
    share = float((scores > P001_Z).mean())
    shares = controls.shares_above
    most = shares[-1]
    found.append(
        Statement(
            f"{100 * share:.2g} % of the voxels above p < .001 (controls: median {100 * float(np.median(shares)):.2g} "
            f"%, at most {100 * most:.2g} %)",
            share > most,
        )
    )
    highest, middle = controls.clusters[-1], float(np.median(controls.clusters))
    found.append(
        Statement(
            f"{counted(clusters, 'cluster')} (controls: median {middle:g}, at most {highest})",
            clusters > highest,
        )
    )
    return tuple(found)


def range_in_words(low: float, high: float, form: str) -> str:
    """Write a range, of two equal numbers as one."""
    return f"{low:{form}}" if f"{low:{form}}" == f"{high:{form}}" else f"{low:{form}} to {high:{form}}"
