"""One map against one lesion mask: everything later figures need, so that no voxel is read twice."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..data_manifests.atomic import written_whole
from ..data_manifests.errors import SubjectError, UserError
from ..data_manifests.terms import Group
from ..data_manifests.volume import Volume
from . import voxel_metrics as vm
from .intervals import Estimate
from .lesion_metrics import ClusterCurve, cluster_curve
from .lesions import find_lesions
from .settings import EvaluationSettings

NO_TRUTH = "no lesion mask"
FORMAT = "voxout subject scores 1"
_ALL_EDGES = 2**62


@dataclass(frozen=True)
class LesionScore:
    """How a map sees one lesion.

    Attributes
    ----------
    number : int
        From 1 in the order of falling volume.
    volume_mm3 : float
    centre_mm : tuple of float, (3,)
        RAS+ millimetres of the grid it was scored on.
    highest_score, mean_score : float or None
        Over its covered voxels; None if the map covers none of them.
    found_at : float or None
        The highest threshold at which a cluster touches it; None if none ever does.
    covered_share : float
        Share of its voxels that carry a score.
    """

    number: int
    volume_mm3: float
    centre_mm: tuple[float, float, float]
    highest_score: float | None
    mean_score: float | None
    found_at: float | None
    covered_share: float


@dataclass(frozen=True, eq=False)
class SubjectScores:
    """What the scoring of one subject leaves behind: counts and curves, no voxels.

    Attributes
    ----------
    key : str
    group : {"control", "patient"}
    truth_known : bool
        False for a patient without a lesion mask: such a map is drawn, but enters no figure.
    voxel_mm3 : float
    n_voxels : int
        Voxels of the evaluation mask.
    n_uncovered : int
        Of these, voxels without a score. They rank below all others: the map calls them normal.
    n_lesion_uncovered : int
        Lesion voxels among them: missed.
    n_lesion_outside : int
        Lesion voxels outside the evaluation mask: no part of any figure.
    highest_score : float
    histogram : ScoreHistogram
        Of all voxels of the evaluation mask; where the truth is unknown all count as healthy.
    clusters : ClusterCurve
    lesions : tuple of LesionScore
    """

    key: str
    group: Group
    truth_known: bool
    voxel_mm3: float
    n_voxels: int
    n_uncovered: int
    n_lesion_uncovered: int
    n_lesion_outside: int
    highest_score: float
    histogram: vm.ScoreHistogram
    clusters: ClusterCurve
    lesions: tuple[LesionScore, ...]

    @property
    def has_lesions(self) -> bool:
        return self.truth_known and self.histogram.n_lesion > 0

    @property
    def is_healthy(self) -> bool:
        """A control: the operating point is set on these."""
        return self.group == "control"

    @property
    def lesion_volume_ml(self) -> float | None:
        """Inside the evaluation mask; None where the truth is unknown."""
        return self.histogram.n_lesion * self.voxel_mm3 / 1000 if self.truth_known else None

    @cached_property
    def auroc(self) -> Estimate:
        return self._estimate(vm.auroc(self._counts))

    @cached_property
    def auroc_fpr30_normalised(self) -> Estimate:
        return self._estimate(vm.area_below_fpr(self._counts, 0.3))

    @cached_property
    def average_precision(self) -> Estimate:
        return self._estimate(vm.average_precision(self._counts), needs_healthy=False)

    @cached_property
    def best_dice(self) -> Estimate:
        """Oracle: at the threshold that suits this subject's truth best."""
        return self._estimate(vm.best_dice(self._counts)[0], needs_healthy=False)

    def dice_at(self, threshold: float) -> Estimate:
        """Dice of all voxels with at least this score, without regard to the size of clusters."""
        if not self.has_lesions:
            return Estimate.undefined(vm.NO_LESION_VOXEL if self.truth_known else NO_TRUTH)
        false, true = self.histogram.flagged(np.array([threshold], dtype=np.float32))
        return Estimate(float(2 * true[0] / (true[0] + false[0] + self.histogram.n_lesion)))

    def flagged_ml_at(self, threshold: float) -> float:
        """Volume of all voxels with at least this score."""
        false, true = self.histogram.flagged(np.array([threshold], dtype=np.float32))
        return float(false[0] + true[0]) * self.voxel_mm3 / 1000

    def lesions_found_at(self, threshold: float) -> int:
        return sum(lesion.found_at is not None and lesion.found_at >= threshold for lesion in self.lesions)

    @cached_property
    def found_at(self) -> np.ndarray:
        """`LesionScore.found_at` of all lesions, -inf for never: ndarray of float32, (number of lesions,)."""
        return np.array([-np.inf if les.found_at is None else les.found_at for les in self.lesions], dtype=np.float32)

    @cached_property
    def _counts(self) -> vm.RankCounts:
        return vm.rank_counts([self.histogram], most_edges=_ALL_EDGES, pooled=True)

    def _estimate(self, value: np.ndarray, *, needs_healthy: bool = True) -> Estimate:
        if not self.truth_known:
            return Estimate.undefined(NO_TRUTH)
        return vm.as_estimate(value, self._counts, needs_healthy=needs_healthy)

    def save(self, path: Path) -> Path:
        """Write one .npz file, whole or not at all; nothing in it is pickled."""
        about = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("histogram", "clusters", "lesions")
        }
        about["format"] = FORMAT
        about["lesions"] = [asdict(lesion) for lesion in self.lesions]
        arrays = {f"histogram_{name}": getattr(self.histogram, name) for name in self.histogram.__dataclass_fields__}
        arrays |= {f"clusters_{name}": getattr(self.clusters, name) for name in self.clusters.__dataclass_fields__}
        with written_whole(path) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)
        return path

    @classmethod
    def load(cls, path: Path) -> "SubjectScores":
        """Read what `save` wrote.

        Raises
        ------
        UserError
            Missing or damaged, or not a file of scores.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                if about.pop("format") != FORMAT:
                    raise KeyError("format")
                histogram = {name: stored[f"histogram_{name}"] for name in vm.ScoreHistogram.__dataclass_fields__}
                clusters = {name: stored[f"clusters_{name}"] for name in ClusterCurve.__dataclass_fields__}
        except Exception as error:
            # A half-copied .npz fails in many ways (zip, zlib, JSON, keys); all mean the same to the user.
            raise UserError(
                f"{path.name}: not readable as the scores of a subject ({type(error).__name__}). "
                "Delete it and score the subject again."
            ) from error
        lesions = tuple(LesionScore(**{**les, "centre_mm": tuple(les["centre_mm"])}) for les in about.pop("lesions"))
        return cls(
            histogram=vm.ScoreHistogram(**histogram), clusters=ClusterCurve(**clusters), lesions=lesions, **about
        )


def score_map(
    key: str,
    map: Volume,
    evaluation_mask: Volume,
    lesion_mask: Volume | None,
    covered: Volume | None,
    settings: EvaluationSettings,
    *,
    group: Group = "patient",
) -> SubjectScores:
    """Score one subject's anomaly map inside a mask.

    Parameters
    ----------
    key : str
        The subject's name, as it shall stand in every table.
    map : Volume
        Anomaly score, higher = more anomalous.
    evaluation_mask : Volume of bool
        Voxels that count, in general the brain.
    lesion_mask : Volume of bool or None
        None: a patient's truth is unknown; a control has no lesions.
    covered : Volume of bool or None
        Voxels of the map that carry a score; None: all of them. Voxels of the evaluation mask that are not covered
        rank below all others.
    settings : EvaluationSettings
    group : {"control", "patient"}

    Returns
    -------
    SubjectScores

    Raises
    ------
    SubjectError
        Volumes on different grids (nothing is ever resampled here), an empty evaluation mask, a map without a single
        score inside it, scores that are not finite, a control with lesions.
    """
    named = {"evaluation mask": evaluation_mask, "lesion mask": lesion_mask, "mask of covered voxels": covered}
    for name, volume in named.items():
        if volume is not None and not volume.grid.same_as(map.grid):
            raise SubjectError(
                f"{key}: the {name} and the anomaly map lie on different grids ({volume.grid} against {map.grid}). "
                "Put both on one grid; scoring never resamples."
            )
    inside = evaluation_mask.voxels.astype(bool)
    scored = inside if covered is None else inside & covered.voxels.astype(bool)
    truth = np.zeros_like(inside) if lesion_mask is None else lesion_mask.voxels.astype(bool)
    if not inside.any():
        raise SubjectError(f"{key}: the evaluation mask is empty, expected the brain. Check the mask.")
    if not scored.any():
        raise SubjectError(
            f"{key}: no voxel of the evaluation mask carries a score. Check that map and mask show the same head."
        )
    if group == "control" and truth.any():
        raise SubjectError(
            f"{key}: is a control but its lesion mask holds {int(truth.sum())} voxels. "
            "Call it a patient in the manifest, or drop the mask."
        )
    scores = np.full(inside.shape, -np.inf, dtype=np.float32)
    scores[scored] = map.voxels[scored]
    if not np.isfinite(scores[scored]).all():
        bad = int((~np.isfinite(scores[scored])).sum())
        raise SubjectError(
            f"{key}: {bad} of {int(scored.sum())} scores of the anomaly map are NaN or infinite, expected finite "
            "numbers. Make the map again, or leave these voxels out of its mask of covered voxels."
        )

    truth_inside = truth & inside
    found = find_lesions(map.with_voxels(truth_inside), smallest_mm3=settings.smallest_lesion_mm3)
    voxel_mm3 = map.grid.voxel_volume_mm3
    smallest = int(np.ceil(settings.smallest_cluster_mm3 / voxel_mm3 - 1e-6))
    clusters, found_at = cluster_curve(scores, found.labels, smallest_voxels=smallest, any_lesion=truth_inside)
    lesion_scores = []
    labels = found.labels[truth_inside]
    values = scores[truth_inside]
    weight_of = np.zeros(len(found.lesions) + 1)
    for lesion in found.lesions:
        weight_of[lesion.number] = 1 / lesion.voxels
        own = values[labels == lesion.number]
        own_scored = own[own > -np.inf]
        detected = float(found_at[lesion.number - 1])
        lesion_scores.append(
            LesionScore(
                number=lesion.number,
                volume_mm3=lesion.volume_mm3,
                centre_mm=lesion.centre_mm,
                highest_score=float(own_scored.max()) if len(own_scored) else None,
                mean_score=float(own_scored.mean(dtype=np.float64)) if len(own_scored) else None,
                found_at=detected if np.isfinite(detected) else None,
                covered_share=len(own_scored) / len(own),
            )
        )
    return SubjectScores(
        key=key,
        group=group,
        truth_known=lesion_mask is not None or group == "control",
        voxel_mm3=voxel_mm3,
        n_voxels=int(inside.sum()),
        n_uncovered=int((inside & ~scored).sum()),
        n_lesion_uncovered=int((truth_inside & ~scored).sum()),
        n_lesion_outside=int((truth & ~inside).sum()),
        highest_score=float(scores.max()),
        histogram=vm.ScoreHistogram.from_voxels(scores[inside], truth[inside], weight_of[found.labels[inside]]),
        clusters=clusters,
        lesions=tuple(lesion_scores),
    )
