"""The findings of one map in a sentence, the same on the page of a subject and in the terminal."""

from collections.abc import Mapping, Sequence

from ...data_manifests.errors import counted
from .cluster_table import count_clusters, where

MOST_TOLD = 3
"""Findings of a sentence; the others are counted."""


def describe(
    clusters: Sequence[Mapping[str, object]],
    threshold: float,
    highest: float,
    smallest_mm3: float,
    *,
    widespread: float | None,
) -> str:
    """Describe the clusters of one map.

    Parameters
    ----------
    clusters : sequence of mapping
        All rows of the subject's cluster table (see `cluster_row`), highest peak first; read from a file, or as made.
    threshold : float
    highest : float
        Highest score of the map.
    smallest_mm3 : float
        Smaller clusters are not in the table.
    widespread : float or None
        Of the map, from `widespread_share`: unless None, the clusters are no findings.
    """
    if widespread is not None:
        share = f"{widespread:.0%}".replace("%", " %")
        return (
            f"not to be interpreted: {share} of the brain is above {threshold:.2f}, in both hemispheres (another "
            "scanner or sequence than that of the controls, or a failed preparation?)"
        )
    if not clusters:
        if highest < threshold:
            return f"nothing above {threshold:.2f} (highest {highest:.2f})"
        return f"no cluster of {smallest_mm3:g} mm³ above {threshold:.2f} (highest {highest:.2f})"
    shown = [
        f"{_ml(float(str(row['volume_mm3'])) / 1000)} ml, peak {float(str(row['peak_score'])):.1f}, {where(row)}"
        + (f" ({str(row['flags']).replace(';', ',')})" if row.get("flags") else "")
        for row in clusters[:MOST_TOLD]
    ]
    if len(clusters) > MOST_TOLD:
        shown.append(f"and {len(clusters) - MOST_TOLD} more")
    wholes = count_clusters(clusters)
    found = f"{len(clusters)} findings in {counted(wholes, 'cluster')}"
    return (
        f"{counted(wholes, 'cluster') if wholes == len(clusters) else found} above {threshold:.2f}: {'; '.join(shown)}"
    )


def _ml(volume_ml: float) -> str:
    return f"{volume_ml:.1f}" if volume_ml >= 1 else f"{volume_ml:.2g}"
