"""Paths of all outputs, named as BIDS derivatives. Output names are defined only in this module."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..terms import BIDS_SUFFIX, Modality
from .subject import SubjectRecord

TEMPLATE_SPACE = "MNI152NLin2009aSym"
PARTS = {
    "prepared": "prepared",
    "patches": "patches",
    "encoder": "encoder",
    "latents": "latents",
    "detectors": "detectors",
    "maps": "maps",
    "scores": "scores",
    "operating_point": "records/operating_point.json",
    "cohort_page": "report/index.html",
    "figures": "report/figures",
    "tables": "report/tables",
    "pages": "report/subjects",
    "cluster_maps": "maps",
    "certificate_heads": "certificate/heads",
    "certificate_page": "certificate/index.html",
    "certificate_numbers": "certificate/certificate.json",
    "certificate_tables": "certificate/tables",
    "certificate_figures": "certificate/figures",
    "certificate_maps": "certificate/maps",
    "adaptation": "adaptation",
}
"""Outputs that are built as a unit, with their paths in an output folder.

The clusters lie beside the maps, but are built with the pages, which know the threshold of the cohort.
"""


@dataclass(frozen=True)
class OutputFolder:
    """Output folder of a run, with one property or method for each output.

    Parameters
    ----------
    root : Path
    building : Path, optional
        Folder that contains `parts` while they are being built; see `built_in`.
    parts : frozenset of str
        Names from `PARTS`.
    """

    root: Path
    building: Path | None = None
    parts: frozenset[str] = frozenset()

    def built_in(self, folder: Path, parts: Iterable[str]) -> "OutputFolder":
        """Return the same output folder with some parts in another folder until they are complete."""
        return OutputFolder(self.root, folder, frozenset(parts))

    def part(self, name: str) -> Path:
        """Path of one of `PARTS`."""
        return (self.building if self.building and name in self.parts else self.root) / PARTS[name]

    # -- the run -------------------------------------------------------------------------------------------------
    @property
    def config(self) -> Path:
        """Resolved settings of the run, as YAML."""
        return self.root / "config.yaml"

    @property
    def log(self) -> Path:
        """Messages of all commands in this folder, one JSON object per line."""
        return self.root / "log.jsonl"

    @property
    def failures(self) -> Path:
        """Table of the subjects that failed, with stage and reason."""
        return self.root / "failures.csv"

    def record(self, stage: str) -> Path:
        """Path of the record of a stage: its settings, inputs, outputs and failures."""
        return self.root / "records" / f"{stage}.json"

    def attempts(self, stage: str) -> Path:
        """Folder with the attempts at the subjects of a stage, one file for each."""
        return self.root / "records" / "attempts" / stage

    @property
    def requeue_script(self) -> Path:
        """Script for SLURM that submits itself again until the run is done."""
        return self.root / "requeue.sbatch"

    @property
    def received(self) -> Path:
        """Folder of the scans that were converted from DICOM, and of where they come from."""
        return self.root / "dicom-in"

    @property
    def status(self) -> Path:
        """Table of the attempts at all subjects: state, time, memory, reason."""
        return self.root / "status.csv"

    # -- one subject, prepared -----------------------------------------------------------------------------------
    def subject_folder(self, subject: SubjectRecord) -> Path:
        """Folder of everything that is prepared of one session."""
        return self.part("prepared") / _session_folder(subject)

    def subject_files(self, subject: SubjectRecord) -> list[Path]:
        """Folders with all prepared files of one session, and none of other sessions."""
        return [self.subject_folder(subject) / name for name in ("anat", "transforms", "figures")]

    def _anat(self, subject: SubjectRecord, name: str) -> Path:
        return self.subject_folder(subject) / "anat" / f"{subject.key}_{name}"

    def prepared_image(self, subject: SubjectRecord, modality: Modality) -> Path:
        """Image on the template grid with intensities in [0, 1] inside the brain and 0 outside."""
        return self._anat(subject, f"space-{TEMPLATE_SPACE}_desc-preproc_{BIDS_SUFFIX[modality]}.nii.gz")

    def prepared_brain_mask(self, subject: SubjectRecord) -> Path:
        """Brain mask on the template grid."""
        return self._anat(subject, f"space-{TEMPLATE_SPACE}_desc-brain_mask.nii.gz")

    def prepared_lesion_mask(self, subject: SubjectRecord) -> Path:
        """Lesion mask on the template grid."""
        return self._anat(subject, f"space-{TEMPLATE_SPACE}_label-lesion_mask.nii.gz")

    def native_brain_mask(self, subject: SubjectRecord) -> Path:
        """Brain mask on the grid of the subject's T1w."""
        return self._anat(subject, "space-orig_desc-brain_mask.nii.gz")

    def native_lesion_mask(self, subject: SubjectRecord) -> Path:
        """Lesion mask on the grid of the subject's T1w, independent of the image that it was drawn on."""
        return self._anat(subject, "space-orig_label-lesion_mask.nii.gz")

    def alignment(self, subject: SubjectRecord, modality: Modality) -> Path:
        """Transform between another image and the T1w."""
        return self.transform_folder(subject) / f"{modality}.json"

    def transform_folder(self, subject: SubjectRecord) -> Path:
        """Folder of the transforms of one session."""
        return self.subject_folder(subject) / "transforms"

    def quality(self, subject: SubjectRecord) -> Path:
        """File with the quality metrics of the preparation."""
        return self._anat(subject, "desc-quality.json")

    def quality_picture(self, subject: SubjectRecord) -> Path:
        """Picture for visual quality control of the preparation."""
        return self.subject_folder(subject) / "figures" / f"{subject.key}_desc-quality.png"

    def subject_record(self, subject: SubjectRecord) -> Path:
        """Path of the record of one session's preparation."""
        return self.subject_folder(subject) / "record.json"

    # -- the cohort ----------------------------------------------------------------------------------------------
    @property
    def patches(self) -> Path:
        """Folder of the training controls' volumes, from which patches are cut."""
        return self.part("patches")

    @property
    def encoder(self) -> Path:
        """Folder of the trained patch encoder, or of all encoders of an ensemble."""
        return self.part("encoder")

    def member(self, number: int) -> Path:
        """Folder of one encoder of an ensemble; the first has the folder of a single encoder."""
        return self.encoder / f"member-{number + 1}" if number else self.encoder

    def tensorboard(self, member: int) -> Path:
        """Folder of the training curves of one encoder, for TensorBoard."""
        return self.member(member) / "tensorboard"

    @property
    def latents(self) -> Path:
        """Folder of the controls' latents at every voxel."""
        return self.part("latents")

    @property
    def detectors(self) -> Path:
        """Folder of the fitted scorers and their calibration."""
        return self.part("detectors")

    @property
    def fitted_config(self) -> Path:
        """Settings that the model was fitted with."""
        return self.detectors / "config.yaml"

    @property
    def trained_on(self) -> Path:
        """Hashes of the scans of the training controls, used to recognise subjects known to the model."""
        return self.detectors / "trained_on.json"

    # -- maps, scores, report ------------------------------------------------------------------------------------
    @property
    def maps(self) -> Path:
        """Folder of the maps of all subjects."""
        return self.part("maps")

    def map_folder(self, subject: SubjectRecord) -> Path:
        """Folder with the maps of one session."""
        return self.maps / _session_folder(subject) / "anat"

    def _map(self, subject: SubjectRecord, name: str) -> Path:
        return self.map_folder(subject) / f"{subject.key}_{name}"

    def template_map(self, subject: SubjectRecord) -> Path:
        """Anomaly score, higher = more anomalous, on the template grid."""
        return self._map(subject, f"space-{TEMPLATE_SPACE}_desc-anomaly_zmap.nii.gz")

    def native_map(self, subject: SubjectRecord) -> Path:
        """Anomaly score on the grid of the subject's T1w."""
        return self._map(subject, "space-orig_desc-anomaly_zmap.nii.gz")

    def spread_map(self, subject: SubjectRecord) -> Path:
        """Map of the standard deviation between the members of an ensemble, on the grid of the subject's T1w."""
        return self._map(subject, "space-orig_desc-spread_zmap.nii.gz")

    def p_maps(self, map: Path) -> tuple[Path, Path]:
        """Return the paths of the maps of -log10 p and -log10 q, in the folder of a z-map."""
        stem = map.name.removesuffix("zmap.nii.gz")
        return map.with_name(f"{stem}logpmap.nii.gz"), map.with_name(f"{stem}logqmap.nii.gz")

    def cluster_labels(self, subject: SubjectRecord, space: str) -> Path:
        """Numbered suprathreshold clusters, on the grid of the subject's T1w or, for "template", of the template."""
        folder = self.part("cluster_maps") / _session_folder(subject) / "anat"
        name = "orig" if space == "native" else TEMPLATE_SPACE
        return folder / f"{subject.key}_space-{name}_desc-clusters_dseg.nii.gz"

    def native_coverage(self, subject: SubjectRecord) -> Path:
        """Mask of the voxels of the native map that have a score."""
        return self._map(subject, "space-orig_desc-coverage_mask.nii.gz")

    def map_record(self, subject: SubjectRecord) -> Path:
        """Path of the record of one session's maps."""
        return self.map_folder(subject).parent / "record.json"

    def template_coverage(self, subject: SubjectRecord) -> Path:
        """Mask of the voxels of the template map that have a score."""
        return self._map(subject, f"space-{TEMPLATE_SPACE}_desc-coverage_mask.nii.gz")

    @property
    def scores(self) -> Path:
        """Folder of the scores of the cohort and of its subjects."""
        return self.part("scores")

    def subject_scores(self, key: str) -> Path:
        """File of the counts and curves from scoring one subject, without voxels."""
        return self.scores / "subjects" / f"{key}.npz"

    @property
    def rivals(self) -> Path:
        """Folder of `voxout rivals`: a folder for each method, tables and the page."""
        return self.root / "rivals"

    @property
    def operating_point(self) -> Path:
        """Threshold set on the null maps of the training controls; stored with the records of the model."""
        return self.part("operating_point")

    @property
    def report(self) -> Path:
        """HTML page of the cohort."""
        return self.part("cohort_page")

    @property
    def report_figures(self) -> Path:
        """Folder of the plots of the cohort page, as SVG and PNG."""
        return self.part("figures")

    @property
    def report_tables(self) -> Path:
        """Folder of the tables of the cohort page, as CSV."""
        return self.part("tables")

    @property
    def subject_pages(self) -> Path:
        """Folder of the pages of all subjects."""
        return self.part("pages")

    def subject_page(self, subject: SubjectRecord) -> Path:
        """HTML page of one session."""
        return self.subject_pages / f"{subject.key}.html"

    def subject_clusters(self, subject: SubjectRecord) -> Path:
        """Table of the suprathreshold clusters of the subject's map, one row per cluster."""
        return self.subject_pages / f"{subject.key}_clusters.csv"

    @property
    def clusters(self) -> Path:
        """Table of the clusters of all subjects."""
        return self.report_tables / "clusters.csv"

    def page_record(self, subject: SubjectRecord) -> Path:
        """Path of the record of one session's page."""
        return self.subject_pages / f"{subject.key}.json"

    # -- the certificate -----------------------------------------------------------------------------------------
    def certificate_head(self, subject: SubjectRecord) -> Path:
        """Lesions painted into one healthy head, and which of them were found."""
        return self.part("certificate_heads") / f"{subject.key}.json"

    def certificate_record(self, subject: SubjectRecord) -> Path:
        """Path of the record of the lesions painted into one head."""
        return self.part("certificate_heads") / f"{subject.key}.record.json"

    @property
    def certificate_page(self) -> Path:
        """HTML page of the detection limits."""
        return self.part("certificate_page")

    @property
    def certificate_numbers(self) -> Path:
        """Detection limits as JSON."""
        return self.part("certificate_numbers")

    @property
    def certificate_tables(self) -> Path:
        """Folder of the tables of the detection limits, as CSV."""
        return self.part("certificate_tables")

    @property
    def adaptation(self) -> Path:
        """Folder of what was gained by labels, in a model that was adapted to labelled patients."""
        return self.part("adaptation")

    @property
    def blind_spots(self) -> Path:
        """Map of the smallest lesion that is found at each place, on the template grid."""
        return self.part("certificate_maps") / f"space-{TEMPLATE_SPACE}_desc-smallestfound_map.nii.gz"


def beside(image: Path, suffix: str) -> Path:
    """Return the path of the file that describes an image: the same name with another suffix, such as ".json"."""
    return image.with_name(image.name.removesuffix(".nii.gz") + suffix)


def _session_folder(subject: SubjectRecord) -> Path:
    participant = Path(f"sub-{subject.subject_id}")
    return participant / f"ses-{subject.session_id}" if subject.session_id else participant
