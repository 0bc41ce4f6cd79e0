"""What was found in each patient of a call, in one line, for the end of the command."""

import csv
from collections.abc import Mapping, Sequence

from ...data_manifests.errors import counted
from ...evaluation.report.cluster_table import where
from ...evaluation.report.report_inputs import Threshold
from ...evaluation.scoring.score_cohort import CohortScores
from ..workflow.runner import Run

MOST_CLUSTERS = 3
"""Clusters of a line; the others are counted."""


def finding_lines(run: Run, scores: CohortScores) -> list[str]:
    """Describe the clusters of every patient of the call that has a page, one line each, in the manifest's order."""
    threshold, by_key = Threshold.of_z_maps(scores).value, {scored.key: scored for scored in scores.subjects}
    lines = []
    for patient in run.manifest.patients:
        table = run.out.subject_clusters(patient)
        if patient.key not in by_key or not table.is_file() or (run.chosen and patient.key not in run.chosen):
            continue
        with table.open(newline="", encoding="utf-8") as file:
            clusters = list(csv.DictReader(file))
        smallest_mm3 = scores.settings.smallest_cluster_mm3
        lines.append(f"{patient.key}: {describe(clusters, threshold, by_key[patient.key].highest_score, smallest_mm3)}")
    return lines


def describe(clusters: Sequence[Mapping[str, str]], threshold: float, highest: float, smallest_mm3: float) -> str:
    """Describe the clusters of one map.

    Parameters
    ----------
    clusters : sequence of mapping
        Rows of the subject's cluster table, highest peak first.
    threshold : float
    highest : float
        Highest score of the map.
    smallest_mm3 : float
        Smaller clusters are not in the table.
    """
    if not clusters:
        if highest < threshold:
            return f"nothing above {threshold:.2f} (highest {highest:.2f})"
        return f"no cluster of {smallest_mm3:g} mm³ above {threshold:.2f} (highest {highest:.2f})"
    shown = [
        f"{_ml(float(row['volume_mm3']) / 1000)} ml, peak {float(row['peak_score']):.1f}, {where(row)}"
        for row in clusters[:MOST_CLUSTERS]
    ]
    if len(clusters) > MOST_CLUSTERS:
        shown.append(f"and {len(clusters) - MOST_CLUSTERS} more")
    return f"{counted(len(clusters), 'cluster')} above {threshold:.2f}: {'; '.join(shown)}"


def _ml(volume_ml: float) -> str:
    return f"{volume_ml:.1f}" if volume_ml >= 1 else f"{volume_ml:.2g}"
