"""Scoring of one anomaly map against one lesion mask; cohort metrics are computed from the results."""

import numpy as np

from ...data_manifests.errors import SubjectError
from ...data_manifests.images.volume import Volume
from ...data_manifests.terms import Group
from ..metrics import voxel_metrics as vm
from ..metrics.bootstrap import Estimate
from ..metrics.clusters import highest_voxels
from ..metrics.components import Lesions, find_lesions
from ..metrics.lesion_metrics import cluster_curve
from ..settings import EvaluationSettings
from .subject_scores import NO_TRUTH, LesionScore, SubjectCurves, SubjectScores


def score_map(
    key: str,
    map: Volume,
    evaluation_mask: Volume,
    lesion_mask: Volume | None,
    covered: Volume | None,
    settings: EvaluationSettings,
    *,
    group: Group = "patient",
    site: str | None = None,
    age: float | None = None,
    sex: str | None = None,
) -> SubjectScores:
    """Score one subject's anomaly map inside a mask.

    Parameters
    ----------
    key : str
        Name of the subject in all tables.
    map : Volume
        Anomaly score, higher = more anomalous.
    evaluation_mask : Volume of bool
        Voxels to evaluate, usually the brain.
    lesion_mask : Volume of bool or None
        None if the truth of a patient is unknown, or for controls (no lesions).
    covered : Volume of bool or None
        Voxels of the map with a score; all voxels if None. Voxels of the evaluation mask that are not covered rank
        below all others.
    settings : EvaluationSettings
    group : {"control", "patient"}
    site, age, sex : optional
        Of the subject, for metrics by site, age band and sex.

    Returns
    -------
    SubjectScores

    Raises
    ------
    SubjectError
        Volumes on different grids (scoring never resamples), an empty evaluation mask, a map without scores inside it,
        non-finite scores, a control with lesions, or a lesion mask that leaves no healthy voxels.
    """
    _require_same_grid(key, map, evaluation_mask, lesion_mask, covered)
    inside = evaluation_mask.voxels.astype(bool)
    scored = inside if covered is None else inside & covered.voxels.astype(bool)
    truth = np.zeros_like(inside) if lesion_mask is None else lesion_mask.voxels.astype(bool)
    _check_masks(key, inside, scored, truth, group)
    given = _finite_scores(key, map, scored)
    scores = np.full(inside.shape, -np.inf, dtype=np.float32)
    scores[scored] = given

    truth_inside = truth & inside
    found = find_lesions(map.with_voxels(truth_inside), smallest_mm3=settings.smallest_lesion_mm3)
    voxel_mm3 = map.grid.voxel_volume_mm3
    smallest = int(np.ceil(settings.smallest_cluster_mm3 / voxel_mm3 - 1e-6))
    background, detection = _background(given)
    detected = scores if background is None else np.where(scores > background, scores, np.float32(-np.inf))
    clusters, found_at, overlaps = cluster_curve(
        detected, found.labels, smallest_voxels=smallest, any_lesion=truth_inside
    )
    labels, values = found.labels[truth_inside], scores[truth_inside]
    share_of = np.array([0.0] + [1 / lesion.voxels for lesion in found.lesions])
    histogram = vm.ScoreHistogram.from_voxels(scores[inside], truth[inside], share_of[labels])
    truth_known = lesion_mask is not None or group == "control"
    return SubjectScores(
        key=key,
        group=group,
        site=site,
        age=age,
        sex=sex,
        truth_known=truth_known,
        voxel_mm3=voxel_mm3,
        n_voxels=int(inside.sum()),
        n_uncovered=int((inside & ~scored).sum()),
        n_lesion=len(values),
        n_lesion_uncovered=int((truth_inside & ~scored).sum()),
        n_lesion_outside=int((truth & ~inside).sum()),
        n_lesion_scores=len(histogram.lesion_scores),
        highest_score=float(given.max()),
        score_p999=float(np.quantile(given, 0.999)),
        lowest_score=float(given.min()),
        **_voxel_estimates(histogram, truth_known),
        lesions=_lesion_scores(found, labels, values, found_at, _peaks_mm(found, scores, map)),
        curves=SubjectCurves(histogram, clusters, overlaps),
        background=background,
        lowest_detection=detection,
    )


def _require_same_grid(
    key: str, map: Volume, evaluation_mask: Volume, lesion_mask: Volume | None, covered: Volume | None
) -> None:
    named = {"evaluation mask": evaluation_mask, "lesion mask": lesion_mask, "mask of covered voxels": covered}
    for name, volume in named.items():
        if volume is not None and not volume.grid.same_as(map.grid):
            raise SubjectError(
                f"{key}: the {name} and the anomaly map lie on different grids ({volume.grid} against {map.grid}"
                f"{volume.grid.apart_in_words(map.grid)}). Put both on one grid; scoring never resamples."
            )


def _check_masks(key: str, inside: np.ndarray, scored: np.ndarray, truth: np.ndarray, group: Group) -> None:
    if not inside.any():
        raise SubjectError(f"{key}: the evaluation mask is empty, expected the brain. Check the mask.")
    if not scored.any():
        raise SubjectError(
            f"{key}: no voxel of the evaluation mask has a score. Check that map and mask belong to the same subject."
        )
    if group == "control" and truth.any():
        raise SubjectError(
            f"{key}: the lesion mask of this control holds {int(truth.sum())} voxels, expected none. "
            "List the subject as a patient, or remove the mask."
        )
    if truth[inside].all():
        raise SubjectError(
            f"{key}: the lesion mask fills the complete evaluation mask, expected some healthy voxels. "
            "Check whether lesion masks and brain masks are swapped."
        )


def _finite_scores(key: str, map: Volume, scored: np.ndarray) -> np.ndarray:
    """Scores of the scored voxels, float32."""
    scores = map.voxels[scored].astype(np.float32)
    bad = len(scores) - int(np.isfinite(scores).sum())
    if bad:
        raise SubjectError(
            f"{key}: {bad} of {len(scores)} scores of the anomaly map are NaN or infinite, expected finite numbers. "
            "Recreate the map, or exclude these voxels from the brain mask."
        )
    return scores


def _voxel_estimates(histogram: vm.ScoreHistogram, truth_known: bool) -> dict[str, Estimate]:
    """Voxel-wise metrics of one subject, by name."""
    counts = vm.rank_counts([histogram], vm.common_edges([histogram.lesion_scores]))

    def estimate(value: np.ndarray, *, needs_healthy: bool = True) -> Estimate:
        if not truth_known:
            return Estimate.undefined(NO_TRUTH)
        return vm.as_estimate(value, counts, needs_healthy=needs_healthy)

    return {
        "auroc": estimate(vm.auroc(counts)),
        "auroc_fpr30_normalised": estimate(vm.area_below_fpr(counts, 0.3)),
        "average_precision": estimate(vm.average_precision(counts), needs_healthy=False),
        "best_dice": estimate(vm.best_dice(counts)[0], needs_healthy=False),
    }


def _background(scores: np.ndarray) -> tuple[float | None, float | None]:
    """Background score ("no detection") and the lowest score above it; None if there is none."""
    lowest, highest = scores.min(), scores.max()
    n_lowest = int((scores == lowest).sum())
    two_values = lowest < highest and n_lowest + int((scores == highest).sum()) == len(scores)
    if not two_values and 2 * n_lowest < len(scores):
        return None, None
    above = scores[scores > lowest]
    return float(lowest), float(above.min()) if len(above) else None


def _peaks_mm(found: Lesions, scores: np.ndarray, map: Volume) -> np.ndarray:
    """Position of the highest score of each lesion in mm, (number of lesions, 3)."""
    numbers = [lesion.number for lesion in found.lesions]
    if not numbers:
        return np.zeros((0, 3))
    return highest_voxels(scores, found.labels, numbers) @ map.affine[:3, :3].T + map.affine[:3, 3]


def _lesion_scores(
    found: Lesions, labels: np.ndarray, values: np.ndarray, found_at: np.ndarray, peaks_mm: np.ndarray
) -> tuple[LesionScore, ...]:
    """Return the scores of every lesion from the label and score of each lesion voxel."""
    covered = values > -np.inf
    size = len(found.lesions) + 1
    counts = np.bincount(labels[covered], minlength=size)
    sums = np.bincount(labels[covered], weights=values[covered], minlength=size)
    highest = np.full(size, -np.inf, dtype=np.float32)
    np.maximum.at(highest, labels, values)
    return tuple(
        LesionScore(
            number=lesion.number,
            volume_mm3=lesion.volume_mm3,
            centre_mm=lesion.centre_mm,
            highest_score=float(highest[lesion.number]) if counts[lesion.number] else None,
            mean_score=float(sums[lesion.number] / counts[lesion.number]) if counts[lesion.number] else None,
            found_at=float(score) if np.isfinite(score) else None,
            covered_share=float(counts[lesion.number] / lesion.voxels),
            peak_mm=(float(x), float(y), float(z)) if counts[lesion.number] else lesion.centre_mm,
        )
        for lesion, score, (x, y, z) in zip(found.lesions, found_at, peaks_mm, strict=True)
    )
