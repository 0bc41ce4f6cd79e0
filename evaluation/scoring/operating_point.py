"""Operating point: the threshold for new scans, set on healthy scans only, without using any lesion."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.errors import UserError, private
from ...data_manifests.typed_json import Content, read_json
from ..metrics.bootstrap import Measure
from ..metrics.lesion_metrics import operating_threshold
from ..settings import EvaluationSettings
from .control_summary import LATER_FIELDS, ControlSummary, StoredSummary

NO_HEALTHY = "no healthy scan was scored to set the threshold"
NO_LIMIT = "the healthy brains have no more clusters than allowed even with every voxel flagged"
OWN_CUT = "the maps themselves, which have two values"
LOWEST_DETECTION = "the lowest score above the background, since the healthy scans have no more clusters than allowed"
OF_MODEL = "the model's training controls"
FORMAT = "voxout operating point 3"


@dataclass(frozen=True, eq=False)
class OperatingPoint:
    """Lowest threshold with at most the allowed number of false clusters per healthy brain, with its uncertainty.

    Attributes
    ----------
    threshold : float
        NaN if undefined.
    draws : ndarray of float32, (draws,)
        Threshold set by each bootstrap sample of the healthy subjects; NaN if undefined.
    leave_one_out : ndarray of float32, (H,)
        For each healthy scan of this cohort, the threshold set on the healthy scans of all other participants; NaN with
        a single participant. If the threshold comes from elsewhere, that threshold for each scan.
    n_healthy : int
        Number of scans it was set on.
    origin : str
        Description of these scans, for messages.
    largest_mm3 : tuple of float
        Volume of the largest cluster of each of these scans at the threshold; empty if unknown.
    reason_missing : str
        Reason why the threshold is undefined, if other than missing healthy scans.
    controls : ControlSummary or None
        Of the training controls of a model; None for models fitted before it was stored.
    """

    threshold: float
    draws: np.ndarray
    leave_one_out: np.ndarray
    n_healthy: int
    origin: str = "the healthy scans of this cohort"
    largest_mm3: tuple[float, ...] = ()
    reason_missing: str = ""
    controls: ControlSummary | None = None

    @classmethod
    def set_on(
        cls,
        false_cluster_thresholds: Sequence[np.ndarray],
        false_clusters: float,
        weights: np.ndarray,
        participants: Sequence[object] | None = None,
    ) -> "OperatingPoint":
        """Set the operating point on healthy scans.

        Parameters
        ----------
        false_cluster_thresholds : sequence of H ndarray
            `ClusterCurve.false_cluster_thresholds` of each scan.
        false_clusters : float
            Allowed number per healthy brain, on average.
        weights : ndarray, (1 + draws, H)
            Bootstrap weights of these scans; the first row is all ones.
        participants : sequence of H labels, optional
            Participant of each scan; all different by default.
        """
        if not false_cluster_thresholds:
            nothing = np.full(len(weights) - 1, np.nan, np.float32)
            return cls(np.nan, nothing, np.zeros(0, np.float32), 0)
        thresholds = operating_threshold(false_cluster_thresholds, false_clusters, weights)
        names = np.array(
            [
                str(participant)
                for participant in (participants if participants is not None else range(len(false_cluster_thresholds)))
            ]
        )
        leave_one_out = np.full(len(false_cluster_thresholds), np.nan, np.float32)
        if len(set(names)) > 1:
            others = (names[:, None] != names).astype(np.float64)
            leave_one_out = operating_threshold(false_cluster_thresholds, false_clusters, others)
        return cls(float(thresholds[0]), thresholds[1:], leave_one_out, len(false_cluster_thresholds))

    @classmethod
    def missing(cls, draws: int, reason: str) -> "OperatingPoint":
        """Return an undefined operating point, for a reason other than missing healthy scans."""
        return cls(np.nan, np.full(draws, np.nan, np.float32), np.zeros(0, np.float32), 0, reason_missing=reason)

    @classmethod
    def fixed_by_maps(cls, threshold: float, origin: str, n_healthy: int, draws: int) -> "OperatingPoint":
        """Return a threshold fixed by the values of the maps, the same in every bootstrap sample."""
        bootstrap, leave_one_out = np.full(draws, threshold, np.float32), np.full(n_healthy, threshold, np.float32)
        return cls(float(np.float32(threshold)), bootstrap, leave_one_out, n_healthy, origin)

    @property
    def why_none(self) -> str:
        """Reason for an undefined threshold, as text."""
        if self.reason_missing:
            return self.reason_missing
        return NO_LIMIT if self.n_healthy else NO_HEALTHY

    @property
    def measure(self) -> Measure:
        """Threshold as a measure, with its bootstrap samples."""
        draws = self.draws.astype(np.float64)
        return Measure(self.threshold, draws, self.n_healthy, self.n_healthy, self.why_none)

    def thresholds(self, draws: int) -> np.ndarray:
        """Return the threshold and its values in `draws` bootstrap samples: ndarray of float32, (1 + draws,)."""
        own = np.resize(self.draws, draws) if len(self.draws) else np.full(draws, self.threshold, np.float32)
        return np.append(np.float32(self.threshold), own).astype(np.float32)


class _Stored(Content):
    format: Literal["voxout operating point 3"]
    sha256: str
    threshold: float | None
    draws: tuple[float, ...]
    n_healthy: Annotated[int, Field(ge=0)]
    settings: dict[str, float | str]
    model: str
    largest_mm3: tuple[Annotated[float, Field(ge=0)], ...]
    controls: StoredSummary | None = None
    origin: str = OF_MODEL

    @property
    def unknown(self) -> set[str]:
        """Fields of `controls` that old files lack, and that say nothing; so an old file stays as it is."""
        return {name for name in LATER_FIELDS if self.controls is not None and getattr(self.controls, name) is None}

    def content_sha256(self) -> str:
        """Return the checksum of all fields except `sha256`; fields that old files lack count only if they say more."""
        absent = [name for name, plain in (("controls", None), ("origin", OF_MODEL)) if getattr(self, name) == plain]
        values = self.model_dump(exclude={"sha256": True, "controls": self.unknown, **dict.fromkeys(absent, True)})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class StoredPoint:
    """Operating point stored with a model.

    Attributes
    ----------
    threshold : float
    draws : tuple of float
        Thresholds of the bootstrap samples of the healthy subjects.
    n_healthy : int
    settings : mapping
        Settings it depends on: `false_clusters`, `smallest_cluster_mm3` and `space`.
    model : str
        Identity of the model whose maps it was set on.
    largest_mm3, controls, origin
        As in `OperatingPoint`.
    """

    threshold: float
    draws: tuple[float, ...]
    n_healthy: int
    settings: dict[str, object]
    model: str
    largest_mm3: tuple[float, ...] = ()
    controls: ControlSummary | None = None
    origin: str = OF_MODEL

    @classmethod
    def from_point(cls, point: OperatingPoint, settings: EvaluationSettings, model: str) -> "StoredPoint":
        """Take over an operating point set on maps of this model; undefined bootstrap samples are left out."""
        draws = tuple(float(draw) for draw in point.draws if np.isfinite(draw))
        relevant = _relevant_settings(settings)
        return cls(point.threshold, draws, point.n_healthy, relevant, model, point.largest_mm3, point.controls)

    def save(self, path: Path) -> None:
        """Write the point and its checksum as JSON, atomically."""
        # JSON has no NaN: an undefined threshold is null.
        threshold = self.threshold if np.isfinite(self.threshold) else None
        values = asdict(self) | {"threshold": threshold, "format": FORMAT}
        # Hash the values as they are read back: a number may be written as 1 and read as 1.0.
        found = _Stored.model_validate_json(json.dumps(values | {"sha256": ""}, allow_nan=False))
        with atomic_write(path) as temporary:
            found = found.model_copy(update={"sha256": found.content_sha256()})
            temporary.write_text(found.model_dump_json(indent=1, exclude={"controls": found.unknown}))

    @classmethod
    def load(cls, path: Path) -> "StoredPoint | None":
        """Load the stored operating point; None if the file does not exist.

        Raises
        ------
        UserError
            The file is damaged.
        """
        if not path.exists():
            return None
        advice = "Run the stage map of the model's training cohort again."
        found = read_json(path, _Stored, "an operating point", advice)
        if found.sha256 != found.content_sha256():
            raise UserError(
                f"{private(path)}: the threshold was changed or damaged, expected the file that map wrote. {advice}"
            )
        threshold = np.nan if found.threshold is None else found.threshold
        controls = ControlSummary(**found.controls.model_dump()) if found.controls is not None else None
        settings: dict[str, object] = dict(found.settings)
        return cls(
            threshold, found.draws, found.n_healthy, settings, found.model, found.largest_mm3, controls, found.origin
        )

    def unfit_because(self, settings: EvaluationSettings, model: str) -> str | None:
        """Return the reason why it is not valid for maps of this model with these settings; None if it is valid."""
        if self.model != model:
            return "it was set on maps of an earlier fit of the model"
        wanted = _relevant_settings(settings)
        for name, value in self.settings.items():
            if value != wanted.get(name):
                return f"it was set with evaluation.{name} {value}, now {wanted.get(name)}"
        return None

    @property
    def point(self) -> OperatingPoint:
        """Operating point with this threshold, without leave-one-out thresholds."""
        draws = np.array(self.draws, dtype=np.float32)
        none = np.zeros(0, np.float32)
        return OperatingPoint(
            self.threshold,
            draws,
            none,
            self.n_healthy,
            self.origin,
            self.largest_mm3,
            controls=self.controls,
        )


def _relevant_settings(settings: EvaluationSettings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in ("false_clusters", "smallest_cluster_mm3", "space")}
