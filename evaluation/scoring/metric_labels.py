"""What the figures are called and what they mean, in one sentence each."""

from dataclasses import dataclass

from .score_cohort import ORACLES


@dataclass(frozen=True)
class MetricWords:
    """Label, meaning, and what `n` counts."""

    label: str
    meaning: str
    counts: str = "subjects"


METRICS: dict[str, MetricWords] = {
    "auroc": MetricWords(
        "AUROC, pooled",
        "Chance that a random lesion voxel scores higher than a random healthy one; 0.5 is guessing.",
    ),
    "auroc_per_subject_mean": MetricWords(
        "AUROC, mean of subjects", "The same within each subject, then averaged: every patient weighs alike."
    ),
    "auroc_fpr30_normalised": MetricWords(
        "AUROC up to FPR 0.3, normalised",
        "Mean recall while at most 30 % of the healthy voxels are flagged; 0.15 is guessing.",
    ),
    "auroc_fpr30_mcclish": MetricWords(
        "AUROC up to FPR 0.3, McClish", "The same area, rescaled so that guessing has 0.5 (scikit-learn's max_fpr)."
    ),
    "average_precision": MetricWords(
        "Average precision, pooled",
        "Mean share of true lesion among the flagged voxels over all recalls; the prevalence is guessing.",
    ),
    "average_precision_per_subject_mean": MetricWords(
        "Average precision, mean of subjects", "The same within each subject, then averaged."
    ),
    "prevalence": MetricWords("Prevalence", "Share of lesion voxels: the average precision of a random map."),
    "best_dice_pooled": MetricWords(
        "Best Dice, pooled", "Overlap with the truth at the one threshold that suits this truth best."
    ),
    "best_dice_per_subject_mean": MetricWords(
        "Best Dice, mean of subjects", "Overlap when every subject gets the threshold that suits its truth best."
    ),
    "dice_at_healthy_threshold": MetricWords(
        "Dice at the healthy threshold",
        "Overlap at the threshold set on healthy scans, before seeing a lesion.",
    ),
    "dice_at_healthy_threshold_per_subject_mean": MetricWords(
        "Dice at the healthy threshold, mean of subjects", "The same within each subject with lesions, then averaged."
    ),
    "aupro_fpr30": MetricWords(
        "AUPRO up to FPR 0.3", "As AUROC up to FPR 0.3, but every lesion weighs alike, whatever its size."
    ),
    "aupro_fpr05": MetricWords("AUPRO up to FPR 0.05", "The same up to 5 % of the healthy voxels."),
    "aupimo": MetricWords(
        "AUPIMO",
        "Recall within each subject, averaged over false-positive rates of healthy scans from 1e-5 to 1e-4.",
        "subjects with lesions",
    ),
    "healthy_threshold": MetricWords(
        "Threshold from healthy scans",
        "Lowest score above which healthy brains show no more clusters than allowed, on average.",
        "healthy subjects",
    ),
    "lesion_sensitivity": MetricWords(
        "Lesions found", "Share of lesions touched by a cluster at the threshold set on healthy scans.", "lesions"
    ),
    "lesion_precision": MetricWords(
        "Clusters on lesions",
        "Share of the clusters in subjects with lesions that touch one, at that threshold.",
        "subjects with lesions",
    ),
    "lesion_f1": MetricWords("Lesion F1", "Harmonic mean of lesions found and clusters on lesions.", "lesions"),
    "lesion_sensitivity_iou10": MetricWords(
        "Lesions matched, IoU 0.1 or more",
        "Share of lesions that get a cluster of their own, one to one, overlapping by an IoU of at least 0.1.",
        "lesions",
    ),
    "lesion_precision_iou10": MetricWords(
        "Clusters matched, IoU 0.1 or more",
        "Share of the clusters in subjects with lesions that get a lesion of their own in this way.",
        "subjects with lesions",
    ),
    "lesion_f1_iou10": MetricWords(
        "Lesion F1, IoU 0.1 or more", "Harmonic mean of lesions and clusters matched in this way.", "lesions"
    ),
    "false_clusters_per_subject": MetricWords(
        "False clusters a patient", "Clusters that touch no lesion, at that threshold, in subjects with lesions."
    ),
    "false_clusters_per_healthy_subject": MetricWords(
        "False clusters a healthy subject",
        "Clusters in each healthy brain at a threshold set on the other healthy brains only.",
        "healthy subjects",
    ),
    "froc_score": MetricWords(
        "FROC score",
        "Share of lesions found, averaged over 1/4, 1/2, 1, 2, 4 and 8 false clusters a subject.",
        "lesions",
    ),
    **{
        f"subject_{name}_{number}": MetricWords(f"{label} of subjects by {words}", f"{meaning}: by {words}.")
        for number, words in (
            ("maximum", "the maximum of the map"),
            ("p999", "the 99.9th percentile of the map"),
            ("volume", "the volume above the threshold set on healthy scans"),
        )
        for name, label, meaning in (
            ("auroc", "AUROC", "Subjects with lesions told from those without"),
            ("average_precision", "Average precision", "Subjects with lesions ranked before those without"),
        )
    },
}


def is_oracle(name: str) -> bool:
    """Whether the threshold behind this figure was chosen on the truth."""
    return name in ORACLES
