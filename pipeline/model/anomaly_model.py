"""A fitted model in memory: loaded once, it maps any number of scans."""

import math
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.single_scan import single_scan
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.errors import UserError, plain_errors, private
from ...data_manifests.images.volume import Volume, read_grid, read_mask, write_volume
from ...evaluation.scoring.operating_point import StoredPoint
from ...models.anomaly.ensemble import LEARNT, Ensemble, Prediction
from ...models.encoder.checkpoint import Checkpoint
from ...models.features.source import FeatureSource
from ...preprocessing.intensity.channels import Channels
from ...preprocessing.patches.voxel_mask import VoxelMask
from ...preprocessing.prepare_subject import prepare_subject
from ...preprocessing.prepared_images import PreparedImages
from ...preprocessing.registration.template_transform import TemplateTransform
from ..config.config import Config
from ..workflow.records import file_fingerprint
from ..workflow.stage_inputs import fit_identity
from .anomaly_map import AnomalyMap
from .prepared_scan import PreparedScan

if TYPE_CHECKING:
    from monai.data.meta_tensor import MetaTensor

BRAIN_MASK = "brain_mask.nii.gz"
UNADAPTED_POINT = f"{LEARNT}/unadapted_threshold.json"
"""Threshold of the model before it was adapted to labels, in the folder of the detectors."""


@dataclass(frozen=True, eq=False)
class AnomalyModel:
    """A fitted model of normal anatomy, returned by `fit` and `load_model`.

    Attributes
    ----------
    config : Config
        The settings it was fitted with; ``config.models.ensemble.scorers`` names its scorers.
    mask : VoxelMask
        The voxels of the template that it scores.
    source : FeatureSource
        Computes the features of a prepared brain at each voxel: standardised intensities, derived maps, latents.
    ensemble : Ensemble
        Calibrated scorers, and their combination to one z-score per voxel.
    operating_point : StoredPoint or None
        `threshold`, the settings it was set with, and the largest cluster of each control, for p-values.
    why_no_threshold : str
        Why `operating_point` is None.
    identity : str
        Of the fit; the JSON files of the maps name it.
    unadapted_point : StoredPoint or None
        `operating_point` of the model before it was adapted to labels; None if it was not, or had none.
    """

    config: Config
    mask: VoxelMask
    source: FeatureSource
    ensemble: Ensemble
    operating_point: StoredPoint | None = None
    why_no_threshold: str = "it was loaded without one"
    identity: str = ""
    unadapted_point: StoredPoint | None = None

    def __repr__(self) -> str:
        threshold = "None" if self.threshold is None else f"{self.threshold:.2f}"
        return (
            f"AnomalyModel(scorers={list(self.config.models.ensemble.scorers)}, "
            f"spacing_mm={self.config.preprocessing.spacing_mm:g}, voxels={self.mask.size}, threshold={threshold})"
        )

    @classmethod
    def load(cls, model: OutputFolder, config: Config, device: str) -> "AnomalyModel":
        """Load a model into memory, without its threshold (see `with_stored_threshold`).

        Parameters
        ----------
        model : OutputFolder
            Of the run that fitted it.
        config : Config
            The settings to apply it with: its own, with any evaluation settings.
        device : str
            A torch device.

        Raises
        ------
        UserError
            A part of the model is missing or damaged, or its parts do not belong together.
        """
        mask = read_voxel_mask(model)
        # The model's own channels, with its own intensity scale.
        source = feature_source(config, Channels.load(model.detectors), model, device)
        if any(checkpoint.origin.mask_hash != mask.mask_hash for checkpoint in source.checkpoints):
            raise UserError(
                f"{private(model.root, 'the model')}: encoder and detectors belong to different brain masks. Fit the "
                "model again."
            )
        ensemble = Ensemble.load(model.detectors, mask, source, config.models)
        return cls(config, mask, source, ensemble, identity=fit_identity(model))

    def with_stored_threshold(self, model: OutputFolder) -> "AnomalyModel":
        """Return the model with the threshold that is stored with it, if it applies to these settings.

        Raises
        ------
        UserError
            The stored threshold is damaged.
        """
        point, why = self.stored_threshold(model, self.config)
        before = StoredPoint.load(model.detectors / UNADAPTED_POINT)
        return replace(self, operating_point=point, why_no_threshold=why, unadapted_point=before)

    @property
    def without_labels(self) -> "AnomalyModel":
        """The model before it was adapted to labelled patients, with its own threshold; itself if it was not."""
        if self.ensemble.learnt is None:
            return self
        return replace(
            self, ensemble=self.ensemble.without_labels, operating_point=self.unadapted_point, unadapted_point=None
        )

    @staticmethod
    def stored_threshold(model: OutputFolder, config: Config) -> tuple[StoredPoint | None, str]:
        """Return the threshold stored with a model, or None and why it does not apply to these settings.

        Raises
        ------
        UserError
            The stored threshold is damaged.
        """
        point = StoredPoint.load(model.operating_point)
        if point is None:
            return None, "its cohort was not mapped yet"
        why = point.unfit_because(config.evaluation, fit_identity(model)) or ""
        if not why and not math.isfinite(point.threshold):
            why = "its controls did not give one"
        return (None, why) if why else (point, "")

    @property
    def threshold(self) -> float | None:
        """Threshold set on healthy scans, as a z-score; None if the model has none.

        In cross-validation the training controls (of a model that was adapted to another scanner, the healthy controls
        of that scanner) have on average `evaluation.false_clusters` false-positive clusters at it
        (``healthy_threshold`` in ``scores.json``).
        """
        return self.operating_point.threshold if self.operating_point is not None else None

    @property
    def adapted_on(self) -> int | None:
        """Number of healthy scans of another scanner that it was adapted to; None if it was not adapted."""
        return self.ensemble.scanner.controls if self.ensemble.scanner is not None else None

    @property
    def labelled_patients(self) -> int | None:
        """Number of labelled patients that it was adapted to; None if it was not."""
        return self.ensemble.learnt.fusion.patients if self.ensemble.learnt is not None else None

    def prepare(self, subject: SubjectRecord, out: OutputFolder) -> PreparedScan:
        """Prepare a subject into an output folder, as the training controls were.

        Raises
        ------
        SubjectError
            As `prepare_subject`.
        """
        quality = prepare_subject(subject, self.config.preprocessing, out)
        # The file of an image in memory is temporary.
        own = {name: path for name, path in subject.images.items() if not path.is_relative_to(out.root)}
        scans = {name: file_fingerprint(path) for name, path in own.items()}
        return replace(self.read_prepared(subject, out), warnings=tuple(quality.reasons), scans=scans)

    def read_prepared(self, subject: SubjectRecord, out: OutputFolder) -> PreparedScan:
        """Read a subject that was prepared into an output folder.

        Raises
        ------
        UserError
            A prepared file is missing or damaged.
        """
        channels, brain = self.read_channels(subject, out)
        transform = TemplateTransform.load(out.transform_folder(subject))
        return PreparedScan(subject, channels, brain, transform, read_grid(subject.images["t1w"]))

    def read_channels(self, subject: SubjectRecord, out: OutputFolder) -> tuple[np.ndarray, Volume]:
        """Read the channels (C, X, Y, Z) and the brain mask of a subject that was prepared into an output folder.

        Raises
        ------
        UserError
            A prepared file is missing or damaged.
        """
        prepared = PreparedImages.from_record(subject, out, self.config.preprocessing.modalities)
        return self.source.channels.read(prepared, self.mask.grid), prepared.read_brain_mask(self.mask.grid)

    def score(self, scan: PreparedScan, *, jobs: int | None = None) -> Prediction:
        """Score a prepared scan at each voxel of `mask` that it covers; `jobs`: threads, one per core by default."""
        inside = self.mask.transform(scan.brain.voxels)
        return self.ensemble.predict(scan.channels, inside, scan.subject, jobs=jobs)

    def map_of(self, scan: PreparedScan, prediction: Prediction) -> AnomalyMap:
        """Bring the scores of a prepared scan to its own grid."""
        # A score exists where the model has a detector and the subject has brain.
        coverage = scan.brain.with_voxels(self.mask.inverse_transform(prediction.inside))
        template_map = Volume(self.mask.inverse_transform(prediction.z), self.mask.grid)
        native_map, native_coverage = scan.transform.scores_to_native(template_map, coverage, scan.grid)
        ensemble_sd = None
        if prediction.ensemble_sd is not None:
            on_template = Volume(self.mask.inverse_transform(prediction.ensemble_sd), self.mask.grid)
            ensemble_sd, _ = scan.transform.scores_to_native(on_template, coverage, scan.grid)
        return AnomalyMap(
            key=scan.subject.key,
            z_map=native_map.with_voxels(native_map.voxels.astype(np.float32)),  # as it is stored
            coverage=native_coverage,
            template_z_map=template_map,
            template_coverage=coverage,
            ensemble_sd=ensemble_sd,
            threshold=self.threshold,
            warnings=(*scan.warnings, *self.ensemble.warnings(scan.subject)),
            _config=self.config,
            _operating_point=self.operating_point,
            _why_no_threshold=self.why_no_threshold,
            _transform=scan.transform,
            _template_brain=scan.brain,
            _model=self.identity,
            _adapted_on=self.adapted_on,
            _labelled_patients=self.labelled_patients,
            _scans=scan.scans,
            latent_distance=prediction.latent_distance,
        )

    def predict(
        self,
        scan: "str | Path | Volume | SubjectRecord | SpatialImage | MetaTensor",
        *,
        flair: "str | Path | Volume | SpatialImage | MetaTensor | None" = None,
        brain_mask: "str | Path | Volume | SpatialImage | MetaTensor | None" = None,
        subject_id: str | None = None,
        site: str | None = None,
        age: float | None = None,
        sex: str | None = None,
        jobs: int | None = None,
    ) -> AnomalyMap:
        """Map one scan: brain extraction, registration, scoring, and back to the scan's own grid.

        Parameters
        ----------
        scan : str, Path, Volume, nibabel image, MONAI MetaTensor (1, X, Y, Z) or SubjectRecord
            The T1w head scan, or a subject of a cohort with all its files.
        flair, brain_mask : str, Path, Volume, nibabel image or MONAI MetaTensor, optional
            The FLAIR, if the model uses it; a brain mask on the grid of the T1w.
        subject_id : str, optional
            Letters and digits, without ``sub-``; names the outputs. By default the id of a BIDS name
            (``sub-01_..._T1w.nii.gz``), otherwise ``scan`` and eight digits of the hash of the file.
        site, sex : str, optional
        age : float, optional
            Years. Like `site` and `sex`, used only if the model regresses it out.
        jobs : int, optional
            Threads for scoring; one per core by default.

        Returns
        -------
        AnomalyMap

        Raises
        ------
        UserError
            A file is missing or cannot be used, or the scan could not be prepared.

        Examples
        --------
        >>> result = model.predict("patient_T1w.nii.gz")                                  # doctest: +SKIP
        >>> float(result.z_map.voxels.max()), result.threshold                            # doctest: +SKIP
        (13.3, 3.74)
        """
        with plain_errors(), tempfile.TemporaryDirectory(prefix="voxout-") as folder:
            if isinstance(scan, SubjectRecord):
                subject = scan
            else:
                given = {"t1w": scan, "flair": flair, "brain_mask": brain_mask}
                files = {
                    name: _as_file(image, Path(folder) / f"{name}.nii.gz")
                    for name, image in given.items()
                    if image is not None
                }
                (subject,) = single_scan(
                    files["t1w"],
                    subject_id=subject_id,
                    flair=files.get("flair"),
                    brain_mask=files.get("brain_mask"),
                    site=site,
                    age=age,
                    sex=sex,
                )
            prepared = self.prepare(subject, OutputFolder(Path(folder)))
            return self.map_of(prepared, self.score(prepared, jobs=jobs))


def _as_file(image: "str | Path | Volume | SpatialImage | MetaTensor", path: Path) -> Path:
    """Return the path of an image; one in memory is written to `path` first."""
    if isinstance(image, (str, Path)):
        return Path(image)
    if isinstance(image, Volume):
        return write_volume(path, image)
    if isinstance(image, SpatialImage):
        nib.save(image, path)
        return path
    if "monai" in sys.modules:  # Otherwise it cannot be a MetaTensor, and the import would take seconds.
        from monai.data.meta_tensor import MetaTensor

        if isinstance(image, MetaTensor):
            return write_volume(path, Volume.from_metatensor(image))
    expected = "a path, a nibabel image, a MONAI MetaTensor or a voxout.Volume"
    if isinstance(image, np.ndarray):
        raise UserError(
            f"scan: found an array of shape {image.shape}, which has no affine, expected {expected}. Pass "
            "nibabel.Nifti1Image(array, affine)."
        )
    raise UserError(f"scan: found a {type(image).__name__}, expected {expected}.")


def read_voxel_mask(model: OutputFolder) -> VoxelMask:
    """Read the mask of the voxels that a model scores.

    Raises
    ------
    UserError
        The file is missing or damaged.
    """
    stored = read_mask(model.detectors / BRAIN_MASK)
    return VoxelMask(stored.grid, stored.voxels)


def feature_source(config: Config, channels: Channels, model: OutputFolder, device: str) -> FeatureSource:
    """Load the trained encoders of a run or a model, and join them with its channels."""
    ensemble = config.models.ensemble
    folders = [model.member(number) for number in range(ensemble.members)] if ensemble.needs_encoder else []
    return FeatureSource(channels, tuple(Checkpoint.load(folder, device=device) for folder in folders), device)


_loaded: list[tuple[tuple[object, ...], AnomalyModel]] = []


def model_of_process(root: Path, identity: str, config: Config, device: str) -> AnomalyModel:
    """Load a model once in a worker process, and keep it for the next subject.

    Parameters
    ----------
    root : Path
    identity : str
        Of its fit: a model that was fitted again is loaded again.
    config : Config
    device : str
    """
    key = (root, identity, config, device)
    if not _loaded or _loaded[0][0] != key:
        _loaded[:] = [(key, AnomalyModel.load(OutputFolder(root), config, device))]
    return _loaded[0][1]
