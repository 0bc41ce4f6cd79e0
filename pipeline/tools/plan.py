"""Time, memory and disk space of a run, foretold from the number of heads, the settings and this machine.

Sizes of files follow from their data types and shapes. Times are measured times a head and a voxel (`plan_figures`),
times the slowness of this machine (`machine_speed`), shared among the jobs.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from ...data_manifests.cohort.splits import split_controls
from ...data_manifests.cohort.subject import Manifest
from ...data_manifests.errors import UserError
from ...data_manifests.images.volume import read_grid
from ...models.settings import (
    FEWEST_TO_LEARN_FROM,
    FOLDS,
    MOST_CONTROLS_OF_A_DETECTOR,
    PARTICIPANTS_PER_COMPONENT,
    PATCH_COMPONENTS,
)
from ...preprocessing.patches.voxel_mask import patch_size_vox
from ..config.config import Config
from ..workflow.console import duration
from . import plan_figures as measured


@dataclass(frozen=True)
class Heads:
    """Scans of a run.

    Attributes
    ----------
    train, held_out, patients : int
    voxel_mm3 : float
        Volume of a voxel of the scans.
    """

    train: int
    held_out: int
    patients: int
    voxel_mm3: float = 1.0

    @classmethod
    def to_map(cls, manifest: Manifest) -> "Heads":
        """Return the heads of a manifest to which a fitted model is applied."""
        return cls(0, len(manifest.controls), len(manifest.patients), _voxel_mm3(manifest))

    @property
    def total(self) -> int:
        """All scans."""
        return self.train + self.held_out + self.patients

    @property
    def mapped(self) -> int:
        """Scans that get a map and a page."""
        return self.held_out + self.patients

    @classmethod
    def counted(cls, controls: int, patients: int, held_out_share: float) -> "Heads":
        """Return the heads of a cohort of which only the numbers are known."""
        held_out = min(max(round(held_out_share * controls), held_out_share > 0), controls - 1)
        return cls(controls - held_out, held_out, patients)

    @classmethod
    def of_cohort(cls, manifest: Manifest, config: Config) -> "Heads":
        """Return the heads of a manifest; the voxels of its first readable scans count."""
        split = split_controls(manifest, held_out_share=config.data_manifests.held_out_share, seed=config.seed)
        return cls(len(split.train), len(split.held_out), len(manifest.patients), _voxel_mm3(manifest))


@dataclass(frozen=True)
class StagePlan:
    """What a stage is expected to take.

    Attributes
    ----------
    stage : str
    wall_s, memory_gb : float
        Memory of this machine.
    disk_bytes : int
        Of its files in the output folder.
    temporary_bytes : int
        Of files in the output folder that are gone when it ends.
    worker_gb : float
        Memory of each process that works on a subject; 0: the stage has none.
    """

    stage: str
    wall_s: float
    memory_gb: float
    disk_bytes: int = 0
    temporary_bytes: int = 0
    worker_gb: float = 0.0


def plan_run(
    heads: Heads, config: Config, *, jobs: int, cores: int, slowness: float = 1.0, on_nodes: int = 0
) -> list[StagePlan]:
    """Foretell the stages of a run from nothing.

    Parameters
    ----------
    heads : Heads
    config : Config
    jobs : int
    cores : int
        Hardware threads that may be used.
    slowness : float
        Time of this machine over that of the measurements.
    on_nodes : int
        Subjects that are worked on at once on the nodes of a cluster; 0: they are worked on here.

    Returns
    -------
    list of StagePlan
        In the order of the run; train is left out if no scorer uses an encoder.
    """
    work = _Work(heads, config)
    workers = max(1, min(on_nodes or min(jobs, cores), heads.total))
    threads = max(1, min(jobs, cores))
    serial = measured.FIT_SERIAL
    here = 0 if on_nodes else max(1, min(jobs, heads.total))  # more workers than cores take their memory, too
    base = measured.MAIN_GB + here * measured.WORKER_GB

    def by_head(seconds: float, number: int) -> float:
        """Wall time of `number` tasks of one thread each."""
        return seconds * math.ceil(number / workers) * slowness

    voxels, train = work.voxels, heads.train
    prepare_s = measured.PREPARE_S + measured.PREPARE_S_AT_1_MM / config.preprocessing.spacing_mm**3
    map_gb = measured.WORKER_GB + voxels * 300 / 1e9
    map_s = measured.MAP_S + voxels * 1e-6 * (measured.MAP_US + measured.MAP_LEARNED_US * ("learned" in work.scorers))
    page_s = measured.PAGE_S + voxels * 1e-6 * measured.PAGE_US
    native_voxels = measured.NATIVE_BRAIN_ML * 1000 / heads.voxel_mm3
    fit_gb = (voxels * measured.FIT_BYTES + work.samples_bytes) / 1e9
    stages = [
        StagePlan("check", measured.CHECK_S * heads.total * slowness, measured.MAIN_GB),
        StagePlan(
            "prepare",
            by_head(prepare_s, heads.total),
            measured.MAIN_GB + here * measured.PREPARE_WORKER_GB,
            heads.total * work.prepared_bytes,
            worker_gb=measured.PREPARE_WORKER_GB,
        ),
        StagePlan(
            "extract",
            measured.EXTRACT_US * 1e-6 * (train + heads.held_out) * voxels * slowness,
            base,
            work.patches_bytes,
        ),
    ]
    if config.models.ensemble.needs_encoder:
        stages.append(StagePlan("train", work.training_s / max(1, cores) * slowness, base + 0.3))
    return [
        *stages,
        StagePlan(
            "fit",
            work.fit_s * (serial + (1 - serial) / threads) * slowness,
            base + fit_gb,
            work.latents_bytes + work.detectors_bytes,
            work.temporary_bytes,
        ),
        StagePlan(
            "map",
            by_head(map_s, heads.mapped),
            measured.MAIN_GB + here * map_gb,
            work.maps_bytes,
            worker_gb=map_gb,
        ),
        StagePlan(
            "score",
            measured.SCORE_US * 1e-6 * native_voxels * heads.mapped * slowness,
            base,
            heads.mapped * measured.SCORES_BYTES,
        ),
        StagePlan(
            "report",
            measured.REPORT_S * slowness + by_head(page_s, heads.mapped),
            base,
            work.pages_bytes,
            worker_gb=measured.WORKER_GB,
        ),
    ]


def what_is_left(stages: Sequence[StagePlan], heads: Heads, left: Mapping[str, int | None]) -> list[StagePlan]:
    """Return the plan of the rest of a run that was started before.

    Parameters
    ----------
    stages : sequence of StagePlan
        Of the whole run.
    heads : Heads
    left : mapping from stage to int or None
        Stages that would run, with the number of subjects that need no work (see `left_to_do`).
    """
    rest = []
    for stage in stages:
        if stage.stage in left:
            total = heads.total if stage.stage == "prepare" else heads.mapped
            share = 1 - min((left[stage.stage] or 0) / max(total, 1), 1)
            rest.append(replace(stage, wall_s=share * stage.wall_s, disk_bytes=round(share * stage.disk_bytes)))
    return rest


class _Work:
    """Sizes and CPU seconds of the parts of a run."""

    def __init__(self, heads: Heads, config: Config):
        spacing, prepared, models = config.preprocessing.spacing_mm, config.preprocessing, config.models
        self.heads, self.models = heads, models
        self.voxels = round(measured.BRAIN_ML * 1000 / spacing**3)
        self.grid_voxels = round(measured.GRID_ML * 1000 / spacing**3)
        self.modalities = len(prepared.modalities)
        self.channels = self.modalities * (1 + len(prepared.derived_maps))
        self.spacing_mm, self.warp_mm = spacing, prepared.registration.working_spacing_mm
        enough = heads.train >= FEWEST_TO_LEARN_FROM or not heads.train  # without any, the model is fitted already
        self.scorers = [name for name in models.ensemble.scorers if name != "learned" or enough]
        self.members = models.ensemble.members
        # A control and its mirrored copy.
        self.fitted = heads.train * (2 if models.ensemble.mirrored_controls else 1)
        smallest_fold = heads.train - math.ceil(heads.train / FOLDS)
        self.confounds = len(models.ensemble.covariates) + min(
            models.ensemble.brain_components, smallest_fold // PARTICIPANTS_PER_COMPONENT
        )

    # -- files ---------------------------------------------------------------------------------------------------------
    @property
    def prepared_bytes(self) -> int:
        """Of one scan."""
        warp_voxels = measured.BRAIN_ML * 1000 / self.warp_mm**3
        native_mask = measured.MASK_BYTES * measured.NATIVE_BRAIN_ML * 1000 / self.heads.voxel_mm3
        images = self.voxels * (measured.FLOAT_MAP_BYTES * self.modalities + measured.MASK_BYTES)
        return round(images + measured.WARP_BYTES * warp_voxels + native_mask + measured.PICTURE_BYTES)

    @property
    def patches_bytes(self) -> int:
        """Volumes as float16, and a mask of one byte a voxel, on the whole grid."""
        controls = self.heads.train + self.heads.held_out
        return self.grid_voxels * (controls * (2 * self.channels + 1) + 1)

    def _size_and_copies(self, scorer: str) -> tuple[str, int, int]:
        """Return the name of the features of a scorer, their dimension, and the number of such scorers."""
        if scorer in ("ocsvm", "mahalanobis"):
            return "codes", self.models.encoder.latent_size, self.members
        if scorer in ("patches", "prototypes"):
            return "patches", PATCH_COMPONENTS, 1
        if scorer == "intensity":
            return "modalities", self.modalities, 1
        if scorer in ("derived_features", "learned"):
            return "all", self.channels, 1
        return scorer, 1, self.modalities

    @property
    def latents_bytes(self) -> int:
        """Features of the training controls and their copies, and null maps, as float16."""
        each = [self._size_and_copies(scorer) for scorer in self.scorers]
        features = sum({name: size * copies for name, size, copies in each}.values())
        nulls = sum(copies for _, _, copies in each)
        return 2 * self.voxels * (self.fitted * (features + nulls) + self.heads.train)

    @property
    def samples_bytes(self) -> int:
        """Inputs of the scorer `learned` at the voxels that it learns from, in memory; see `Context`."""
        if "learned" not in self.scorers:
            return 0
        inputs = 9 * (self.channels + 1) + 19 * self.modalities + 2 * self.channels + 3
        return 4 * inputs * measured.LEARNED_VOXELS * self.models.learned.copies * self.fitted

    @property
    def detectors_bytes(self) -> int:
        """Mean (float32) and covariance (float16) of the features, slopes of the confounds, scales, detectors."""
        per_voxel = 3 * 4.0
        for scorer in self.scorers:
            _, size, copies = self._size_and_copies(scorer)
            own = 4 * size + size * (size + 1) + 2 * self.confounds * size + 2 * 4
            if scorer == "prototypes":
                own = 2 * 4 + measured.PROTOTYPES_BYTES / self.block_voxels
            if scorer == "ocsvm":
                controls = min(self.heads.train, MOST_CONTROLS_OF_A_DETECTOR)
                vectors = min(self.models.detector.nu * controls + measured.SUPPORT_VECTORS_MORE, controls)
                own += (2 * size + 2) * vectors + 12
            per_voxel += own * copies
        components = 4 * min(measured.SAMPLED_VOXELS, self.voxels) * self.channels * (self.confounds + 2)
        return round(per_voxel * self.voxels + components)

    @property
    def block_voxels(self) -> float:
        """Voxels of a block with prototypes, less those missing at the surface of the brain."""
        edge = math.ceil(round(measured.BLOCK_MM / self.spacing_mm, 3))
        return edge**3 * (measured.FULL_BLOCKS if edge > 1 else 1.0)

    @property
    def temporary_bytes(self) -> int:
        """Moments of the features of one scorer for all training sets, and the null scores of all controls.

        Means and packed covariances are float32, slopes float16; scores float32, of the scorer and of what it becomes.
        """
        fitted_at_each_voxel = [name for name in self.scorers if name not in ("prototypes", "learned")]
        size = max((self._size_and_copies(scorer)[1] for scorer in fitted_at_each_voxel), default=0)
        moments = (FOLDS + 1) * (4 * size + 2 * size * (size + 1) + 2 * self.confounds * size)
        return round(self.voxels * (moments + 2 * 4 * self.fitted))

    @property
    def maps_bytes(self) -> int:
        """Maps on the template and on the grid of the scan, with their masks."""
        native = measured.NATIVE_BRAIN_ML * 1000 / self.heads.voxel_mm3
        each = (measured.FLOAT_MAP_BYTES + 2 * measured.MASK_BYTES) * (self.voxels + native)
        return round(self.heads.mapped * each)

    @property
    def pages_bytes(self) -> int:
        """A page of each mapped scan, and one of the cohort."""
        page = measured.PAGE_BYTES + measured.PAGE_BYTES_PER_VOXEL * self.voxels
        return round(self.heads.mapped * page) + 2 * measured.PAGE_BYTES

    # -- CPU seconds ---------------------------------------------------------------------------------------------------
    @property
    def patch_voxels(self) -> int:
        """Voxels of all patches that are encoded into one latent."""
        encoder, voxels = self.models.encoder, 0
        for size_mm in encoder.patch_size_mm:
            edge = max(3, patch_size_vox(size_mm, self.spacing_mm))
            voxels += sum(edge ** (3 if plane == "volume" else 2) for plane in encoder.planes)
        return voxels

    @property
    def training_s(self) -> float:
        """Of all encoders."""
        training, contrast = self.models.training, self.models.contrast
        step = measured.TRAIN_STEP_MS_PER_VOXEL * 1e-3 * self.patch_voxels * training.patches_per_step / 1024
        seconds = step * (training.pretraining_steps + training.guided_steps)
        if contrast.weight > 0:
            seconds += measured.CONTRAST_STEP_MS_PER_VOXEL * 1e-3 * self.patch_voxels * training.guided_steps
            seconds += measured.EDITED_COPY_US * 1e-6 * self.voxels * contrast.copies * self.heads.train
        return seconds * self.members

    @property
    def fit_s(self) -> float:
        """Of all scorers, with cross-validation."""
        per_voxel = 0.0
        for scorer in self.scorers:
            name, _, copies = self._size_and_copies(scorer)
            encoding = measured.ENCODE_US * self.patch_voxels if name == "codes" else 0.0
            own = measured.FIT_US.get(scorer, measured.FIT_US["derived map"])
            if scorer == "learned":
                own *= self.models.learned.copies
            per_voxel += (own + encoding) * copies
        return per_voxel * 1e-6 * self.voxels * self.fitted


def _voxel_mm3(manifest: Manifest) -> float:
    for record in manifest:
        try:
            spacing = read_grid(record.images["t1w"]).spacing_mm
        except UserError:
            continue
        return float(spacing[0] * spacing[1] * spacing[2])
    return 1.0


# -- text ------------------------------------------------------------------------------------------------------------
def table_lines(stages: Sequence[StagePlan]) -> list[str]:
    """Return the plan as a table for the terminal."""
    rows = [
        (s.stage, duration(s.wall_s), f"{s.memory_gb:.1f} GB", size_text(s.disk_bytes) if s.disk_bytes else "")
        for s in stages
    ]
    rows.append(("all", duration(total_s(stages)), f"{peak_gb(stages):.1f} GB", size_text(disk_bytes(stages))))
    rows.insert(0, ("stage", "time", "memory", "disk"))
    return [f"{stage:<8}  {time:>11}  {memory:>8}  {disk:>8}" for stage, time, memory, disk in rows]


def total_s(stages: Sequence[StagePlan]) -> float:
    """Wall time of all stages."""
    return sum(stage.wall_s for stage in stages)


def peak_gb(stages: Sequence[StagePlan]) -> float:
    """Memory of the stage that needs most."""
    return max(stage.memory_gb for stage in stages)


def disk_bytes(stages: Sequence[StagePlan]) -> int:
    """Size of the output folder at the end."""
    return sum(stage.disk_bytes for stage in stages)


def most_disk_bytes(stages: Sequence[StagePlan]) -> int:
    """Largest size of the output folder, with the temporary files of the stages."""
    return max(disk_bytes(stages[:number]) + stages[number - 1].temporary_bytes for number in range(1, len(stages) + 1))


def size_text(size: float) -> str:
    """Format a size in bytes."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def closing_line(stages: Sequence[StagePlan], where: str, what: str = "a run") -> str:
    """Return the plan in one line; `where`: as "2 jobs on this machine"; `what`: as "the rest of the run"."""
    return (
        f"{what} takes about {duration(total_s(stages))} with {where}, "
        f"{peak_gb(stages):.1f} GB of memory and {size_text(disk_bytes(stages))} of disk, without a GPU"
    )


def shortages(stages: Sequence[StagePlan], out: Path) -> list[str]:
    """Return warnings if this machine has too little memory, or the disk of the output folder too little space."""
    found = []
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free, needed = shutil.disk_usage(place).free, most_disk_bytes(stages)
    if needed > free:
        found.append(f"the disk has {size_text(free)} free, and the run needs about {size_text(needed)}")
    worst = max(stages, key=lambda stage: stage.memory_gb)
    machine_gb = psutil.virtual_memory().total / 1e9
    if worst.memory_gb > machine_gb:
        found.append(
            f"the machine has {machine_gb:.1f} GB of memory, and {worst.stage} needs about {worst.memory_gb:.1f} GB; "
            "use fewer --jobs"
        )
    return found
