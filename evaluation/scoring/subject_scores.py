"""What the scoring of one subject leaves behind: figures, counts and curves, no voxels; in memory or in a file."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar
from zipfile import ZIP_STORED

import numpy as np

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.cohort.subject import participant_of_key
from ...data_manifests.errors import UserError, private
from ...data_manifests.terms import Group
from ..metrics import voxel_metrics as vm
from ..metrics.bootstrap import Estimate
from ..metrics.lesion_metrics import ClusterCurve, LesionOverlaps

NO_TRUTH = "no lesion mask"
FORMAT = "voxout subject scores 3"

Part = TypeVar("Part", vm.ScoreHistogram, ClusterCurve, LesionOverlaps)


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
    peak_mm : tuple of float, (3,)
        Where the highest score is; the centre if the map covers none of its voxels.
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
    peak_mm: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class SubjectCurves:
    """The arrays among what the scoring of one subject leaves behind.

    Attributes
    ----------
    histogram : ScoreHistogram
        Of all voxels of the evaluation mask; where the truth is unknown all count as healthy.
    clusters : ClusterCurve
    overlaps : LesionOverlaps
    """

    histogram: vm.ScoreHistogram
    clusters: ClusterCurve
    overlaps: LesionOverlaps

    @property
    def lesion_voxels(self) -> tuple[np.ndarray, np.ndarray]:
        """`lesion_scores` and `lesion_counts` of the histogram."""
        return self.histogram.lesion_scores, self.histogram.lesion_counts


@dataclass(frozen=True)
class StoredCurves:
    """The same in a file, read whenever it is asked for: a cohort then takes no more memory than one subject.

    Raises
    ------
    UserError
        Where the file cannot be read.
    """

    path: Path

    @property
    def histogram(self) -> vm.ScoreHistogram:
        return self._part(vm.ScoreHistogram)

    @property
    def clusters(self) -> ClusterCurve:
        return self._part(ClusterCurve)

    @property
    def overlaps(self) -> LesionOverlaps:
        return self._part(LesionOverlaps)

    @property
    def lesion_voxels(self) -> tuple[np.ndarray, np.ndarray]:
        # A small part of the histogram, and faster to read alone.
        scores, counts = self._arrays(_entry(vm.ScoreHistogram, name) for name in ("lesion_scores", "lesion_counts"))
        return scores, counts

    def _part(self, part: type[Part]) -> Part:
        return part(*self._arrays(_entry(part, field.name) for field in fields(part)))

    def _arrays(self, entries: Iterable[str]) -> list[np.ndarray]:
        """Counts as int32."""
        try:
            with _opened(self.path) as stored:
                arrays = [stored[entry] for entry in entries]
        except Exception as error:
            raise _unreadable(self.path, error) from error
        return [a if a.dtype.kind == "f" else a.astype(np.int32, copy=False) for a in arrays]


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
    highest_score, score_p999, lowest_score : float
        Of the voxels with a score; the 99.9th percentile.
    auroc, auroc_fpr30_normalised, average_precision, best_dice : Estimate
        Exact. The best Dice is an oracle: at the threshold that suits this subject's truth best.
    lesions : tuple of LesionScore
    curves : SubjectCurves or StoredCurves
    background : float or None
        The lowest score, where at least half of the voxels have it, or where there are but two scores: it stands for
        "no detection" and never belongs to a cluster. None: scores of all kinds, each of which ranks a voxel.
    lowest_detection : float or None
        The lowest score above the background; None where nothing lies above it, or there is none.
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
    lowest_score: float
    auroc: Estimate
    auroc_fpr30_normalised: Estimate
    average_precision: Estimate
    best_dice: Estimate
    lesions: tuple[LesionScore, ...]
    curves: SubjectCurves | StoredCurves
    background: float | None = None
    lowest_detection: float | None = None

    @property
    def is_segmentation(self) -> bool:
        """Whether the map holds the background and at most one other score."""
        return self.background is not None and self.lowest_detection in (None, self.highest_score)

    @property
    def histogram(self) -> vm.ScoreHistogram:
        return self.curves.histogram

    @property
    def clusters(self) -> ClusterCurve:
        return self.curves.clusters

    @property
    def overlaps(self) -> LesionOverlaps:
        return self.curves.overlaps

    @property
    def has_lesions(self) -> bool:
        return self.truth_known and self.n_lesion > 0

    @property
    def participant(self) -> str:
        """Whose scan it is: sessions of one person have it in common."""
        return participant_of_key(self.key)

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
        arrays = {_entry(type(part), f.name): _small(getattr(part, f.name)) for part in parts for f in fields(part)}
        with atomic_write(path) as temporary:
            np.savez(temporary, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)
        return replace(self, curves=StoredCurves(path))

    @classmethod
    def load(cls, path: Path) -> "SubjectScores":
        """Read what `save` wrote; the arrays only when they are asked for.

        Raises
        ------
        UserError
            Missing or damaged, or not a file of scores.
        """
        try:
            with _opened(path) as stored:
                about = json.loads(str(stored["about"]))
                wanted = {_entry(part, f.name) for part in _PARTS for f in fields(part)}
                if about.pop("format") != FORMAT or not wanted <= set(stored.files):
                    raise KeyError("format")
            about |= {name: Estimate(**about[name]) for name in _ESTIMATES}
            lesions = tuple(LesionScore(**les | {n: tuple(les[n]) for n in _PLACES}) for les in about.pop("lesions"))
            return cls(**about, lesions=lesions, curves=StoredCurves(path))
        except Exception as error:
            raise _unreadable(path, error) from error


_PARTS = (vm.ScoreHistogram, ClusterCurve, LesionOverlaps)
_PLACES = ("centre_mm", "peak_mm")
_ESTIMATES = ("auroc", "auroc_fpr30_normalised", "average_precision", "best_dice")


def _entry(part: type, name: str) -> str:
    """The name of an array in the file."""
    return f"{part.__name__}.{name}"


def _small(values: np.ndarray) -> np.ndarray:
    """Counts in the smallest type that holds them."""
    return values if values.dtype.kind == "f" else values.astype(np.min_scalar_type(values.max(initial=0)))


def _opened(path: Path) -> np.lib.npyio.NpzFile:
    stored = np.load(path, allow_pickle=False)
    # `save` packs nothing, and a small file that unpacks to terabytes is none of ours.
    if any(entry.compress_type != ZIP_STORED for entry in stored.zip.infolist()):
        stored.close()
        raise ValueError("packed")
    return stored


def _unreadable(path: Path, error: Exception) -> UserError:
    # A half-copied .npz fails in many ways (zip, zlib, JSON, keys); all mean the same to the user.
    return UserError(
        f"{private(path.name)}: not readable as the scores of a subject ({type(error).__name__}). Delete it and score "
        "the subject again."
    )
