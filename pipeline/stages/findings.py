"""What was found in each patient, in one line: at the end of a command, and for DICOM."""

from pathlib import Path

from ...data_manifests.cohort.output_paths import OutputFolder, beside
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.images.volume import read_map, read_mask
from ...data_manifests.typed_json import load_json
from ...evaluation.report.cluster_table import read_clusters
from ...evaluation.report.findings import describe
from ...evaluation.report.report_inputs import Threshold
from ...evaluation.report.widespread import widespread_share
from ...evaluation.scoring.score_cohort import CohortScores
from ..model.map_files import RELATION
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
    lines = [
        f"{patient.key}: {finding(run.out, patient, threshold, by_key[patient.key], smallest_mm3)}"
        + unlike_controls(beside(run.out.cluster_labels(patient, run.config.evaluation.space), ".json"))
        for patient in told[:most]
    ]
    return lines, len(told)


def unlike_controls(path: Path) -> str:
    """Return in what a patient is unlike all controls of the model, by the JSON file of its clusters."""
    try:
        relation = load_json(path)[RELATION]
        unlike = [statement["Text"] for statement in relation if statement["Unusual"]]
    except (OSError, ValueError, KeyError, TypeError):  # of an earlier version, or not ours any more
        return ""
    return f". Unlike all controls of the model: {'; '.join(unlike)}" if unlike else ""


def finding(out: OutputFolder, subject: SubjectRecord, threshold: float, highest: float, smallest_mm3: float) -> str:
    """Describe the clusters of a subject that was mapped and reported, as the headline of its page does.

    Parameters
    ----------
    out : OutputFolder
    subject : SubjectRecord
    threshold : float
    highest : float
        Highest score of the map.
    smallest_mm3 : float
        Smaller clusters are not in its table.
    """
    map, covered = read_map(out.template_map(subject)), read_mask(out.template_coverage(subject))
    widespread = widespread_share(map.voxels, covered.voxels, map.affine, threshold)
    clusters = read_clusters(out.subject_clusters(subject))
    return describe(clusters, threshold, highest, smallest_mm3, widespread=widespread)
