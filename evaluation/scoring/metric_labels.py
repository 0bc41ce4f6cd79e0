"""Labels and one-sentence definitions of the metrics."""

from dataclasses import dataclass

from .healthy_rates import HEALTHY_FPRS
from .score_cohort import ORACLES


@dataclass(frozen=True)
class MetricLabel:
    """Label and meaning of a metric, and what its `n` counts."""

    label: str
    meaning: str
    counts: str = "subjects"


METRICS: dict[str, MetricLabel] = {
    "auroc": MetricLabel(
        "AUROC, pooled",
        "Probability that a random lesion voxel scores higher than a random healthy voxel; chance level 0.5.",
    ),
    "auroc_per_subject_mean": MetricLabel(
        "AUROC, mean of subjects", "AUROC within each subject, then averaged with equal weight per patient."
    ),
    "auroc_fpr30_normalised": MetricLabel(
        "AUROC up to FPR 0.3, normalised",
        "Mean recall over false-positive rates from 0 to 0.3; chance level 0.15.",
    ),
    "auroc_fpr30_mcclish": MetricLabel(
        "AUROC up to FPR 0.3, McClish", "The same area, rescaled to a chance level of 0.5 (scikit-learn's max_fpr)."
    ),
    "average_precision": MetricLabel(
        "Average precision, pooled",
        "Mean precision of the flagged voxels over all recalls; chance level is the prevalence.",
    ),
    "average_precision_per_subject_mean": MetricLabel(
        "Average precision, mean of subjects", "Average precision within each subject, then averaged."
    ),
    "prevalence": MetricLabel("Prevalence", "Fraction of lesion voxels: chance level of the average precision."),
    "best_dice_pooled": MetricLabel(
        "Best Dice, pooled (F1-max)",
        "Overlap with the truth at the single threshold that maximises it; the F1-max of voxels.",
    ),
    "best_dice_per_subject_mean": MetricLabel(
        "Best Dice, mean of subjects", "Overlap at the best threshold of each subject, then averaged."
    ),
    "best_dice_one_threshold_per_subject_mean": MetricLabel(
        "Best mean Dice at one threshold",
        "Mean of the subjects' overlaps with the truth, at the threshold common to all that maximises it.",
        "subjects with lesions",
    ),
    **{
        name: MetricLabel(
            f"Mean Dice at {100 * rate:g} % of healthy voxels",
            f"Mean overlap of the subjects, at the threshold that flags {100 * rate:g} % of healthy scans' voxels.",
            "subjects with lesions",
        )
        for name, rate in HEALTHY_FPRS.items()
    },
    "dice_at_healthy_threshold": MetricLabel(
        "Dice at the healthy threshold",
        "Overlap with the truth at the threshold set on healthy scans, without using any lesion.",
    ),
    "dice_at_healthy_threshold_per_subject_mean": MetricLabel(
        "Dice at the healthy threshold, mean of subjects", "Within each subject with lesions, then averaged."
    ),
    "aupro_fpr30": MetricLabel(
        "AUPRO up to FPR 0.3", "As AUROC up to FPR 0.3, with equal weight per lesion regardless of its size."
    ),
    "aupro_fpr05": MetricLabel("AUPRO up to FPR 0.05", "The same up to a false-positive rate of 0.05."),
    "aupimo": MetricLabel(
        "AUPIMO",
        "Recall within each subject, averaged over false-positive rates of healthy scans from 1e-5 to 1e-4.",
        "subjects with lesions",
    ),
    "healthy_threshold": MetricLabel(
        "Threshold from healthy scans",
        "Lowest threshold at and above which healthy brains have no more clusters than allowed, on average.",
        "healthy subjects",
    ),
    "lesion_sensitivity": MetricLabel(
        "Lesions found (sensitivity)",
        "Fraction of lesions touched by a cluster at the threshold set on healthy scans.",
        "lesions",
    ),
    "lesion_precision": MetricLabel(
        "Clusters on lesions (precision)",
        "Fraction of the clusters in subjects with lesions that touch a lesion, at that threshold.",
        "subjects with lesions",
    ),
    "lesion_f1": MetricLabel("Lesion F1", "Harmonic mean of this sensitivity and precision.", "lesions"),
    "lesion_sensitivity_iou10": MetricLabel(
        "Lesions matched, IoU 0.1 or more (sensitivity)",
        "Fraction of lesions matched one to one with a cluster with an IoU of at least 0.1.",
        "lesions",
    ),
    "lesion_precision_iou10": MetricLabel(
        "Clusters matched, IoU 0.1 or more (precision)",
        "Fraction of the clusters in subjects with lesions matched one to one with a lesion, by the same criterion.",
        "subjects with lesions",
    ),
    "lesion_f1_iou10": MetricLabel(
        "Lesion F1, IoU 0.1 or more", "Harmonic mean of lesions and clusters matched.", "lesions"
    ),
    "false_clusters_per_subject": MetricLabel(
        "False clusters per patient (false positives)",
        "Clusters that touch no lesion, at that threshold, in subjects with lesions.",
    ),
    "false_clusters_per_healthy_subject": MetricLabel(
        "False clusters per healthy subject",
        "Clusters in each healthy brain at the threshold set on the other healthy brains only.",
        "healthy subjects",
    ),
    "froc_score": MetricLabel(
        "FROC score",
        "Fraction of lesions found, averaged over 1/4, 1/2, 1, 2, 4 and 8 false clusters per subject.",
        "lesions",
    ),
    **{
        f"subject_{name}_{number}": MetricLabel(f"{label} of subjects by {quantity}", f"{meaning} by {quantity}.")
        for number, quantity in (
            ("maximum", "the maximum of the map"),
            ("p999", "the 99.9th percentile of the map"),
            ("volume", "the volume above the threshold set on healthy scans"),
        )
        for name, label, meaning in (
            ("auroc", "AUROC", "Subjects with lesions classified against those without"),
            ("average_precision", "Average precision", "Subjects with lesions ranked before those without"),
            ("f1_max", "F1-max", "Highest F1 over all thresholds for subjects with lesions against those without,"),
        )
    },
    "ader_mean": MetricLabel(
        "mAD of ADer",
        "Mean of AUROC, average precision and F1-max of voxels and of subjects (by the maximum), and AUPRO up to 0.3.",
    ),
}


def is_oracle(name: str) -> bool:
    """Whether the threshold of this metric is chosen on the truth."""
    return name in ORACLES
