"""The page of one subject: its map over its scan, in pictures and in a viewer, and a list of what is suspicious."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from ...data_manifests.errors import UserError
from ..figures.colour_scale import LESION_COLOUR, colour_bar, colours_of, opacity
from ..figures.mosaic import point_picture, subject_mosaic
from ..figures.slices import PLANES, Head, Plane
from ..metrics.clusters import Cluster, find_clusters
from ..scoring.subject_scores import LesionScore
from ..scoring.tables import write_table
from .anatomy import Place, place_of
from .elements import head_of
from .html import json_block, picture_file_uri, picture_uri, write_page
from .report_inputs import SubjectReport
from .viewer.volumes import ViewerVolumes, niivue_licence, niivue_packed, niivue_source

MOST_LISTED = 200
MOST_PICTURES = 12
_MOSAIC_BYTES, _POINT_BYTES, _QUALITY_BYTES = 90_000, 28_000, 90_000
_COLUMNS = (
    "subject", "rank", "volume_mm3", "peak_score", "mean_score", "p_value", "x_mni_mm", "y_mni_mm", "z_mni_mm", "side",
    "region", "tissue", "in_lesion_mask",
)  # fmt: skip


@dataclass(frozen=True)
class ClusterLine:
    """A suspicious cluster, where its peak lies in MNI space, and the three planes through it.

    Attributes
    ----------
    cluster : Cluster
        In the space of the scored map.
    mni_mm : tuple of float, (3,)
    place : Place
    picture, alt : str or None
        Only of the first ones.
    """

    cluster: Cluster
    mni_mm: tuple[float, float, float]
    place: Place
    picture: str | None
    alt: str | None


@dataclass(frozen=True)
class LesionLine:
    """A lesion of the mask, where its peak lies in MNI space, and whether a cluster at the threshold touches it."""

    lesion: LesionScore
    mni_mm: tuple[float, float, float]
    found: bool


def write_subject_page(path: Path, report: SubjectReport, *, table: Path) -> list[Path]:
    """Write a subject's page, and its clusters as a table.

    Parameters
    ----------
    path : Path
        Of the HTML file.
    report : SubjectReport
    table : Path
        Of the CSV file.

    Returns
    -------
    list of Path
        The page and the CSV file.

    Raises
    ------
    UserError
        The subject has no map, or its volumes cannot be read.
    """
    subject = report.subject
    if subject.images is None:
        raise UserError(f"{subject.key}: has no anomaly map, expected one. Run the stage map for the subject.")
    head = head_of(subject.images(), report.scale)
    clusters = find_clusters(
        report.scored.map,
        report.threshold.value,
        report.scored.inside,
        smallest_mm3=report.smallest_cluster_mm3,
        lesion_mask=report.scored.lesion_mask,
        largest_healthy_mm3=report.threshold.largest_healthy_mm3,
    )
    lines = _lines(report, clusters, head)
    lesions = _lesion_lines(report)
    places = [line.mni_mm for line in (*lines[:MOST_LISTED], *lesions)]
    volumes = ViewerVolumes.from_head(head)
    write_page(
        path,
        "subject.html",
        styles=("report.css", "subject.css"),
        scripts=("report.js", "subject.js"),
        later_scripts=(niivue_source(),),
        report=report,
        subject=subject,
        lines=lines[:MOST_LISTED],
        lesions=lesions,
        found=len(lines),
        mosaics=[_mosaic(head, plane, subject.key) for plane in PLANES],
        quality_picture=_quality_picture(report),
        bar=picture_uri(colour_bar(report.scale), 10_000),
        volumes=volumes,
        about=json_block(_about(report, places, volumes, head)),
        niivue=niivue_packed(),
        licence=niivue_licence(),
    )
    write_table(table, [_csv_line(subject.key, line) for line in lines], columns=_COLUMNS)
    return [path, table]


def _lines(report: SubjectReport, clusters: tuple[Cluster, ...], head: Head) -> list[ClusterLine]:
    if not clusters:
        return []
    peaks = report.scored.to_template(np.array([cluster.peak_mm for cluster in clusters]))
    lines = []
    for cluster, peak in zip(clusters, peaks, strict=True):
        picture = alt = None
        if cluster.rank <= MOST_PICTURES:
            drawn, words = point_picture(head, peak)
            picture, alt = picture_uri(drawn, _POINT_BYTES), f"Cluster {cluster.rank}: {words}."
        x, y, z = (float(mm) for mm in peak)
        lines.append(ClusterLine(cluster, (x, y, z), place_of(peak, report.grey, report.white), picture, alt))
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


def _mosaic(head: Head, plane: Plane, key: str) -> tuple[str, str, str]:
    """Title, picture and words of one plane's slices."""
    picture, alt = subject_mosaic(head, plane)
    return plane.capitalize(), picture_uri(picture, _MOSAIC_BYTES), f"{key}: {alt}."


def _quality_picture(report: SubjectReport) -> str | None:
    path = report.subject.quality_picture
    if path is None:
        return None
    try:
        return picture_file_uri(path, _QUALITY_BYTES, most_px=1300)
    except (OSError, UnidentifiedImageError):
        # The page says that there is none; the maps are worth having without it.
        return None


def _about(
    report: SubjectReport, places: Sequence[tuple[float, float, float]], volumes: ViewerVolumes, head: Head
) -> dict[str, object]:
    """What the viewer has to know; `places` are those of the rows that lead there."""
    scale = report.scale
    # The viewer spreads its colours from the floor to the top of the scale; below the threshold they stay the darkest.
    share = scale.share(np.linspace(scale.floor, scale.high, 256))
    ramp = np.round(colours_of(share) * 255).astype(int)
    alpha = np.round(opacity(share) * 255).astype(int)
    # Where there is no score the stored value is 0, and NiiVue colours that whatever the threshold.
    alpha[0] = 0
    # One voxel a thousand times above all others must not leave the slider a single useful step.
    highest = min(volumes.top, scale.low + 20 * (scale.high - scale.low))
    return {
        "floor": volumes.floor,
        "high": scale.high,
        "step": volumes.step,
        "sliderTop": highest,
        "threshold": report.threshold.value,
        "spacing": head.spacing_mm.tolist(),
        "red": ramp[:, 0].tolist(),
        "green": ramp[:, 1].tolist(),
        "blue": ramp[:, 2].tolist(),
        "alpha": alpha.tolist(),
        "lesionColour": [round(255 * part) for part in LESION_COLOUR],
        "places": places,
    }


def _csv_line(key: str, line: ClusterLine) -> dict[str, object]:
    cluster = line.cluster
    values = (
        key, cluster.rank, cluster.volume_mm3, cluster.peak_score, cluster.mean_score, cluster.p_value, *line.mni_mm,
        line.place.side, line.place.region, line.place.tissue, cluster.in_lesion,
    )  # fmt: skip
    return dict(zip(_COLUMNS, values, strict=True))
