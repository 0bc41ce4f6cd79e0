"""Contents of the reports, as plain objects filled in by the pipeline."""

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
from ..scoring.control_summary import ControlSummary
from ..scoring.reference_results import RunScores
from ..scoring.score_cohort import CohortScores, SubjectRow
from ..scoring.subject_scores import SubjectScores

FIXED_Z = 3.09
"""Default threshold if none is set on healthy scans; 1 in 1000 voxels of a healthy brain lies above it."""


LEAD = (
    "Voxout models the normal appearance of every voxel from healthy brains and marks voxels of a new scan that "
    "deviate from it. No lesion labels are needed for this; lesion masks are used only to evaluate the maps. Higher "
    "scores mean more unusual tissue, which is not necessarily pathological."
)


@dataclass(frozen=True, eq=False)
class SubjectImages:
    """Volumes of one subject, all on one grid (template or native).

    Attributes
    ----------
    scan, map : Volume
        `map`: higher = more anomalous.
    brain_mask, covered, lesion_mask : Volume of bool or None
        Evaluation mask, voxels of the map with a score, and lesion mask.
    name : str
        Modality of `scan`.
    others : mapping from modality to Volume
        Further scans in the same space, each on any grid.
    """

    scan: Volume
    map: Volume
    brain_mask: Volume | None = None
    covered: Volume | None = None
    lesion_mask: Volume | None = None
    name: str = "T1w"
    others: Mapping[str, Volume] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class OwnScan:
    """A subject's scan as it was given, on its own grid.

    Attributes
    ----------
    images : SubjectImages
        On the grid of the T1w. `others` are aligned with it.
    from_template : callable
        Transform of points from template space to the space of the T1w: (N, 3) to (N, 3), RAS+ mm.
    whole_head : bool
        Show the scan outside the brain, too.
    """

    images: SubjectImages
    from_template: Callable[[np.ndarray], np.ndarray]
    whole_head: bool = True


@dataclass(frozen=True)
class QualityNumber:
    """Quality-control measure of the preprocessing of one subject.

    Attributes
    ----------
    name : str
        Name of the table column.
    label : str
        Short label for the report.
    value : float or None
        None if it could not be measured.
    unusual : bool
        Whether it lies outside its limits.
    """

    name: str
    label: str
    value: float | None
    unusual: bool = False


@dataclass(frozen=True)
class Findings:
    """What a subject's page lists: connected clusters, findings (clusters and parts of clusters) and their volume."""

    clusters: int
    findings: int
    volume_ml: float


@dataclass(frozen=True)
class ReportSubject:
    """Row of the cohort table and, if there is a map, one picture.

    Attributes
    ----------
    role : str
        Role of the subject: "training control", "held-out control" or "patient".
    quality_verdict : str or None
        "pass", "warn" or "fail".
    quality_reasons : tuple of str
    quality_picture : Path or None
        PNG file written by the preprocessing.
    quality : tuple of QualityNumber
        Empty if the subject was not preprocessed.
    brain_method : str or None
        Method of the brain extraction.
    brain_volume_ml : float or None
    scores : SubjectScores or None
    images : callable or None
        Function that loads the volumes; None if there is no map.
    page : str or None
        Path of the subject page, relative to the cohort page.
    findings : Findings or None
        None without a page.
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
    findings: Findings | None = None


@dataclass(frozen=True, eq=False)
class ScoredMap:
    """Map of a subject in the space of the evaluation, so that its clusters match the metrics of the cohort.

    Attributes
    ----------
    map : Volume
    inside : Volume of bool
        Voxels of the evaluation mask with a score.
    to_template : callable
        Transform of points from the space of the map to template space: (N, 3) to (N, 3), RAS+ mm.
    lesion_mask : Volume of bool or None
    """

    map: Volume
    inside: Volume
    to_template: Callable[[np.ndarray], np.ndarray]
    lesion_mask: Volume | None = None


@dataclass(frozen=True)
class Threshold:
    """Threshold for suspicious voxels.

    Attributes
    ----------
    value : float
    origin : str
        Description of how it was set.
    largest_healthy_mm3 : tuple of float
        Volume of the largest cluster at the threshold in each healthy brain that it was set on; empty if unknown.
    controls : ControlSummary or None
        Of the model's training controls; None if unknown.
    """

    value: float
    origin: str
    largest_healthy_mm3: tuple[float, ...] = ()
    controls: ControlSummary | None = None

    @classmethod
    def of_z_maps(cls, scores: CohortScores) -> "Threshold":
        """Return the threshold of a cohort of z-maps; `FIXED_Z` if the cohort has none."""
        if scores.threshold is None:
            return cls(FIXED_Z, f"fixed value, since {scores.point.why_none}; 1 in 1000 healthy voxels lies above it")
        allowed = scores.settings.false_clusters
        return cls(
            scores.threshold,
            f"set on {scores.point.origin} only, with at most {allowed:g} such "
            f"cluster{'s' if allowed != 1 else ''} per healthy brain on average",
            scores.point.largest_mm3,
            scores.point.controls,
        )


@dataclass(frozen=True, eq=False)
class SubjectReport:
    """Contents of the page of one subject.

    Attributes
    ----------
    subject : ReportSubject
        With images, on the template grid.
    created : datetime
    scored : ScoredMap
    space : str
        Space of the scored map: "native" or "template".
    threshold : Threshold
    discovery : Discovery or None
        Threshold at the false discovery rate; None if the map is not a z-map.
    smallest_cluster_mm3 : float
    grey, white : Volume
        Tissue probabilities of the template.
    own_scan : OwnScan or None
        To show the map on; None if it cannot be read now. Then the page shows template space alone.
    why_no_scan : str
        Why there is no own scan, as the start of a sentence.
    jacobian : Volume or None
        Local volume change by the registration, in template space.
    row : SubjectRow or None
        Metrics of the subject at the operating point of the cohort.
    latent_distance : float or None
        Of the whole brain, as in `relation_to_controls`.
    cohort_page : str or None
        Path of the cohort page, relative to this page.
    matched : str
        A sentence on the controls that were matched to the subject; empty if none were.
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
    own_scan: OwnScan | None = None
    why_no_scan: str = "The scan could not be read"
    jacobian: Volume | None = None
    discovery: Discovery | None = None
    row: SubjectRow | None = None
    latent_distance: float | None = None
    cohort_page: str | None = None
    matched: str = ""
    summary: Mapping[str, str] = field(default_factory=dict)
    settings_text: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def scale(self) -> ColourScale:
        """Colour scale relative to the threshold, so that a map without findings has no colours."""
        return ColourScale.at(self.threshold.value)


@dataclass(frozen=True, eq=False)
class TrainingCurve:
    """Quantity over training steps. Curves with the same `panel` share a plot.

    Attributes
    ----------
    panel : str
        Title of the plot, for example "Reconstruction error".
    name : str
        Label of the line, for example "training" or "held-out".
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
    """Time and memory used by a stage.

    `of_model` marks the stages of the applied model, which this run did not repeat.
    """

    stage: str
    wall_s: float
    peak_memory_mb: float | None = None
    done: int | None = None
    failed: int = 0
    of_model: bool = False


@dataclass(frozen=True, eq=False)
class CohortReport:
    """Contents of the report of a cohort.

    Attributes
    ----------
    title : str
    created : datetime
    subjects : sequence of ReportSubject
    scores : CohortScores or None
        None if no map could be scored.
    threshold : float or None
        Lower end of the colour scale of all pictures; by default the threshold of `scores`. Percentiles of all scores
        are used if there is none.
    runs : sequence of RunScores
        Reference runs to compare with.
    summary : mapping of str to str
        The main settings, such as template spacing, patch size and nu.
    settings_text : str
        Complete configuration, shown in a collapsed section.
    versions : mapping of str to str
        Versions of voxout and its dependencies.
    lead : str
        First sentences of the page.
    prepared : bool
        Whether voxout prepared the scans; otherwise the page has no preprocessing quality.
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
    lead: str = LEAD
    prepared: bool = True
