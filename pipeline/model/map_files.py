"""Files of maps: images that viewers open at the threshold, each with a JSON file that says what it holds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...data_manifests.cohort.output_paths import TEMPLATE_SPACE, beside
from ...data_manifests.errors import counted
from ...data_manifests.images.volume import Volume, write_volume
from ...data_manifests.typed_json import load_json
from ...evaluation.metrics.clusters import Cluster
from ...evaluation.report.cluster_table import LABEL_COLUMNS, label_table
from ...evaluation.report.relation import Statement
from ...evaluation.scoring.operating_point import OF_MODEL
from ..config.config import Config
from ..workflow.attempts import host_class
from ..workflow.origin import Origin
from ..workflow.records import versions, write_json

_KINDS = {
    "anomaly_zmap": (
        "Anomaly score, higher = more anomalous: the deviation from healthy brains at this voxel. One healthy voxel in "
        "a thousand exceeds 3.09. 0 where there is no score; see desc-coverage_mask.",
        "standard deviations of a normal distribution (z)",
        "z score",
    ),
    "spread_zmap": (
        "Standard deviation of the anomaly score over the encoders of the ensemble.",
        "standard deviations of a normal distribution (z)",
        "none",
    ),
    "anomaly_logpmap": (
        "-log10 of the p-value of the voxel, not corrected for multiple comparisons; 0 where there is no score.",
        "-log10(p)",
        "log10 p value",
    ),
    "anomaly_logqmap": (
        "-log10 of the q-value of the voxel (Benjamini and Hochberg), corrected for the number of voxels of the brain; "
        "0 where there is no score.",
        "-log10(q)",
        "none",
    ),
    "smallestfound_map": (
        "Size from which half of the simulated lesions are found that are painted here: dark ones with half the "
        "contrast of grey and white matter (docs/certificate.md). Averaged over some 10 mm; 0 where there is no score.",
        "ml",
        "none",
    ),
    "coverage_mask": ("1 at the voxels with a score, 0 elsewhere.", "none", "none"),
    "clusters_dseg": (
        "Number of the cluster that the voxel belongs to, as in the table of the same name (.tsv); 1 has the highest "
        "peak. 0 outside clusters. Clusters are 26-connected voxels at or above the threshold; one with several "
        "distinct peaks is split at them, and part_of of the table names its parts.",
        "none",
        "label",
    ),
}
"""Description, unit and NIfTI intent by the last part of a file's name."""


RELATION = "ComparedWithControls"
"""Key in the JSON file of the clusters."""
_QUALITY = "QualityOfPreparation"
_LATENT_DISTANCE = "LatentDistance"


@dataclass(frozen=True)
class MapContext:
    """What the JSON files of one subject's maps say beside what each map holds.

    Attributes
    ----------
    config : Config
    model : str
        Identity of the fit of the model.
    threshold : float or None
        None if none is valid for the maps.
    origin : str
        How the threshold was set.
    adapted_on : int or None
        Number of healthy scans of another scanner that the model was adapted to; None if it was not.
    labelled_patients : int or None
        Number of labelled patients that the model was adapted to; None if it was not.
    made_by : Origin
    scans : mapping from name, as "t1w", to hash
        Of the scans that the map was computed from (see `file_fingerprint`).
    relation : sequence of Statement
        How the subject relates to the controls of the model, for the JSON file of its clusters.
    quality : str or None
        Verdict on scan and preparation: "pass", "warn" or "fail"; for the same file.
    doubts : sequence of str
        Reasons of the verdict, such as noise, contrast or registration.
    latent_distance : float or None
        See `AnomalyMap`.
    matched : mapping
        How many controls count for the subject and what is told of them; empty if all count alike.
    """

    config: Config
    model: str
    threshold: float | None
    origin: str = ""
    adapted_on: int | None = None
    labelled_patients: int | None = None
    made_by: Origin = field(default_factory=Origin)
    scans: Mapping[str, str] = field(default_factory=dict)
    relation: Sequence[Statement] = ()
    quality: str | None = None
    doubts: Sequence[str] = ()
    latent_distance: float | None = None
    matched: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_model(
        cls,
        config: Config,
        model: str,
        threshold: float | None,
        adapted_on: int | None = None,
        labelled_patients: int | None = None,
    ) -> "MapContext":
        """Return the context of maps with the model's own threshold."""
        controls = OF_MODEL if adapted_on is None else of_scanner(adapted_on)
        allowed = config.evaluation.false_clusters
        origin = (
            f"{controls}, which have on average at most {allowed:g} false-positive "
            f"cluster{'s' if allowed != 1 else ''} in cross-validation"
            if threshold is not None
            else "none: the model has no threshold for these settings, or the cohort sets it after mapping"
        )
        return cls(config, model, threshold, origin, adapted_on, labelled_patients)


def of_scanner(controls: int) -> str:
    """Describe the scans that a model was adapted to."""
    return f"{counted(controls, 'healthy control')} of this scanner"


def of_labels(patients: int) -> str:
    """Describe the patients from whom the combination of the scorers was learnt."""
    return f"{counted(patients, 'labelled patient')}"


def write_map(path: Path, volume: Volume, context: MapContext) -> list[Path]:
    """Write a map and its JSON file, whose content follows from the name of the map.

    z-maps get the threshold and twice its value as the range that viewers show at first.

    Returns
    -------
    list of Path
        The map and the JSON file.
    """
    from ...evaluation.figures.colour_scale import ColourScale

    kind = path.name.removesuffix(".nii.gz").rsplit("desc-", 1)[1]
    description, unit, intent = _KINDS[kind]
    shown = None
    if kind == "anomaly_zmap" and context.threshold is not None:
        scale = ColourScale.at(context.threshold)
        shown = scale.low, scale.high
    write_volume(path, volume, intent=intent, shown=shown)
    sidecar = beside(path, ".json")
    about = {"Description": description, "Units": unit} | _about(path, context)
    if kind == "clusters_dseg":
        about[RELATION] = [{"Text": found.text, "Unusual": found.unusual} for found in context.relation]
        about[_QUALITY] = {"Verdict": context.quality, "Doubts": list(context.doubts)}
        for name, (text, of) in LABEL_COLUMNS.items():
            about[name] = {"Description": text} | ({"Units": of} if of else {})
    write_json(sidecar, about)
    return [path, sidecar]


def read_latent_distance(path: Path) -> float | None:
    """Read `MapContext.latent_distance` from the JSON file beside a map; None if it holds none."""
    try:
        found = load_json(beside(path, ".json")).get(_LATENT_DISTANCE)
    except (OSError, ValueError, AttributeError):  # of an earlier version, or not ours any more
        return None
    return float(found) if isinstance(found, (int, float)) and math.isfinite(found) else None


def write_clusters(
    path: Path,
    labels: Volume,
    clusters: Sequence[Cluster],
    rows: Sequence[dict[str, object]],
    context: MapContext,
) -> list[Path]:
    """Write the numbered clusters, their JSON file and their table.

    Parameters
    ----------
    path : Path
        Of the image.
    labels, clusters
        As returned by `label_findings`.
    rows : sequence of dict
        Of each cluster (see `cluster_row`).
    context : MapContext

    Returns
    -------
    list of Path
        Image, JSON file and table.
    """
    return [*write_map(path, labels, context), label_table(beside(path, ".tsv"), clusters, rows)]


def _about(path: Path, context: MapContext) -> dict[str, Any]:
    config, installed, made_by = context.config, versions(), context.made_by
    native = "space-orig" in path.name
    return {
        "Threshold": context.threshold,
        "ThresholdSetOn": context.origin,
        "SmallestClusterMm3": config.evaluation.smallest_cluster_mm3,
        "Space": "orig" if native else TEMPLATE_SPACE,
        "SpatialReference": "the grid of the subject's own T1w" if native else f"{TEMPLATE_SPACE} (MNI152, RAS mm)",
        "Template": TEMPLATE_SPACE,
        "TemplateSpacingMm": config.preprocessing.spacing_mm,
        "Model": {
            "Fit": context.model,
            "Scorers": list(config.models.ensemble.scorers),
            "Modalities": list(config.preprocessing.modalities),
        }
        | ({"AdaptedTo": of_scanner(context.adapted_on)} if context.adapted_on is not None else {})
        | ({"LearntFrom": of_labels(context.labelled_patients)} if context.labelled_patients is not None else {}),
        **({"MatchedControls": dict(context.matched)} if context.matched else {}),
        "GeneratedBy": [
            {"Name": "voxout", "Version": installed["voxout"]} | ({"Commit": made_by.commit} if made_by.commit else {})
        ],
        "Command": made_by.command or None,
        "Created": datetime.now(UTC).isoformat(timespec="seconds"),
        "Machine": host_class(),
        "Seed": config.seed,
        _LATENT_DISTANCE: context.latent_distance,
        "InputHashes": dict(context.scans),
        "Versions": installed,
    }
