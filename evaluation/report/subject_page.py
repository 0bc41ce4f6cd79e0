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
from .cluster_table import COLUMNS, cluster_row, count_clusters, smallest_p_words
from .findings import describe
from .flags import FLAGS, OnTemplate, flags_of
from .html import json_block, picture_file_uri, picture_uri, write_page
from .map_pictures import head_of
from .relation import Statement, relation_to_controls
from .report_inputs import SubjectImages, SubjectReport
from .viewer.volumes import ViewerVolumes, niivue_licence, niivue_packed, niivue_source
from .widespread import widespread_share, widespread_warning

MOST_LISTED = 200
MOST_PICTURES = 12
_MOSAIC_BYTES, _POINT_BYTES, _QUALITY_BYTES = 75_000, 22_000, 75_000
_TEXT_BYTES = 200_000
"""Of a page with `MOST_LISTED` findings, its style and scripts."""
_PAGE_BYTES, _TEMPLATE_BYTES = 5_900_000, 1_400_000
"""Limit for a page, and for the volumes of its template view beside those of the own scan."""


@dataclass(frozen=True)
class ClusterLine:
    """Suspicious cluster with the MNI position of its peak and a picture of the three planes through it.

    Attributes
    ----------
    cluster : Cluster
        Cluster in the space of the scored map.
    mni_mm : tuple of float, (3,)
    native_mm : tuple of float, (3,), or None
        Position of the peak in the subject's scan; None if the page does not show it.
    place : Place
    picture, alt : str or None
        Only for the first `MOST_PICTURES` clusters.
    """

    cluster: Cluster
    mni_mm: tuple[float, float, float]
    native_mm: tuple[float, float, float] | None
    place: Place
    picture: str | None
    alt: str | None


@dataclass(frozen=True)
class LesionLine:
    """Lesion of the mask with the positions of its peak, and whether a cluster at the threshold touches it."""

    lesion: LesionScore
    mni_mm: tuple[float, float, float]
    native_mm: tuple[float, float, float] | None
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
    relation : tuple of Statement
        How the subject relates to the controls of the model.
    """

    clusters: tuple[Cluster, ...]
    labels: Volume
    rows: list[dict[str, object]]
    relation: tuple[Statement, ...] = ()


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
    own = report.own_scan
    drawn = head if own is None else head_of(own.images, report.scale)
    lines = _lines(report, images, clusters, drawn)
    rows = [cluster_row(subject.key, line.cluster, line.mni_mm, line.place, line.native_mm) for line in lines]
    lesions = _lesion_lines(report)
    mosaics = [_mosaic(drawn, plane, subject.key) for plane in PLANES]
    quality_picture = _quality_picture(report)
    pictures = [quality_picture, *(uri for _, uri, _ in mosaics), *(line.picture for line in lines)]
    others = sum(len(picture or "") for picture in pictures) + len(niivue_packed()) + len(report.settings_text)
    views = _views(report, images, head, drawn, [*lines[:MOST_LISTED], *lesions], _PAGE_BYTES - _TEXT_BYTES - others)
    share = widespread_share(head.scores, head.brain, head.affine, head.scale.low)
    relation = relation_to_controls(
        report.threshold.controls,
        scores=report.scored.map.voxels[report.scored.inside.voxels.astype(bool)],
        clusters=count_clusters(rows),
        age=subject.age,
        spacing_mm=None if own is None else own.images.scan.grid.spacing_mm.tolist(),
        latent_distance=report.latent_distance,
    )
    write_page(
        path,
        "subject.html",
        styles=("report.css", "subject.css"),
        scripts=("report.js", "subject.js"),
        later_scripts=(niivue_source(),),
        report=report,
        subject=subject,
        headline=_headline(report, rows, share),
        relation=relation,
        lines=lines[:MOST_LISTED],
        flags=[flag for flag in FLAGS if any(flag in line.place.flags for line in lines[:MOST_LISTED])],
        lesions=lesions,
        found=len(lines),
        smallest_p=smallest_p_words(clusters[0].smallest_p) if clusters and clusters[0].smallest_p else None,
        widespread=None if share is None else widespread_warning({subject.key: share}),
        mosaics=mosaics,
        quality_picture=quality_picture,
        bar=picture_uri(colour_bar(report.scale), 10_000),
        views=views,
        with_lesion=any(view.volumes.lesion is not None for view in views),
        about=json_block(_about(report, views)),
        niivue=niivue_packed(),
        licence=niivue_licence(),
    )
    write_table(table, rows, columns=COLUMNS)
    return FoundClusters(clusters, labels, rows, relation)


def _headline(report: SubjectReport, rows: Sequence[dict[str, object]], widespread: float | None) -> str:
    """Return the findings in a sentence, as the terminal says them."""
    scores = report.subject.scores
    highest = scores.highest_score if scores is not None else _highest(report)
    text = describe(rows, report.threshold.value, highest, report.smallest_cluster_mm3, widespread=widespread)
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
    in_scan = _in_scan(report, [cluster.peak_mm for cluster in clusters], [peak for peak, _ in places])
    for cluster, (peak, place), native in zip(clusters, places, in_scan, strict=True):
        picture = alt = None
        if cluster.rank <= MOST_PICTURES:
            drawn, text = point_picture(head, np.array(peak if report.own_scan is None else native))
            picture, alt = picture_uri(drawn, _POINT_BYTES), f"Cluster {cluster.rank}: {text}."
        lines.append(ClusterLine(cluster, peak, native, place, picture, alt))
    return lines


def _lesion_lines(report: SubjectReport) -> list[LesionLine]:
    scores = report.subject.scores
    if scores is None or not scores.lesions:
        return []
    peaks = report.scored.to_template(np.array([lesion.peak_mm for lesion in scores.lesions]))
    found = scores.found_at >= np.float32(report.threshold.value)
    in_scan = _in_scan(report, [lesion.peak_mm for lesion in scores.lesions], peaks)
    return [
        LesionLine(lesion, _triple(peak), native, bool(is_found))
        for lesion, peak, native, is_found in zip(scores.lesions, peaks, in_scan, found, strict=True)
    ]


def _in_scan(
    report: SubjectReport, scored_mm: Sequence[Sequence[float]], mni_mm: Sequence[Sequence[float]] | np.ndarray
) -> list[tuple[float, float, float] | None]:
    """Return points of the scored map in the space of the scan; None if only template space is known."""
    if report.space == "native":
        return [_triple(point) for point in scored_mm]
    if report.own_scan is None or not len(scored_mm):
        return [None] * len(scored_mm)
    return [_triple(point) for point in report.own_scan.from_template(np.asarray(mni_mm, dtype=np.float64))]


def _triple(point: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(mm) for mm in point)
    return x, y, z


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


@dataclass(frozen=True)
class View:
    """What the viewer shows in one space.

    Attributes
    ----------
    space : {"own", "template"}
    volumes : ViewerVolumes
    places : list of (float, float, float)
        Positions of the rows of all tables.
    spacing_mm : list of float
    """

    space: str
    volumes: ViewerVolumes
    places: list[tuple[float, float, float]]
    spacing_mm: list[float]


def _views(
    report: SubjectReport,
    images: SubjectImages,
    head: Head,
    drawn: Head,
    lines: Sequence[ClusterLine | LesionLine],
    most_bytes: int,
) -> list[View]:
    """Return the views of the page, the one that it starts with first, in at most `most_bytes` together."""
    own = report.own_scan
    others = {name: _inside(scan, images.brain_mask) for name, scan in images.others.items()}
    most = most_bytes if own is None else _TEMPLATE_BYTES
    on_template = ViewerVolumes.from_head(head, name=images.name, others=others, most_bytes=most)
    views = [View("template", on_template, [line.mni_mm for line in lines], head.spacing_mm.tolist())]
    if own is not None:
        scans = own.images
        volumes = ViewerVolumes.from_head(
            drawn,
            name=scans.name,
            others=scans.others,
            whole_head=own.whole_head,
            most_bytes=most_bytes - on_template.bytes,
        )
        places = [line.native_mm or line.mni_mm for line in lines]
        views.insert(0, View("own", volumes, places, drawn.spacing_mm.tolist()))
    return views


def _inside(scan: Volume, mask: Volume | None) -> Volume:
    return scan if mask is None else scan.with_voxels(np.where(mask.voxels, scan.voxels, 0))


def _about(report: SubjectReport, views: Sequence[View]) -> dict[str, object]:
    """Return the settings of the viewer."""
    scale = report.scale
    # The colour map of the viewer spans the floor to the top of the scale; it is constant below the threshold.
    share = scale.share(np.linspace(scale.floor, scale.high, 256))
    ramp = np.round(colours_of(share) * 255).astype(int)
    alpha = np.round(opacity(share) * 255).astype(int)
    # Voxels without a score are stored as 0, which NiiVue would colour at any threshold.
    alpha[0] = 0
    # Limit the slider range, so that a single extreme voxel does not make its steps too coarse.
    highest = min(max(view.volumes.top for view in views), scale.low + 20 * (scale.high - scale.low))
    return {
        "floor": scale.floor,
        "high": scale.high,
        "sliderTop": highest,
        "threshold": report.threshold.value,
        "scoredIn": report.space,
        "red": ramp[:, 0].tolist(),
        "green": ramp[:, 1].tolist(),
        "blue": ramp[:, 2].tolist(),
        "alpha": alpha.tolist(),
        "lesionColour": [round(255 * part) for part in LESION_COLOUR],
        "views": [
            {
                "space": view.space,
                "scans": [scan.name for scan in view.volumes.scans],
                "step": view.volumes.step,
                "spacing": view.spacing_mm,
                "places": view.places,
            }
            for view in views
        ],
    }
