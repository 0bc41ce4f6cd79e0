"""HTML page of one subject: anomaly map over the scan in a viewer and pictures, and a list of suspicious clusters."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from ...data_manifests.errors import UserError
from ...data_manifests.images.volume import Volume
from ..figures.colour_scale import LESION_COLOUR, colour_bar, colours_of, opacity
from ..figures.mosaic import point_picture, subject_mosaic
from ..figures.slices import PLANES, Head, Plane
from ..metrics.cluster_parts import label_findings
from ..metrics.clusters import Cluster
from ..scoring.subject_scores import LesionScore
from ..scoring.tables import write_table
from .anatomy import Place, places_of
from .cluster_table import COLUMNS, cluster_row
from .findings import describe
from .flags import FLAGS, OnTemplate, flags_of
from .html import json_block, picture_file_uri, picture_uri, write_page
from .map_pictures import head_of
from .report_inputs import SubjectImages, SubjectReport
from .viewer.volumes import ViewerVolumes, niivue_licence, niivue_packed, niivue_source
from .widespread import widespread_share, widespread_warning

MOST_LISTED = 200
MOST_PICTURES = 12
_MOSAIC_BYTES, _POINT_BYTES, _QUALITY_BYTES = 90_000, 28_000, 90_000


@dataclass(frozen=True)
class ClusterLine:
    """Suspicious cluster with the MNI position of its peak and a picture of the three planes through it.

    Attributes
    ----------
    cluster : Cluster
        Cluster in the space of the scored map.
    mni_mm : tuple of float, (3,)
    place : Place
    picture, alt : str or None
        Only for the first `MOST_PICTURES` clusters.
    """

    cluster: Cluster
    mni_mm: tuple[float, float, float]
    place: Place
    picture: str | None
    alt: str | None


@dataclass(frozen=True)
class LesionLine:
    """Lesion of the mask with the MNI position of its peak, and whether a cluster at the threshold touches it."""

    lesion: LesionScore
    mni_mm: tuple[float, float, float]
    found: bool


@dataclass(frozen=True, eq=False)
class FoundClusters:
    """Clusters of one subject's map, split at their peaks.

    Attributes
    ----------
    clusters : tuple of Cluster
    labels : Volume
        As returned by `label_findings`.
    rows : list of dict
        Of each cluster, with its place in MNI space (see `cluster_row`).
    """

    clusters: tuple[Cluster, ...]
    labels: Volume
    rows: list[dict[str, object]]


def write_subject_page(path: Path, report: SubjectReport, *, table: Path) -> FoundClusters:
    """Write the page of a subject and a table of its clusters.

    Parameters
    ----------
    path : Path
        Path of the HTML file.
    report : SubjectReport
    table : Path
        Path of the CSV file.

    Returns
    -------
    FoundClusters
        Those of the page.

    Raises
    ------
    UserError
        The subject has no map, or its volumes cannot be read.
    """
    subject = report.subject
    if subject.images is None:
        raise UserError(f"{subject.key}: has no anomaly map, expected one. Run the stage map for this subject.")
    images = subject.images()
    head = head_of(images, report.scale)
    clusters, labels = label_findings(
        report.scored.map,
        report.threshold.value,
        report.scored.inside,
        smallest_mm3=report.smallest_cluster_mm3,
        lesion_mask=report.scored.lesion_mask,
        largest_healthy_mm3=report.threshold.largest_healthy_mm3,
    )
    lines = _lines(report, images, clusters, head)
    rows = [cluster_row(subject.key, line.cluster, line.mni_mm, line.place) for line in lines]
    lesions = _lesion_lines(report)
    places = [line.mni_mm for line in (*lines[:MOST_LISTED], *lesions)]
    volumes = ViewerVolumes.from_head(head)
    share = widespread_share(head)
    write_page(
        path,
        "subject.html",
        styles=("report.css", "subject.css"),
        scripts=("report.js", "subject.js"),
        later_scripts=(niivue_source(),),
        report=report,
        subject=subject,
        headline=_headline(report, rows),
        lines=lines[:MOST_LISTED],
        flags=[flag for flag in FLAGS if any(flag in line.place.flags for line in lines[:MOST_LISTED])],
        lesions=lesions,
        found=len(lines),
        smallest_p=_smallest_p(report),
        widespread=None if share is None else widespread_warning({subject.key: share}),
        mosaics=[_mosaic(head, plane, subject.key) for plane in PLANES],
        quality_picture=_quality_picture(report),
        bar=picture_uri(colour_bar(report.scale), 10_000),
        volumes=volumes,
        about=json_block(_about(report, places, volumes, head)),
        niivue=niivue_packed(),
        licence=niivue_licence(),
    )
    write_table(table, rows, columns=COLUMNS)
    return FoundClusters(clusters, labels, rows)


def _headline(report: SubjectReport, rows: Sequence[dict[str, object]]) -> str:
    """Return the findings in a sentence, as the terminal says them."""
    scores = report.subject.scores
    highest = scores.highest_score if scores is not None else _highest(report)
    text = describe(rows, report.threshold.value, highest, report.smallest_cluster_mm3)
    return text[0].upper() + text[1:]


def _highest(report: SubjectReport) -> float:
    inside = report.scored.map.voxels[report.scored.inside.voxels.astype(bool)]
    return float(inside.max()) if inside.size else float("-inf")


def _lines(
    report: SubjectReport, images: SubjectImages, clusters: tuple[Cluster, ...], head: Head
) -> list[ClusterLine]:
    lines = []
    everywhere = images.map.with_voxels(np.ones(images.map.voxels.shape, bool))
    covered = images.covered if images.covered is not None else everywhere
    brain = images.brain_mask if images.brain_mask is not None else covered
    on_template = OnTemplate(images.map, covered, brain, report.grey, report.white, report.jacobian)
    flags = partial(flags_of, on_template=on_template, threshold=report.threshold.value)
    places = places_of(clusters, report.scored.to_template, report.grey, report.white, flags)
    for cluster, (peak, place) in zip(clusters, places, strict=True):
        picture = alt = None
        if cluster.rank <= MOST_PICTURES:
            drawn, text = point_picture(head, np.array(peak))
            picture, alt = picture_uri(drawn, _POINT_BYTES), f"Cluster {cluster.rank}: {text}."
        lines.append(ClusterLine(cluster, peak, place, picture, alt))
    return lines


def _lesion_lines(report: SubjectReport) -> list[LesionLine]:
    scores = report.subject.scores
    if scores is None or not scores.lesions:
        return []
    peaks = report.scored.to_template(np.array([lesion.peak_mm for lesion in scores.lesions]))
    found = scores.found_at >= np.float32(report.threshold.value)
    return [
        LesionLine(lesion, (float(x), float(y), float(z)), bool(is_found))
        for lesion, (x, y, z), is_found in zip(scores.lesions, peaks, found, strict=True)
    ]


def _smallest_p(report: SubjectReport) -> tuple[int, float] | None:
    """Return the number of healthy brains and the smallest p-value that they allow; None without healthy brains."""
    healthy = len(report.threshold.largest_healthy_mm3)
    return (healthy, 1 / (1 + healthy)) if healthy else None


def _mosaic(head: Head, plane: Plane, key: str) -> tuple[str, str, str]:
    """Title, picture and alternative text of the slices of one plane."""
    picture, alt = subject_mosaic(head, plane)
    return plane.capitalize(), picture_uri(picture, _MOSAIC_BYTES), f"{key}: {alt}."


def _quality_picture(report: SubjectReport) -> str | None:
    path = report.subject.quality_picture
    if path is None:
        return None
    try:
        return picture_file_uri(path, _QUALITY_BYTES, most_px=1300)
    except (OSError, UnidentifiedImageError):
        # The page states that there is no picture.
        return None


def _about(
    report: SubjectReport, places: Sequence[tuple[float, float, float]], volumes: ViewerVolumes, head: Head
) -> dict[str, object]:
    """Return the settings of the viewer; `places` are the positions of the table rows."""
    scale = report.scale
    # The colour map of the viewer spans the floor to the top of the scale; it is constant below the threshold.
    share = scale.share(np.linspace(scale.floor, scale.high, 256))
    ramp = np.round(colours_of(share) * 255).astype(int)
    alpha = np.round(opacity(share) * 255).astype(int)
    # Voxels without a score are stored as 0, which NiiVue would colour at any threshold.
    alpha[0] = 0
    # Limit the slider range, so that a single extreme voxel does not make its steps too coarse.
    highest = min(volumes.top, scale.low + 20 * (scale.high - scale.low))
    return {
        "floor": volumes.floor,
        "high": scale.high,
        "step": volumes.step,
        "sliderTop": highest,
        "threshold": report.threshold.value,
        "native": report.space == "native",
        "spacing": head.spacing_mm.tolist(),
        "red": ramp[:, 0].tolist(),
        "green": ramp[:, 1].tolist(),
        "blue": ramp[:, 2].tolist(),
        "alpha": alpha.tolist(),
        "lesionColour": [round(255 * part) for part in LESION_COLOUR],
        "places": places,
    }
