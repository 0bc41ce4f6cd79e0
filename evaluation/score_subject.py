"""One map against one lesion mask: everything later figures need, so that no voxel is read twice."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..data_manifests.atomic import written_whole
from ..data_manifests.errors import SubjectError, UserError
from ..data_manifests.terms import Group
from ..data_manifests.volume import Volume
from . import voxel_metrics as vm
from .intervals import Estimate
from .lesion_metrics import ClusterCurve, LesionOverlaps, cluster_curve
from .lesions import Lesions, find_lesions
from .settings import EvaluationSettings

NO_TRUTH = "no lesion mask"
FORMAT = "voxout subject scores 2"

Arrays = TypeVar("Arrays", vm.ScoreHistogram, ClusterCurve, LesionOverlaps)


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
class SubjectCurves:
    """The arrays among what the scoring of one subject leaves behind."""

    histogram: vm.ScoreHistogram
    clusters: ClusterCurve
    overlaps: LesionOverlaps


@dataclass(frozen=True, eq=False)
class SubjectScores:
    """What the scoring of one subject leaves behind: figures, counts and curves, no voxels.

    Attributes
    ----------
    key : str
    group : {"control", "patient"}
    site : str or None
    age : float or None
        Years.
    truth_known : bool
        False for a patient without a lesion mask: such a map is drawn, but enters no figure.
    voxel_mm3 : float
    n_voxels : int
        Voxels of the evaluation mask.
    n_uncovered : int
        Of these, voxels without a score. They rank below all others: the map calls them normal.
    n_lesion : int
        Lesion voxels of the evaluation mask.
    n_lesion_uncovered : int
        Lesion voxels without a score: missed.
    n_lesion_outside : int
        Lesion voxels outside the evaluation mask: no part of any figure.
    n_lesion_scores : int
        Different scores among the lesion voxels.
    highest_score, score_p999 : float
        Of the voxels with a score; the 99.9th percentile.
    auroc, auroc_fpr30_normalised, average_precision, best_dice : Estimate
        Exact. The best Dice is an oracle: at the threshold that suits this subject's truth best.
    lesions : tuple of LesionScore
    curves : SubjectCurves or Path
        The arrays, or the file to read them from whenever they are asked for: a cohort of any size then takes no more
        memory than one subject.
    """

    key: str
    group: Group
    site: str | None
    age: float | None
    truth_known: bool
    voxel_mm3: float
    n_voxels: int
    n_uncovered: int
    n_lesion: int
    n_lesion_uncovered: int
    n_lesion_outside: int
    n_lesion_scores: int
    highest_score: float
    score_p999: float
    auroc: Estimate
    auroc_fpr30_normalised: Estimate
    average_precision: Estimate
    best_dice: Estimate
    lesions: tuple[LesionScore, ...]
    curves: SubjectCurves | Path

    @property
    def histogram(self) -> vm.ScoreHistogram:
        """Of all voxels of the evaluation mask; where the truth is unknown all count as healthy."""
        return self.curves.histogram if isinstance(self.curves, SubjectCurves) else self._stored(vm.ScoreHistogram)

    @property
    def lesion_voxels(self) -> tuple[np.ndarray, np.ndarray]:
        """`lesion_scores` and `lesion_counts` of the histogram: a small part of it, and faster to read."""
        if isinstance(self.curves, SubjectCurves):
            return self.curves.histogram.lesion_scores, self.curves.histogram.lesion_counts
        scores, counts = self._arrays(
            f"{vm.ScoreHistogram.__name__}.{name}" for name in ("lesion_scores", "lesion_counts")
        )
        return scores, counts

    @property
    def clusters(self) -> ClusterCurve:
        return self.curves.clusters if isinstance(self.curves, SubjectCurves) else self._stored(ClusterCurve)

    @property
    def overlaps(self) -> LesionOverlaps:
        return self.curves.overlaps if isinstance(self.curves, SubjectCurves) else self._stored(LesionOverlaps)

    @property
    def has_lesions(self) -> bool:
        return self.truth_known and self.n_lesion > 0

    @property
    def is_healthy(self) -> bool:
        """A control: the operating point is set on these."""
        return self.group == "control"

    @property
    def lesion_volume_ml(self) -> float | None:
        """Inside the evaluation mask; None where the truth is unknown."""
        return self.n_lesion * self.voxel_mm3 / 1000 if self.truth_known else None

    def dice_at(self, threshold: float) -> Estimate:
        """Dice of all voxels with at least this score, without regard to the size of clusters."""
        if not self.has_lesions:
            return Estimate.undefined(vm.NO_LESION_VOXEL if self.truth_known else NO_TRUTH)
        false, true = self.histogram.flagged(np.array([threshold], dtype=np.float32))
        return Estimate(float(2 * true[0] / (true[0] + false[0] + self.n_lesion)))

    def flagged_ml_at(self, threshold: float) -> float:
        """Volume of all voxels with at least this score."""
        false, true = self.histogram.flagged(np.array([threshold], dtype=np.float32))
        return float(false[0] + true[0]) * self.voxel_mm3 / 1000

    def lesions_found_at(self, threshold: float) -> int:
        return int((self.found_at >= np.float32(threshold)).sum())

    @cached_property
    def found_at(self) -> np.ndarray:
        """`LesionScore.found_at` of all lesions, -inf for never: ndarray of float32, (number of lesions,)."""
        return np.array([-np.inf if les.found_at is None else les.found_at for les in self.lesions], dtype=np.float32)

    def save(self, path: Path) -> "SubjectScores":
        """Write one .npz file, whole or not at all; nothing in it is pickled.

        Returns
        -------
        SubjectScores
            The same, its arrays left in the file.
        """
        kept = [field.name for field in fields(self) if field.name != "curves"]
        about = {name: getattr(self, name) for name in kept} | {"format": FORMAT}
        about |= {name: asdict(getattr(self, name)) for name in _ESTIMATES}
        about["lesions"] = [asdict(lesion) for lesion in self.lesions]
        parts = (self.histogram, self.clusters, self.overlaps)
        arrays = {
            f"{type(part).__name__}.{f.name}": _small(getattr(part, f.name)) for part in parts for f in fields(part)
        }
        with written_whole(path) as temporary:
            np.savez(temporary, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)
        return replace(self, curves=path)

    @classmethod
    def load(cls, path: Path) -> "SubjectScores":
        """Read what `save` wrote; the arrays only when they are asked for.

        Raises
        ------
        UserError
            Missing or damaged, or not a file of scores.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                wanted = {f"{part.__name__}.{f.name}" for part in _PARTS for f in fields(part)}
                if about.pop("format") != FORMAT or not wanted <= set(stored.files):
                    raise KeyError("format")
            about |= {name: Estimate(**about[name]) for name in _ESTIMATES}
            lesions = tuple(LesionScore(**les | {"centre_mm": tuple(les["centre_mm"])}) for les in about.pop("lesions"))
            return cls(**about, lesions=lesions, curves=path)
        except Exception as error:
            raise _unreadable(path, error) from error

    def _stored(self, part: type[Arrays]) -> Arrays:
        return part(*self._arrays(f"{part.__name__}.{field.name}" for field in fields(part)))

    def _arrays(self, names: Iterable[str]) -> list[np.ndarray]:
        """Some of the arrays in the file; counts as int32."""
        assert isinstance(self.curves, Path)
        try:
            with np.load(self.curves, allow_pickle=False) as stored:
                arrays = [stored[name] for name in names]
        except Exception as error:
            raise _unreadable(self.curves, error) from error
        return [a if a.dtype.kind == "f" else a.astype(np.int32, copy=False) for a in arrays]


_PARTS = (vm.ScoreHistogram, ClusterCurve, LesionOverlaps)
_ESTIMATES = ("auroc", "auroc_fpr30_normalised", "average_precision", "best_dice")


def _small(values: np.ndarray) -> np.ndarray:
    """Counts in the smallest type that holds them."""
    return values if values.dtype.kind == "f" else values.astype(np.min_scalar_type(values.max(initial=0)))


def _unreadable(path: Path, error: Exception) -> UserError:
    # A half-copied .npz fails in many ways (zip, zlib, JSON, keys); all mean the same to the user.
    return UserError(
        f"{path.name}: not readable as the scores of a subject ({type(error).__name__}). "
        "Delete it and score the subject again."
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
    site: str | None = None,
    age: float | None = None,
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
    site, age : optional
        Of the subject, for the figures by site and age.

    Returns
    -------
    SubjectScores

    Raises
    ------
    SubjectError
        Volumes on different grids (nothing is ever resampled here), an empty evaluation mask, a map without a single
        score inside it, scores that are not finite, a control with lesions, a lesion mask that leaves nothing healthy.
    """
    named = {"evaluation mask": evaluation_mask, "lesion mask": lesion_mask, "mask of covered voxels": covered}
    for name, volume in named.items():
        if volume is not None and not volume.grid.same_as(map.grid):
            raise SubjectError(
                f"{key}: the {name} and the anomaly map lie on different grids ({volume.grid} against {map.grid}"
                f"{volume.grid.apart_in_words(map.grid)}). Put both on one grid; scoring never resamples."
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
            "Call it a patient, or drop the mask."
        )
    if truth[inside].all():
        raise SubjectError(
            f"{key}: the lesion mask fills the whole evaluation mask, expected some healthy voxels as well. "
            "Are lesion masks and brain masks swapped?"
        )
    scores = np.full(inside.shape, -np.inf, dtype=np.float32)
    scores[scored] = map.voxels[scored]
    given = scores[scored]
    bad = len(given) - int(np.isfinite(given).sum())
    if bad:
        raise SubjectError(
            f"{key}: {bad} of {len(given)} scores of the anomaly map are NaN or infinite, expected finite numbers. "
            "Make the map again, or leave these voxels out of the brain mask."
        )

    truth_inside = truth & inside
    found = find_lesions(map.with_voxels(truth_inside), smallest_mm3=settings.smallest_lesion_mm3)
    voxel_mm3 = map.grid.voxel_volume_mm3
    smallest = int(np.ceil(settings.smallest_cluster_mm3 / voxel_mm3 - 1e-6))
    clusters, found_at, overlaps = cluster_curve(
        scores, found.labels, smallest_voxels=smallest, any_lesion=truth_inside
    )
    labels, values = found.labels[truth_inside], scores[truth_inside]
    share_of = np.array([0.0] + [1 / lesion.voxels for lesion in found.lesions])
    histogram = vm.ScoreHistogram.from_voxels(scores[inside], truth[inside], share_of[labels])
    counts = vm.rank_counts([histogram], vm.common_edges([histogram.lesion_scores]))
    truth_known = lesion_mask is not None or group == "control"

    def estimate(value: np.ndarray, *, needs_healthy: bool = True) -> Estimate:
        if not truth_known:
            return Estimate.undefined(NO_TRUTH)
        return vm.as_estimate(value, counts, needs_healthy=needs_healthy)

    return SubjectScores(
        key=key,
        group=group,
        site=site,
        age=age,
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
        auroc=estimate(vm.auroc(counts)),
        auroc_fpr30_normalised=estimate(vm.area_below_fpr(counts, 0.3)),
        average_precision=estimate(vm.average_precision(counts), needs_healthy=False),
        best_dice=estimate(vm.best_dice(counts)[0], needs_healthy=False),
        lesions=_lesion_scores(found, labels, values, found_at),
        curves=SubjectCurves(histogram, clusters, overlaps),
    )


def _lesion_scores(
    found: Lesions, labels: np.ndarray, values: np.ndarray, found_at: np.ndarray
) -> tuple[LesionScore, ...]:
    """A row for every lesion, from the number and the score of each lesion voxel."""
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
        )
        for lesion, score in zip(found.lesions, found_at, strict=True)
    )
