"""What was found in each patient of a call, in one line, for the end of the command."""

from ...data_manifests.images.volume import read_map, read_mask
from ...evaluation.report.cluster_table import read_clusters
from ...evaluation.report.findings import describe
from ...evaluation.report.report_inputs import Threshold
from ...evaluation.report.widespread import widespread_share
from ...evaluation.scoring.score_cohort import CohortScores
from ..workflow.runner import Run


def finding_lines(run: Run, scores: CohortScores, most: int) -> tuple[list[str], int]:
    """Describe the clusters of the patients of the call that have a page, one line each, in the manifest's order.

    Returns
    -------
    lines : list of str
        Of the first patients, at most `most`.
    number : int
        Of all of them.
    """
    by_key = {scored.key: scored.highest_score for scored in scores.subjects}
    told = [
        patient
        for patient in run.manifest.patients
        if patient.key in by_key
        and run.out.subject_clusters(patient).is_file()
        and (not run.chosen or patient.key in run.chosen)
    ]
    threshold, smallest_mm3 = Threshold.of_z_maps(scores).value, scores.settings.smallest_cluster_mm3
    lines = []
    for patient in told[:most]:
        clusters = read_clusters(run.out.subject_clusters(patient))
        map, covered = read_map(run.out.template_map(patient)), read_mask(run.out.template_coverage(patient))
        widespread = widespread_share(map.voxels, covered.voxels, map.affine, threshold)
        found = describe(clusters, threshold, by_key[patient.key], smallest_mm3, widespread)
        lines.append(f"{patient.key}: {found}")
    return lines, len(told)
