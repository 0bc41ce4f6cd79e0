"""What a comparison reuses of a run: its prepared controls and subjects, its voxel mask, its settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import Manifest, SubjectRecord
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.grid import Grid
from ...data_manifests.images.volume import Volume, read_grid, read_mask
from ...models.rivals.presets import Preset
from ...models.rivals.scans import Controls, Scan
from ...preprocessing.intensity.channels import Channels
from ...preprocessing.patches.volume_store import VolumeStore
from ...preprocessing.prepared_images import PreparedImages
from ...preprocessing.registration.template_transform import TemplateTransform
from ..config.config import Config, GivenSettings, read_settings
from ..workflow.earlier_subjects import earlier_subjects
from ..workflow.records import StageRecord


@dataclass(frozen=True)
class SettingChanges:
    """Changes to the settings of a run, as on the command line.

    Attributes
    ----------
    file : Path or None
    values : sequence of str
        As ``"evaluation.space=template"``.
    seed : int or None
    """

    file: Path | None = None
    values: Sequence[str] = ()
    seed: int | None = None

    def applied(self, saved: GivenSettings) -> Config:
        """Return the changed settings.

        Raises
        ------
        UserError
            The scans were prepared or the model was fitted with other settings.
        """
        config = read_settings(self.file, saved=saved, overrides=self.values, seed=self.seed).config
        for section in ("preprocessing", "models"):
            if getattr(config, section) != getattr(saved.config, section):
                raise UserError(
                    f"rivals: settings of {section} differ from those of the run, expected changes of the evaluation "
                    "only. Leave them out, or name COHORT and OUT, to do the stages again."
                )
        return config


@dataclass(frozen=True, eq=False)
class RivalCohort:
    """Controls and subjects of a finished run.

    Attributes
    ----------
    out : OutputFolder
    config : Config
        Settings of the run.
    controls : Controls
        Its training controls; their folder is that of the comparison.
    subjects : mapping from key to SubjectRecord
        Its patients and held-out controls, as mapped.
    """

    out: OutputFolder
    config: Config
    controls: Controls
    subjects: dict[str, SubjectRecord]

    @classmethod
    def open(
        cls,
        out: OutputFolder,
        preset: Preset,
        *,
        device: str = "cpu",
        jobs: int | None = None,
        changes: SettingChanges | None = None,
    ) -> "RivalCohort":
        """Open the output folder of a run.

        Parameters
        ----------
        out : OutputFolder
        preset : Preset
        device : str
        jobs : int, optional
        changes : SettingChanges, optional
            To the settings of the run: those of the evaluation, and the seed.

        Raises
        ------
        UserError
            The run is not finished, there is no patient to map, or other settings are changed.
        """
        if not out.root.is_dir() or StageRecord.read(out.record("map")) is None or not out.patches.is_dir():
            raise UserError(
                f"{private(out.root, 'the output folder')}: holds no finished run, expected one with prepared scans, "
                "patches and maps. Run `voxout rivals COHORT OUT`, which runs all stages first, or `voxout run`."
            )
        config = (changes or SettingChanges()).applied(read_settings(out.config, saved_file=True))
        store, channels = VolumeStore.open(out.patches), Channels.load(out.patches)
        subjects = earlier_subjects(out, Manifest(()), {})
        if not any(subject.group == "patient" for subject in subjects.values()):
            raise UserError(
                f"{private(out.root, 'the output folder')}: holds no map of a patient, expected some. Run `voxout run` "
                "on a cohort with patients."
            )
        keys = tuple(key for key in store.keys if key not in subjects)
        controls = Controls(store, channels, keys, out.rivals, config.seed, preset, device, jobs)
        return cls(out, config, controls, subjects)

    def scan(self, key: str) -> Scan:
        """Read a prepared subject that is to be mapped.

        Raises
        ------
        UserError
            A prepared file is missing or damaged.
        """
        prepared = PreparedImages.from_record(self.subjects[key], self.out, self.controls.channels.modalities)
        grid, brain = self.controls.mask.grid, self.brain_mask(key)
        return self.controls.as_scan(
            key, self.controls.channels.read(prepared, grid), brain.voxels & self.controls.mask.brain_mask
        )

    @property
    def readers(self):
        """Functions that read the scan of each subject, by key."""
        return {key: partial(self.scan, key) for key in self.subjects}

    def brain_mask(self, key: str) -> Volume:
        """Brain mask of a subject on the template grid."""
        return read_mask(self.out.prepared_brain_mask(self.subjects[key]))

    def coverage(self, key: str) -> Volume:
        """Voxels of the template grid that are scored."""
        brain = self.brain_mask(key)
        return brain.with_voxels(brain.voxels & self.controls.mask.brain_mask)

    def native_grid(self, key: str) -> Grid:
        """Grid of the subject's T1w."""
        return read_grid(self.out.native_brain_mask(self.subjects[key]))

    def transform(self, key: str) -> TemplateTransform:
        """Transform between the subject's T1w and the template."""
        return TemplateTransform.load(self.out.transform_folder(self.subjects[key]))
