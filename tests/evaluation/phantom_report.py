"""Asymmetric phantom subject for the tests of the subject page."""

from dataclasses import replace
from datetime import datetime

import nibabel as nib
import numpy as np
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.evaluation.report.report_inputs import (
    OwnScan,
    ReportSubject,
    ScoredMap,
    SubjectImages,
    SubjectReport,
    Threshold,
)
from voxout.evaluation.scoring.score_cohort import subject_row
from voxout.evaluation.scoring.score_subject import score_map
from voxout.evaluation.settings import EvaluationSettings

SETTINGS = EvaluationSettings(smallest_cluster_mm3=30, bootstrap_draws=20)
THRESHOLD = 2.0
RIGHT_FRONT, LEFT_BACK = (36.0, 40.0, 0.0), (-36.0, -44.0, 10.0)
"""Centres of the map's two clusters, RAS+ mm."""


def reoriented(voxels, affine, axcodes):
    image = nib.Nifti1Image(np.asarray(voxels, np.float32), affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(axcodes)
    )
    turned = image.as_reoriented(turn)
    stored = np.asarray(turned.dataobj).astype(voxels.dtype)
    return Volume(stored, Grid(stored.shape, turned.affine))


def asymmetric_images(axcodes="LAS", *, peak=6.0):
    """Phantom brain at 2 mm. The scan is bright in the left front; the map is high in the right front (`peak`) and
    less high in the left back, where the lesion mask is."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-80, -100, -70]
    size = (81, 101, 71)
    x, y, z = (np.indices(size).T @ affine[:3, :3] + affine[:3, 3]).T
    brain = (x / 66) ** 2 + (y / 84) ** 2 + (z / 58) ** 2 < 1
    random = np.random.default_rng(0)
    bright = (abs(x + 36) < 12) & (abs(y - 40) < 12) & (abs(z) < 12)
    scan = np.where(brain, 90 + 4 * random.standard_normal(size) + 90 * bright, 0).astype(np.float32)

    def around(place, radius):
        return sum((axis - middle) ** 2 for axis, middle in zip((x, y, z), place, strict=True)) < radius**2

    scores = (0.4 * random.standard_normal(size)).clip(-2, 1.9)
    scores[around(RIGHT_FRONT, 12)], scores[around(LEFT_BACK, 10)] = 4.5, 3.0
    scores[around(RIGHT_FRONT, 2.1)] = peak
    lesion = around(LEFT_BACK, 12)
    return [reoriented(v, affine, axcodes) for v in (scan, scores.astype(np.float32), brain, lesion)]


SPOT = (-22.0, 30.0, 16.0)
"""Of `own_scan_report`, in template space: one voxel, bright in a dark surrounding, with the highest score."""


def own_scan_report(folder, axcodes="LPI", *, others=False, space="native", **changes):
    """The phantom with its own scan: tilted and moved, in any stored orientation, with a skull around the brain."""
    plain = phantom_report(folder)
    scan, map, brain, lesion = asymmetric_images(axcodes)
    tilt = np.eye(4)
    around_z, around_x = np.deg2rad([14, -9])
    tilt[:2, :2] = [[np.cos(around_z), -np.sin(around_z)], [np.sin(around_z), np.cos(around_z)]]
    about_x = np.eye(4)
    about_x[1:3, 1:3] = [[np.cos(around_x), -np.sin(around_x)], [np.sin(around_x), np.cos(around_x)]]
    tilt = about_x @ tilt
    tilt[:3, 3] = [25, -40, 60]
    at = tuple(np.round(np.linalg.inv(scan.affine) @ [*SPOT, 1]).astype(int)[:3])
    around = tuple(slice(i - 5, i + 6) for i in at)
    voxels, scores = scan.voxels.copy(), map.voxels.copy()
    voxels[around], scores[around] = 60.0, 3.0
    voxels[at], scores[at] = 250.0, 7.0
    mm = np.moveaxis(np.indices(scan.grid.size_vox), 0, -1) @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    shell = (mm / [76, 96, 67]) ** 2
    voxels[(shell.sum(axis=-1) < 1) & ~brain.voxels] = 120.0
    grid = Grid(scan.grid.size_vox, tilt @ scan.affine)
    scan, map, brain, lesion = (Volume(v, grid) for v in (voxels, scores, brain.voxels, lesion.voxels))
    inverted = {"FLAIR": Volume((np.where(voxels > 0, 255 - voxels, 0)).astype(np.float32), grid)} if others else {}
    own = OwnScan(
        SubjectImages(scan, map, brain, brain, lesion, others=inverted), lambda p: p @ tilt[:3, :3].T + tilt[:3, 3]
    )
    back = np.linalg.inv(tilt)
    scored = ScoredMap(map, brain, lambda p: p @ back[:3, :3].T + back[:3, 3], lesion)
    if space == "template":
        scored = plain.scored
    return replace(plain, own_scan=own, scored=scored, space=space, **changes)


def phantom_report(folder, **changes):
    scan, map, brain, lesion = asymmetric_images(changes.pop("axcodes", "LAS"), peak=changes.pop("peak", 6.0))
    scores = score_map("sub-01", map, brain, lesion, brain, SETTINGS)
    subject = ReportSubject(
        "sub-01",
        "patient",
        role="patient",
        site="Lyon",
        age=44.4,
        sex="F",
        quality_verdict="warn",
        quality_reasons=("The overlap of its brain is <low>.",),
        quality_picture=folder / "none.png",
        brain_volume_ml=1400.0,
        scores=scores,
        images=lambda: SubjectImages(scan, map, brain, brain, lesion),
    )
    tissue = brain.with_voxels(np.where(brain.voxels, 0.8, 0).astype(np.float32))
    content = {
        "subject": subject,
        "created": datetime(2026, 3, 1, 9, 5),
        "scored": ScoredMap(map, brain, lambda points: points, lesion),
        "space": "native",
        "threshold": Threshold(THRESHOLD, "set on healthy scans alone"),
        "smallest_cluster_mm3": 30.0,
        "grey": tissue,
        "white": tissue.with_voxels(tissue.voxels * 0.1),
        "row": subject_row(scores, THRESHOLD),
        "cohort_page": "../index.html",
        "summary": {"Template grid": "MNI152, 2 mm"},
        "settings_text": "nu: 0.1 # <script>alert(1)</script>",
        "versions": {"voxout": "0.1.0"},
    }
    return SubjectReport(**(content | changes))
