"""Scores of one subject in memory or in a file: metrics, histograms and curves, but no voxels."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import TypeVar
from zipfile import ZIP_STORED, BadZipFile

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

# Errors of zipfile, numpy and the file system for a damaged file or one of another kind. Any other error is a bug.
_READ_FAILURES = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TokenError,
    BadZipFile,
)

Part = TypeVar("Part", vm.ScoreHistogram, ClusterCurve, LesionOverlaps)


@dataclass(frozen=True)
class LesionScore:
    """Scores of one lesion.

    Attributes
    ----------
    number : int
        Starting at 1, in descending order of volume.
    volume_mm3 : float
    centre_mm : tuple of float, (3,)
        Centre of mass in RAS+ mm of the grid it was scored on.
    highest_score, mean_score : float or None
        Over its voxels with a score; None if it has none.
    peak_mm : tuple of float, (3,)
        Position of the highest score; the centre if no voxel has a score.
    found_at : float or None
        Highest threshold at which a cluster touches it; None if at none.
    covered_share : float
        Fraction of its voxels with a score.
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
    """Arrays of the scores of one subject.

    Attributes
    ----------
    histogram : ScoreHistogram
        Histogram of the voxels of the evaluation mask; all count as healthy if the truth is unknown.
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
    """Arrays of the scores of one subject in a file, read on each access to limit the memory used by a cohort.

    Raises
    ------
    UserError
        The file cannot be read.
    """

    path: Path

    @property
    def histogram(self) -> vm.ScoreHistogram:
        """Histogram of the voxels, read from the file."""
        return self._part(vm.ScoreHistogram)

    @property
    def clusters(self) -> ClusterCurve:
        """Number of clusters by threshold, read from the file."""
        return self._part(ClusterCurve)

    @property
    def overlaps(self) -> LesionOverlaps:
        """Overlaps of clusters and lesions, read from the file."""
        return self._part(LesionOverlaps)

    @property
    def lesion_voxels(self) -> tuple[np.ndarray, np.ndarray]:
        """`lesion_scores` and `lesion_counts` of the histogram, read from the file."""
        # Reading only this part of the histogram is faster.
        scores, counts = self._arrays(_entry(vm.ScoreHistogram, name) for name in ("lesion_scores", "lesion_counts"))
        return scores, counts

    def _part(self, part: type[Part]) -> Part:
        return part(*self._arrays(_entry(part, field.name) for field in fields(part)))

    def _arrays(self, entries: Iterable[str]) -> list[np.ndarray]:
        """Read arrays; counts are returned as int32."""
        try:
            with _opened(self.path) as stored:
                arrays = [stored[entry] for entry in entries]
        except _READ_FAILURES as error:
            raise _unreadable(self.path, error) from error
        return [a if a.dtype.kind == "f" else a.astype(np.int32, copy=False) for a in arrays]


@dataclass(frozen=True, eq=False)
class SubjectScores:
    """Scores of one subject: metrics, histograms and curves, but no voxels.

    Attributes
    ----------
    key : str
    group : {"control", "patient"}
    site : str or None
    age : float or None
        Years.
    truth_known : bool
        False for a patient without a lesion mask; its map is shown but not used in any metric.
    voxel_mm3 : float
    n_voxels : int
        Number of voxels of the evaluation mask.
    n_uncovered : int
        Number of these voxels without a score; they rank below all others and count as normal.
    n_lesion : int
        Number of lesion voxels inside the evaluation mask.
    n_lesion_uncovered : int
        Number of lesion voxels without a score; they count as missed.
    n_lesion_outside : int
        Number of lesion voxels outside the evaluation mask; not used in any metric.
    n_lesion_scores : int
        Number of distinct scores among the lesion voxels.
    highest_score, score_p999, lowest_score : float
        Maximum, 99.9th percentile and minimum over the voxels with a score.
    auroc, auroc_fpr30_normalised, average_precision, best_dice : Estimate
        Exact values. The best Dice is an oracle, with the threshold chosen on the truth of this subject.
    lesions : tuple of LesionScore
    curves : SubjectCurves or StoredCurves
    background : float or None
        Lowest score if at least half of the voxels have it or if there are only two distinct scores. It means "no
        detection" and never belongs to a cluster. None for other maps.
    lowest_detection : float or None
        Lowest score above the background; None if there is no background or no score above it.
    sex : {"F", "M", "O"} or None
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
    sex: str | None = None

    @property
    def is_segmentation(self) -> bool:
        """Whether the map has a background and at most one other score."""
        return self.background is not None and self.lowest_detection in (None, self.highest_score)

    @property
    def histogram(self) -> vm.ScoreHistogram:
        """Histogram of the voxels of the evaluation mask."""
        return self.curves.histogram

    @property
    def clusters(self) -> ClusterCurve:
        """Number of clusters by threshold."""
        return self.curves.clusters

    @property
    def overlaps(self) -> LesionOverlaps:
        """Overlaps of clusters and lesions."""
        return self.curves.overlaps

    @property
    def has_lesions(self) -> bool:
        """Whether lesion voxels are known inside the evaluation mask."""
        return self.truth_known and self.n_lesion > 0

    @property
    def participant(self) -> str:
        """Participant label, shared by all sessions of a participant."""
        return participant_of_key(self.key)

    @property
    def is_healthy(self) -> bool:
        """Whether the subject is a control; the operating point is set on controls."""
        return self.group == "control"

    @property
    def lesion_volume_ml(self) -> float | None:
        """Lesion volume inside the evaluation mask; None if the truth is unknown."""
        return self.n_lesion * self.voxel_mm3 / 1000 if self.truth_known else None

    def dice_at(self, threshold: float) -> Estimate:
        """Dice of all voxels with at least this score, regardless of cluster size."""
        if not self.has_lesions:
            return Estimate.undefined(vm.NO_LESION_VOXEL if self.truth_known else NO_TRUTH)
        false, true = self.histogram.flagged(np.array([threshold], dtype=np.float32))
        return Estimate(float(2 * true[0] / (true[0] + false[0] + self.n_lesion)))

    def flagged_ml_at(self, threshold: float) -> float:
        """Volume of all voxels with at least this score."""
        false, true = self.histogram.flagged(np.array([threshold], dtype=np.float32))
        return float(false[0] + true[0]) * self.voxel_mm3 / 1000

    def lesions_found_at(self, threshold: float) -> int:
        """Return the number of lesions that a cluster touches at this threshold."""
        return int((self.found_at >= np.float32(threshold)).sum())

    @cached_property
    def found_at(self) -> np.ndarray:
        """`LesionScore.found_at` of all lesions, -inf if never found: ndarray of float32, (number of lesions,)."""
        return np.array([-np.inf if les.found_at is None else les.found_at for les in self.lesions], dtype=np.float32)

    def save(self, path: Path) -> "SubjectScores":
        """Write one .npz file atomically, without pickled objects.

        Returns
        -------
        SubjectScores
            The same scores with their arrays in the file.
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
        """Load scores written by `save`; arrays are read on access.

        Raises
        ------
        UserError
            The file is missing, damaged or not a file of scores.
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
        except _READ_FAILURES as error:
            raise _unreadable(path, error) from error


_PARTS = (vm.ScoreHistogram, ClusterCurve, LesionOverlaps)
_PLACES = ("centre_mm", "peak_mm")
_ESTIMATES = ("auroc", "auroc_fpr30_normalised", "average_precision", "best_dice")


def _entry(part: type, name: str) -> str:
    """Name of an array in the file."""
    return f"{part.__name__}.{name}"


def _small(values: np.ndarray) -> np.ndarray:
    """Cast counts to the smallest sufficient integer type."""
    return values if values.dtype.kind == "f" else values.astype(np.min_scalar_type(values.max(initial=0)))


def _opened(path: Path) -> np.lib.npyio.NpzFile:
    stored = np.load(path, allow_pickle=False)
    # `save` never compresses; refuse compressed entries, which may expand to terabytes.
    if any(entry.compress_type != ZIP_STORED for entry in stored.zip.infolist()):
        stored.close()
        raise ValueError("compressed")
    return stored


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{private(path.name)}: not readable as the scores of a subject ({type(error).__name__}). Delete it and score "
        "the subject again."
    )
