"""A study, its converted scan, and a map with findings as `voxout apply` writes it, without a model."""

from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import SubjectRecord, parts_of_key
from voxout.data_manifests.images.volume import read_volume, write_volume
from voxout.evaluation.metrics.cluster_parts import label_findings
from voxout.evaluation.report.anatomy import Place
from voxout.evaluation.report.cluster_table import COLUMNS, cluster_row
from voxout.evaluation.scoring.tables import write_table
from voxout.pipeline.config.config import Config
from voxout.pipeline.model.map_files import MapContext, write_clusters, write_map
from voxout.pipeline.workflow.records import StageRecord, file_fingerprint

from ..commands import told
from .made_series import save

THRESHOLD = 4.0


class Mapped:
    """A study in a folder, and its results beside it."""

    def __init__(self, folder: Path, images: list[Dataset], *, findings: bool = True, shift: float = 0):
        self.study = save(images, folder / "study")
        self.out = OutputFolder(folder / "out")
        code, messages = told("dicom", "in", self.study, self.out.received)
        assert code == 0, messages
        (path,) = self.out.received.rglob("*_T1w.nii.gz")
        self.key = path.name.removesuffix("_T1w.nii.gz")
        self.subject = SubjectRecord(parts_of_key(self.key)[0], "patient", {})
        map_by_hand(self.out, self.subject, path, findings=findings, shift=shift)

    def export(self, target: Path, *more: object) -> tuple[int, str]:
        """Write the results to a folder."""
        return told("dicom", "out", self.out.root, self.key, target, *more)


def map_by_hand(
    out: OutputFolder, subject: SubjectRecord, path: Path, *, findings: bool = True, shift: float = 0
) -> None:
    """Write map, findings and record of a scan; the scores are noise with two bright places, or noise alone.

    `shift` is added to all scores.
    """
    scan = read_volume(path)
    brain = scan.voxels > 0.25 * scan.voxels.max()
    scores = np.random.default_rng(1).normal(size=scan.voxels.shape).astype(np.float32).clip(-3, 3)
    inside = np.argwhere(brain)
    if findings:
        for share in (0.3, 0.7):
            x, y, z = inside[int(share * len(inside))]
            scores[x : x + 3, y : y + 2, z : z + 2] = 6 + share
    scores += shift
    scores[~brain] = 0
    map, covered = scan.with_voxels(scores), scan.with_voxels(brain)
    context = MapContext(Config(), "a model", THRESHOLD, "set on 20 healthy controls")
    write_map(out.native_map(subject), map, context)
    write_map(out.native_coverage(subject), covered, context)
    write_map(out.template_map(subject), map, context)
    write_map(out.template_coverage(subject), covered, context)
    write_volume(out.native_brain_mask(subject), covered)
    found, labels = label_findings(map, THRESHOLD, covered, largest_healthy_mm3=(10.0, 20.0))
    place = Place("left", "grey matter", "precuneus", "parietal lobe")
    rows = [cluster_row(subject.key, cluster, cluster.peak_mm, place, cluster.peak_mm) for cluster in found]
    write_clusters(out.cluster_labels(subject, "native"), labels, found, rows, context)
    write_table(out.subject_clusters(subject), rows, columns=COLUMNS)
    StageRecord("map", {}, {}, about={"t1w": file_fingerprint(path)}).write(out.map_record(subject))


def read_all(folder: Path) -> dict[str, Dataset]:
    """Return all DICOM objects of a folder by the names of their files."""
    return {path.stem: dcmread(path) for path in sorted(folder.iterdir())}
