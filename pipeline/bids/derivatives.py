"""Results of a run as a BIDS derivative dataset.

They are copies of files of the run, with its names, and a few files made from them. Each subject has a record of the
results that its files were made from, so that they are written again only when these have changed.
"""

import csv
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtr

from ...data_manifests.cohort.output_paths import TEMPLATE_SPACE, OutputFolder, beside
from ...data_manifests.cohort.subject import Manifest, SubjectRecord
from ...data_manifests.csv_file import write_csv
from ...data_manifests.images.volume import read_grid, read_labels, read_map, read_mask, write_labels, write_volume
from ...data_manifests.terms import BIDS_SUFFIX, MODALITIES
from ...data_manifests.typed_json import load_json
from ...preprocessing.registration.template_transform import TemplateTransform
from ..workflow.records import StageRecord, file_fingerprint, fingerprint, versions, write_json
from ..workflow.removal import remove_building_folder, remove_with_record
from ..workflow.replacement import Replacement

_FORMAT = 1
"""Changes when other files are made of the same results."""
_NATIVE = "space-orig"
_ANOMALY = (
    "1 - p: the share of healthy brains with a lower score at this voxel, not the probability of a lesion. One healthy "
    "voxel in a thousand exceeds 0.999, half of them exceed 0.5. 0 where there is no score; see desc-coverage_mask."
)


def write_derivatives(out: Path, run: OutputFolder, manifest: Manifest) -> None:
    """Bring the derivative dataset of a run up to date.

    Parameters
    ----------
    out : Path
        Folder of the dataset.
    run : OutputFolder
    manifest : Manifest
        Subjects whose files are written; those of others stay.
    """
    dataset = OutputFolder(out)
    for subject in manifest:
        records = {
            "prepared": StageRecord.read(run.subject_record(subject)),
            "maps": StageRecord.read(run.map_record(subject)),
            "page": StageRecord.read(run.page_record(subject)),
        }
        made = {name: record.identity for name, record in records.items() if record and not record.failed}
        if records["prepared"] is not None and records["prepared"].failed:
            remove_with_record(dataset, dataset.record(subject.key))  # of an earlier scan
        elif "prepared" in made:
            _replace(dataset, subject.key, made, lambda folder, s=subject: _write_subject(run, s, folder))
    pages = [run.report, *_files(run.report_figures, run.report_tables), run.scores / "scores.json"]
    pages = [path for path in (*pages, *sorted(run.scores.glob("*.csv"))) if path.is_file()]
    if run.report in pages:
        inputs = {str(path.relative_to(run.root)): file_fingerprint(path) for path in pages}
        _replace(dataset, "cohort", {"files": fingerprint(inputs)}, lambda folder: _copy(pages, run.root, folder))
    remove_building_folder(dataset)


def _replace(out: OutputFolder, name: str, inputs: Mapping[str, Any], write: Callable[[Path], None]) -> None:
    """Replace the files of a subject, or of the cohort, unless they are made of the same results."""
    inputs = {**inputs, "format": _FORMAT}
    path = out.record(name)
    record = StageRecord.read(path)
    if record is not None and record.inputs == inputs and record.is_complete(out.root):
        return
    files = Replacement(out, name, (), path)
    files.begin(inputs)
    write(files.folder)
    files.finish(StageRecord(name, inputs, {}, versions=versions()))


def _files(*folders: Path) -> Iterator[Path]:
    return (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file())


def _copy(paths: list[Path], root: Path, folder: Path) -> None:
    for path in paths:
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _write_subject(run: OutputFolder, subject: SubjectRecord, folder: Path) -> None:
    """Write all files of one subject below a folder."""
    place = folder / run.subject_folder(subject).relative_to(run.part("prepared"))
    _copy([run.quality_picture(subject)], run.subject_folder(subject), place)
    for modality in MODALITIES:
        image = run.prepared_image(subject, modality)
        if image.is_file():
            name = BIDS_SUFFIX[modality]
            description = f"{name} without skull and bias field, on the template grid, with intensities in [0, 1]."
            _copy_described(image, place, {"Description": description, "SkullStripped": True})
    for mask in (run.prepared_brain_mask(subject), run.native_brain_mask(subject)):
        _copy_described(mask, place, {"Description": "1 inside the brain, 0 elsewhere.", "Type": "Brain"})
    if run.native_map(subject).is_file():
        _copy(list(_files(run.map_folder(subject))), run.map_folder(subject).parent, place)
        for z, covered in (
            (run.native_map(subject), run.native_coverage(subject)),
            (run.template_map(subject), run.template_coverage(subject)),
        ):
            _write_probability(z, covered, place / "anat")
    pages = [run.subject_page(subject), run.subject_clusters(subject)]
    _copy([page for page in pages if page.is_file()], run.root, folder)
    _write_clusters_in_other_space(run, subject, place / "anat")


def _copy_described(image: Path, place: Path, about: Mapping[str, Any]) -> None:
    """Copy an image and write its JSON file."""
    _copy([image], image.parents[1], place)
    write_json(place / "anat" / beside(image, ".json").name, {**about, **_space(_NATIVE not in image.name)})


def _space(on_template: bool) -> dict[str, Any]:
    reference = f"{TEMPLATE_SPACE} (MNI152, RAS mm)" if on_template else "the grid of the subject's own T1w"
    return {"Space": TEMPLATE_SPACE if on_template else "orig", "SpatialReference": reference}


def _write_probability(z: Path, coverage: Path, folder: Path) -> None:
    """Write 1 - p of a z-map, which is 0 outside its coverage."""
    scores, covered = read_map(z), read_mask(coverage)
    values = np.where(covered.voxels, ndtr(scores.voxels.astype(np.float64)), 0).astype(np.float32)
    path = folder / z.name.replace("desc-anomaly_zmap", "label-anomaly_probseg")
    write_volume(path, scores.with_voxels(values))
    write_json(beside(path, ".json"), load_json(beside(z, ".json")) | {"Description": _ANOMALY, "Units": "1 - p"})


def _write_clusters_in_other_space(run: OutputFolder, subject: SubjectRecord, folder: Path) -> None:
    """Write the numbered clusters, which the run has in one space, and their table in the other space as well."""
    native, template = (run.cluster_labels(subject, space) for space in ("native", "template"))
    if native.is_file() == template.is_file():
        return
    transform = TemplateTransform.load(run.transform_folder(subject))
    there, other = (native, template) if native.is_file() else (template, native)
    if other == template:
        grid, peak = read_grid(run.template_map(subject)), "mni"
        labels = transform.to_template(read_labels(there), grid, interpolation="nearest")
    else:
        grid, peak = read_grid(run.native_map(subject)), "native"
        labels = transform.to_native(read_labels(there), grid, interpolation="nearest")
    path = folder / other.name
    write_labels(path, labels)
    write_json(beside(path, ".json"), load_json(beside(there, ".json")) | _space(other == template))
    with beside(there, ".tsv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file, delimiter="\t")
    column = {name: number for number, name in enumerate(header)}
    for row in rows:
        for axis in "xyz":
            row[column[f"{axis}_mm"]] = row[column[f"{axis}_{peak}_mm"]]
    write_csv(beside(path, ".tsv"), header, rows, separator="\t")
