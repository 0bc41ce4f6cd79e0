"""Asymmetric phantom subject for the tests of the subject page."""

from datetime import datetime

import nibabel as nib
import numpy as np
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.evaluation.report.report_inputs import ReportSubject, ScoredMap, SubjectImages, SubjectReport, Threshold
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
