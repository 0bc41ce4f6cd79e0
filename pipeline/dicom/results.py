"""Results of one subject in the order of the voxels of the series that its scan was converted from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import highdicom
import numpy as np

from ...data_manifests.cohort.output_paths import OutputFolder, beside
from ...data_manifests.cohort.subject import SubjectRecord, parts_of_key
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.grid import Grid
from ...data_manifests.images.volume import Volume, read_grid, read_labels, read_map, read_mask
from ...data_manifests.typed_json import load_json
from ...evaluation.figures.colour_scale import ColourScale
from ...evaluation.figures.slices import Head
from ...evaluation.report.cluster_table import read_clusters
from ...preprocessing.registration.template_transform import TemplateTransform
from ..stages.findings import finding
from ..workflow.records import StageRecord
from .convert import on_grid_of
from .geometry import Loaded, load_series
from .reading import silent
from .sources import Source, read_source
from .study import read_study

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's patient coordinates point to the left, the back and the head."""


@dataclass(frozen=True, eq=False)
class Results:
    """What is exported of one subject.

    Attributes
    ----------
    key : str
        BIDS name of the subject, which no picture shows anything else of.
    source : Loaded
        The original series.
    map : ndarray of float32, (slices, rows, columns)
        z-scores; 0 where there is none.
    labels : ndarray of int, (slices, rows, columns)
        Number of the finding, as in `rows`; 0 outside.
    covered, brain : ndarray of bool, (slices, rows, columns)
    rows : sequence of dict
        Of the table of the findings, highest peak first (see `cluster_row`).
    threshold : float
    origin : str
        How the threshold was set.
    headline : str
        The findings in a sentence, as the page of the subject says them.
    """

    key: str
    source: Loaded
    map: np.ndarray
    labels: np.ndarray
    covered: np.ndarray
    brain: np.ndarray
    rows: Sequence[dict[str, str]]
    threshold: float
    origin: str
    headline: str

    @property
    def volume(self) -> highdicom.Volume:
        """The scan."""
        return self.source.volume

    def head(self) -> Head:
        """Scan and map for drawing."""
        scale = ColourScale.at(self.threshold)
        arrays = (self.volume.array, self.map, self.brain, self.covered)
        scan, map, brain, covered = (self.in_space(array) for array in arrays)
        return Head.from_volumes(scan, map, scale, brain_mask=brain, covered=covered)

    def in_space(self, array: np.ndarray) -> Volume:
        """Return an array in the order of the series as a volume in RAS+ mm."""
        return Volume(array, Grid(array.shape, _TO_RAS @ self.volume.affine))


@silent()
def read_results(out: OutputFolder, name: str, scans: Path | None = None, study: Path | None = None) -> Results:
    """Read the results of a subject and its original series.

    Parameters
    ----------
    out : OutputFolder
        Of the run that mapped it.
    name : str
        Id of the subject, as ``sub-01`` or ``sub-01_ses-2``.
    scans : Path, optional
        Folder of `voxout dicom in`; by default that of `voxout apply --dicom` in `out`.
    study : Path, optional
        Folder of the study, if it was moved.

    Raises
    ------
    UserError
        No results with findings, no known source, or other images than those that were mapped.
    """
    subject_id, session = parts_of_key(name)
    subject = SubjectRecord(subject_id, "patient", {}, session_id=session)
    record = StageRecord.read(out.map_record(subject))
    table = out.subject_clusters(subject)
    if record is None or not out.native_map(subject).is_file() or not table.is_file():
        raise UserError(
            f"{private(out.root, 'the output folder')}: holds no map and page of {subject.key}, expected a subject "
            "that `voxout apply` has mapped and reported. Check the id."
        )
    source = _source(out, subject, scans, record)
    loaded = _images(source, Path(source.study) if study is None else study)
    space = "native" if out.cluster_labels(subject, "native").is_file() else "template"
    image = out.cluster_labels(subject, space)
    about = load_json(beside(image, ".json"))
    labels = read_labels(image)
    if space == "template":
        transform = TemplateTransform.load(out.transform_folder(subject))
        labels = transform.to_native(labels, read_grid(out.native_map(subject)), interpolation="nearest")
    volumes = [
        read_map(out.native_map(subject)),
        labels,
        read_mask(out.native_coverage(subject)),
        read_mask(out.native_brain_mask(subject)),
    ]
    try:
        score, number, covered, brain = (on_grid_of(volume, loaded.volume) for volume in volumes)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{subject.key}: the map and the images of the series have different grids, expected the same. Give the "
            "folder with the original images with --study."
        ) from error
    threshold, brain_scores = float(about["Threshold"]), score[covered.astype(bool)]
    highest = float(brain_scores.max(initial=-np.inf))
    headline = finding(out, subject, threshold, highest, float(about["SmallestClusterMm3"]))
    return Results(
        subject.key,
        loaded,
        score.astype(np.float32),
        number.astype(np.int32),
        covered.astype(bool),
        brain.astype(bool),
        read_clusters(table),
        threshold,
        str(about["ThresholdSetOn"]),
        headline[0].upper() + headline[1:],
    )


def _source(out: OutputFolder, subject: SubjectRecord, scans: Path | None, record: StageRecord) -> Source:
    folder = out.received if scans is None else scans
    source = read_source(folder, subject.key)
    if source is None:
        raise UserError(
            f"{subject.key}: its original series is not known, expected a scan converted by `voxout apply --dicom`, or "
            "by `voxout dicom in` into the folder named by --scans. Convert and map it again."
        )
    converted = next(content for name, content in source.files.items() if name.endswith("_T1w.nii.gz"))
    mapped = record.scans.get("t1w")
    if not mapped or not converted.startswith(mapped):  # a fingerprint is the start of the hash
        raise UserError(
            f"{subject.key}: its map was made from another scan than the converted one, expected the same. Map the "
            "converted scan."
        )
    return source


def _images(source: Source, study: Path) -> Loaded:
    if not study.is_dir():
        raise UserError(
            f"{private(study, 'the study')}: the folder of the original images is no longer there, expected them. Give "
            "their folder with --study."
        )
    found = [series for series in read_study(study).series if series.uid == source.t1w]
    if not found:
        raise UserError(
            f"{private(study, 'the study')}: does not hold the series that was mapped, expected its original images. "
            "Give their folder with --study."
        )
    return load_series(found[0])
