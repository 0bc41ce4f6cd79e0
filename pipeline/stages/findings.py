"""What was found in each patient of a call, in one line, for the end of the command."""

from ...evaluation.report.cluster_table import read_clusters
from ...evaluation.report.findings import describe
from ...evaluation.report.report_inputs import Threshold
from ...evaluation.scoring.score_cohort import CohortScores
from ..workflow.runner import Run


def finding_lines(run: Run, scores: CohortScores) -> list[str]:
    """Describe the clusters of every patient of the call that has a page, one line each, in the manifest's order."""
    threshold, by_key = Threshold.of_z_maps(scores).value, {scored.key: scored for scored in scores.subjects}
    lines = []
    for patient in run.manifest.patients:
        table = run.out.subject_clusters(patient)
        if patient.key not in by_key or not table.is_file() or (run.chosen and patient.key not in run.chosen):
            continue
        clusters = read_clusters(table)
        smallest_mm3 = scores.settings.smallest_cluster_mm3
        lines.append(f"{patient.key}: {describe(clusters, threshold, by_key[patient.key].highest_score, smallest_mm3)}")
    return lines
