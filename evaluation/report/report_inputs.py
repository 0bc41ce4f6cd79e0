"""What a report is made of: plain objects that whoever runs the stages fills in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

from ...data_manifests.errors import Failure
from ...data_manifests.images.volume import Volume
from ...data_manifests.terms import Group
from ..figures.colour_scale import ColourScale
from ..metrics.fdr import Discovery
from ..scoring.reference_results import RunScores
from ..scoring.score_cohort import CohortScores, SubjectRow
from ..scoring.subject_scores import SubjectScores

FIXED_Z = 3.09
"""One voxel in a thousand of a healthy brain lies above it: the threshold where no healthy scan sets one."""


@dataclass(frozen=True, eq=False)
class SubjectImages:
    """The volumes of one subject, all on one grid (template or native).

    Attributes
    ----------
    scan, map : Volume
        `map`: higher = more anomalous.
    brain_mask, covered, lesion_mask : Volume of bool or None
        The evaluation mask; where the map carries a score; the truth.
    """

    scan: Volume
    map: Volume
    brain_mask: Volume | None = None
    covered: Volume | None = None
    lesion_mask: Volume | None = None


@dataclass(frozen=True)
class QualityNumber:
    """One number that says how well a subject was prepared.

    Attributes
    ----------
    name : str
        Of the table's column.
    label : str
        In a word or two, for people.
    value : float or None
        None: could not be measured.
    unusual : bool
        Whether it lies outside its limits.
    """

    name: str
    label: str
    value: float | None
    unusual: bool = False


@dataclass(frozen=True)
class ReportSubject:
    """One line of the cohort table and, if there is a map, one picture.

    Attributes
    ----------
    role : str
        What the subject is here for, in words: "training control", "held-out control", "patient".
    quality_verdict : str or None
        "pass", "warn" or "fail".
    quality_reasons : tuple of str
    quality_picture : Path or None
        A PNG made while preparing the scan.
    quality : tuple of QualityNumber
        Empty: the subject was not prepared.
    brain_method : str or None
        Where the brain mask comes from.
    brain_volume_ml : float or None
    scores : SubjectScores or None
    images : callable or None
        Reads the volumes when they are drawn. None: no map was made.
    page : str or None
        Where the subject's own page lies, relative to the cohort's.
    """

    key: str
    group: Group
    role: str = ""
    site: str | None = None
    age: float | None = None
    sex: str | None = None
    quality_verdict: str | None = None
    quality_reasons: tuple[str, ...] = ()
    quality_picture: Path | None = None
    quality: tuple[QualityNumber, ...] = ()
    brain_method: str | None = None
    brain_volume_ml: float | None = None
    scores: SubjectScores | None = None
    images: Callable[[], SubjectImages] | None = None
    page: str | None = None


@dataclass(frozen=True, eq=False)
class ScoredMap:
    """A subject's map where it was scored: there its clusters are listed, as the cohort's figures count them.

    Attributes
    ----------
    map : Volume
    inside : Volume of bool
        The evaluation mask where the map carries a score.
    to_template : callable
        Takes points of the map's space to the template's: (N, 3) to (N, 3), RAS+ mm.
    lesion_mask : Volume of bool or None
    """

    map: Volume
    inside: Volume
    to_template: Callable[[np.ndarray], np.ndarray]
    lesion_mask: Volume | None = None


@dataclass(frozen=True)
class Threshold:
    """The score from which on a voxel is called suspicious, and where that comes from, in words.

    `largest_healthy_mm3`: the largest cluster at it of each healthy brain that set it, where they are known.
    """

    value: float
    words: str
    largest_healthy_mm3: tuple[float, ...] = ()

    @classmethod
    def of_z_maps(cls, scores: CohortScores) -> "Threshold":
        """That of a cohort of maps in standard deviations; a fixed one where nothing sets it."""
        if scores.threshold is None:
            return cls(FIXED_Z, f"fixed: {scores.point.why_none}. One healthy voxel in a thousand lies above it")
        allowed = scores.settings.false_clusters
        return cls(
            scores.threshold,
            f"set on {scores.point.origin} alone, of which each shows at most {allowed:g} such "
            f"cluster{'s' if allowed != 1 else ''} on average",
            scores.point.largest_mm3,
        )


@dataclass(frozen=True, eq=False)
class SubjectReport:
    """All that one subject's page shows.

    Attributes
    ----------
    subject : ReportSubject
        With images, on the template grid.
    created : datetime
    scored : ScoredMap
    space : str
        Where that is: "native" or "template".
    threshold : Threshold
    discovery : Discovery or None
        What of this brain survives; None where the map is not in standard deviations.
    smallest_cluster_mm3 : float
    grey, white : Volume
        The template's tissue probabilities.
    row : SubjectRow or None
        The subject's figures at the cohort's operating point.
    cohort_page : str or None
        Where the cohort's page lies, relative to this one.
    summary, settings_text, versions
        As in `CohortReport`.
    """

    subject: ReportSubject
    created: datetime
    scored: ScoredMap
    space: str
    threshold: Threshold
    smallest_cluster_mm3: float
    grey: Volume
    white: Volume
    discovery: Discovery | None = None
    row: SubjectRow | None = None
    cohort_page: str | None = None
    summary: Mapping[str, str] = field(default_factory=dict)
    settings_text: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def scale(self) -> ColourScale:
        """Fixed to the threshold, so that a page without a finding looks like one."""
        return ColourScale.at(self.threshold.value)


@dataclass(frozen=True, eq=False)
class TrainingCurve:
    """A quantity over training steps. Curves with the same `panel` share a plot.

    Attributes
    ----------
    panel : str
        Title of the plot: "Reconstruction error".
    name : str
        Of the line: "training", "held-out".
    steps, values : sequence of float
    unit : str
        Label of the vertical axis.
    log_scale : bool
    """

    panel: str
    name: str
    steps: Sequence[float] | np.ndarray
    values: Sequence[float] | np.ndarray
    unit: str = ""
    log_scale: bool = False


@dataclass(frozen=True)
class StageTime:
    """What a stage took. `skipped`: its earlier result was up to date."""

    stage: str
    wall_s: float
    peak_memory_mb: float | None = None
    done: int | None = None
    failed: int = 0
    skipped: bool = False


@dataclass(frozen=True, eq=False)
class CohortReport:
    """All that a report shows.

    Attributes
    ----------
    title : str
    created : datetime
    subjects : sequence of ReportSubject
    scores : CohortScores or None
        None when nothing could be scored.
    threshold : float or None
        What the colours of all pictures begin at; by default the scores' own. Without one the shares of all scores
        set them.
    runs : sequence of RunScores
        Other runs or methods, to stand beside this one.
    summary : mapping of str to str
        The few settings that a reader asks for first: template spacing, patch size, nu, ...
    settings_text : str
        The whole configuration, folded away.
    versions : mapping of str to str
        Of voxout and what it runs on.
    """

    title: str
    created: datetime
    subjects: Sequence[ReportSubject]
    scores: CohortScores | None = None
    threshold: float | None = None
    runs: Sequence[RunScores] = ()
    summary: Mapping[str, str] = field(default_factory=dict)
    training: Sequence[TrainingCurve] = ()
    stages: Sequence[StageTime] = ()
    failures: Sequence[Failure] = ()
    warnings: Sequence[str] = ()
    settings_text: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
