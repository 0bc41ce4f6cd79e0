"""Training of the encoder: first on patches at mixed voxels, then on co-located patches with the guidance loss.

Batch norm needs batches that represent the whole brain, guidance needs many subjects at one voxel. The auto-encoder is
therefore pre-trained on mixed patches. During guidance, the inner batch norms are frozen; the batch norm that scales
the latents stays active with fixed affine parameters, as it bounds the scale of the latents, which guidance would
otherwise increase without limit. Afterwards, its statistics are re-estimated on mixed patches.

The guided steps may have a further term, which teaches the latents to tell edited patches from healthy ones
(`contrast_term`).

A step is a pure function of the state and the step number: an interrupted run resumes and gives identical results.
Several processes divide the batch of each step among them (`processes`); the first one writes the files.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from monai.engines.trainer import Trainer
from torch.nn.functional import cosine_similarity
from torch.utils.tensorboard import SummaryWriter

from ...data_manifests.errors import UserError, private
from ...preprocessing.intensity.channels import Channels
from ...preprocessing.patches.volume_store import VolumeStore
from ..ocsvm.guidance_loss import guidance_loss
from ..settings import ModelSettings, resolve_gamma
from ..training_state import deterministic, load_optimiser, optimiser_tensors
from .checkpoint import Checkpoint, Origin, TrainingRow, build_autoencoder, trained_by
from .contrast_term import ContrastTerm
from .global_norm import share_norms
from .monitor import TrainingMonitor, require_no_collapse
from .network import PatchAutoEncoder, patch_shapes_of
from .processes import ALONE, Processes
from .samplers import MONITOR, NORMS, ColocatedPatches, MixedPatches, controls_at_voxels, volumes_on
from .schedule import Schedule, controls_for, guidance_nu, require_enough_controls, support_size, uses_contrast

MONITOR_EVERY = 50
"""Steps between rows of the history."""
_HASH_TEXTS = {"subjects_hash": "of other controls", "mask_hash": "of another brain mask"}
"""Texts for fields whose values are hashes."""
_NORM_BATCHES = 32
_MONITORED_PATCHES = 1024
_VOXELS_PER_STEP = 32
"""Voxels of a guided step."""

Progress = Callable[[int, int], None]


class Handler(Protocol):
    """Handler of MONAI or ignite."""

    def attach(self, engine: Any, /) -> Any:
        """Attach the handler to the events of an engine."""
        ...


def train_encoder(
    store: VolumeStore,
    settings: ModelSettings,
    out: Path,
    *,
    train: Sequence[str],
    held_out: Sequence[str],
    seed: int,
    channels: Channels | None = None,
    device: torch.device | str = "cpu",
    tensorboard: Path | None = None,
    progress: Progress | None = None,
    handlers: Sequence[Handler] = (),
    processes: Processes = ALONE,
) -> Checkpoint:
    """Train an encoder, or resume from the last checkpoint in `out`.

    Parameters
    ----------
    store : VolumeStore
    settings : ModelSettings
    out : Path
        Folder of the checkpoint.
    train, held_out : sequence of str
        Keys of controls; the held-out controls are used for monitoring only.
    seed : int
    channels : Channels, optional
        How the channels of the store, and possibly more, are computed; needed for the contrast term only, whose edits
        change them.
    device : str or torch.device
    tensorboard : Path, optional
        Folder for TensorBoard curves.
    progress : callable, optional
        Called with (steps done, total number of steps); each edited copy of a control for the contrast term counts as
        a step.
    handlers : sequence
        Handlers of MONAI or ignite, attached to the trainer. After a step, ``engine.state.batch`` is its number, from
        0, and ``engine.state.output`` is ``{"loss": float}``.
    processes : Processes
        Those that train this encoder together; each calls this function with the same arguments, but its own `device`.
        All give the result of one process, up to rounding. The first one alone writes files and calls `progress`.

    Returns
    -------
    Checkpoint
        The final checkpoint, which is also saved in `out`.

    Raises
    ------
    UserError
        There are too few controls (in total, or at half of the voxels), there is no network for the patch size, `out`
        holds a checkpoint of another run, the loss is not finite, or the latents have collapsed.
    """
    spacing_mm = float(store.grid.grid.spacing_mm[0])
    patch_shapes = patch_shapes_of(settings.encoder, spacing_mm)
    if not train:
        raise UserError("Training: found no training controls, expected several. Correct column split or group.")
    schedule = Schedule.from_settings(settings)
    require_enough_controls(len(train), settings)
    if processes.count > (most := min(settings.training.patches_per_step, _VOXELS_PER_STEP)):
        raise UserError(
            f"Training: found {processes.count} devices, expected at most {most}, so that each has a part of every "
            "batch. Use fewer."
        )
    subjects_hash = hashlib.sha256("\n".join([*train, "", *held_out]).encode()).hexdigest()[:16]
    origin = Origin(store.channels, patch_shapes, spacing_mm, store.grid.mask_hash, subjects_hash, seed)
    with deterministic():
        training = _Training.start(store, settings, schedule, origin, out, train, held_out, device, channels, processes)
        training.resume()
        if training.step < schedule.steps:
            training.run(tensorboard if processes.leads else None, progress if processes.leads else None, handlers)
            processes.wait()  # until the files are written
    return Checkpoint.load(out, device=device)


@dataclass(eq=False)
class _Training:
    """State of a training run and its steps.

    Attributes
    ----------
    settings : ModelSettings
    schedule : Schedule
    origin : Origin
    out : Path
        Folder of the checkpoint.
    mixed : MixedPatches
    colocated : ColocatedPatches
    monitor : TrainingMonitor
    model : PatchAutoEncoder
        On the device of the batches.
    optimiser : Adam
    contrast : ContrastTerm or None
        None if it is off.
    processes : Processes
    step : int
        Steps done.
    history : list of TrainingRow
    """

    settings: ModelSettings
    schedule: Schedule
    origin: Origin
    out: Path
    mixed: MixedPatches
    colocated: ColocatedPatches
    monitor: TrainingMonitor
    model: PatchAutoEncoder
    optimiser: torch.optim.Adam
    contrast: ContrastTerm | None = None
    processes: Processes = ALONE
    step: int = 0
    history: list[TrainingRow] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        store: VolumeStore,
        settings: ModelSettings,
        schedule: Schedule,
        origin: Origin,
        out: Path,
        train: Sequence[str],
        held_out: Sequence[str],
        device: torch.device | str,
        channels: Channels | None,
        processes: Processes,
    ) -> "_Training":
        """Return the state before the first step: initial weights, and the batches of the monitor."""
        volumes, rows, voxels = volumes_on(store, device), store.index(train), store.grid.locations
        patch_shapes, seed, training = origin.patch_shapes, origin.seed, settings.training
        mixed = MixedPatches(volumes, store.inside, rows, voxels, patch_shapes, training.patches_per_step, seed)
        counts = controls_at_voxels(store.inside, rows, voxels)
        n_controls = controls_for(counts, settings)
        shared = voxels[counts >= n_controls]
        size = _VOXELS_PER_STEP, n_controls
        colocated = ColocatedPatches(volumes, store.inside, rows, shared, patch_shapes, *size, seed)
        monitored = replace(mixed, stream=MONITOR, size=_MONITORED_PATCHES)
        monitor = TrainingMonitor(
            mixed=monitored[0],
            held_out=replace(monitored, rows=store.index(held_out))[1] if held_out else None,
            together=replace(colocated, stream=MONITOR)[2] if n_controls >= 3 else None,
            guidance=settings.guidance,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_autoencoder(settings, origin).to(device)
        share_norms(model, processes)
        mixed, colocated = replace(mixed, processes=processes), replace(colocated, processes=processes)
        contrast = None
        if uses_contrast(settings):
            contrast = ContrastTerm.start(
                store, channels, train, settings.contrast, patch_shapes, seed, device, processes
            )
        learnt = _named_parameters(model, contrast)
        optimiser = torch.optim.Adam(learnt.values(), lr=training.learning_rate)
        return cls(settings, schedule, origin, out, mixed, colocated, monitor, model, optimiser, contrast, processes)

    @property
    def device(self) -> torch.device:
        return self.mixed.volumes.device

    # -- loop ----------------------------------------------------------------------------------------------------
    def run(self, tensorboard: Path | None, progress: Progress | None, handlers: Sequence[Handler]) -> None:
        engine = Trainer(
            device=self.device,
            max_epochs=1,
            data_loader=range(self.step, self.schedule.steps),
            iteration_update=self.update,
            decollate=False,
            handlers=handlers,
        )
        engine.logger.setLevel(logging.CRITICAL)  # errors are reported once, where they are caught
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.after_step)
        writer = SummaryWriter(str(tensorboard), purge_step=self.step) if tensorboard else None
        if writer:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.draw_curves, writer)
        n_copies = len(self.contrast.pairs) if self.contrast else 0
        total = self.schedule.steps + n_copies
        if self.contrast:
            engine.add_event_handler(Events.ITERATION_STARTED, self.draw_edits, self.contrast, progress, total)
        if progress:
            engine.add_event_handler(
                Events.ITERATION_COMPLETED,
                lambda: progress(self.step + n_copies * self.schedule.is_guided(self.step - 1), total),
            )
        try:
            engine.run()
        finally:
            if writer:
                writer.close()

    def draw_edits(self, contrast: ContrastTerm, progress: Progress | None, total: int) -> None:
        """Draw the edits before the first guided step of this process."""
        if contrast.batches is None and self.schedule.is_guided(self.step):
            drawn = count(self.step + 1)
            contrast.draw(lambda: progress(next(drawn), total) if progress else None)

    def update(self, _engine: Engine, step: int) -> dict[str, float]:
        guided = self.schedule.is_guided(step)
        self.model.train()
        self.freeze_norms(guided)
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate(step)
        loss = self.guided_loss(step) if guided else self.reconstruction_loss(step)
        value = self.processes.total(loss.detach()).item()
        if not math.isfinite(value):
            lower = "guided_learning_rate, or models.guidance.weight" if guided else "learning_rate"
            lower += " or models.contrast.weight" if guided and self.contrast else ""
            raise UserError(
                f"Training: the loss is {value} at step {step}, expected a finite number. Lower "
                f"models.training.{lower}, delete {private(self.out, 'its folder')} and train again."
            )
        self.optimiser.zero_grad()
        loss.backward()
        self.processes.add_gradients(_named_parameters(self.model, self.contrast).values())
        self.optimiser.step()
        self.step = step + 1
        return {"loss": value}

    def after_step(self) -> None:
        phase_ends = self.schedule.ends_phase(self.step)
        if self.step == self.schedule.steps and self.schedule.guided_steps:
            self.reestimate_norm()
        if phase_ends or self.step % MONITOR_EVERY == 0:
            # The rounding of GPUs differs, and the weight of guidance has to be the same in all processes.
            self.history.append(TrainingRow(**self.processes.of_first(lambda: asdict(self.monitored()))))
            if self.schedule.is_guided(self.step - 1) or phase_ends:
                require_no_collapse(self.history[-1], self.settings.encoder.latent_size)
        if self.processes.leads and (phase_ends or self.step % self.settings.training.checkpoint_every == 0):
            self.save()

    def monitored(self) -> TrainingRow:
        guided = self.schedule.is_guided(self.step - 1)
        rate, phase = self.schedule.rate(self.step - 1), "guided" if guided else "pretraining"
        weight = self.guidance_weight if guided else 0.0
        row = self.monitor.row(self.model, step=self.step, phase=phase, learning_rate=rate, guidance_weight=weight)
        if guided and self.contrast:
            row = replace(row, contrast=self.contrast.monitored(self.model.encoder))
        return row

    # -- losses: this process's summands, from its part of the batch ---------------------------------------------
    def reconstruction_loss(self, step: int) -> torch.Tensor:
        return self.processes.share(self.mixed.size) * self.model(self.mixed[step])

    def guided_loss(self, step: int) -> torch.Tensor:
        """L = MSE + lambda * L_guidance + kappa * (1 - cos) + mu * L_contrast; see section 3 of the method."""
        patches = self.colocated[step]
        latents = self.model.encoder(patches)
        loss = self.model.error(latents, patches)
        guidance, kappa = self.settings.guidance, self.settings.training.siamese_weight
        if guidance.weight > 0:
            expander, compactor = self.schedule.routes(step)
            support = support_size(self.colocated.n_subjects)
            gamma = resolve_gamma(guidance.gamma, self.settings.encoder.latent_size)
            fitted, held_back = latents[:, :support], latents[:, support:]
            nu = guidance_nu(guidance.nu, self.colocated.n_subjects)
            per_voxel = guidance_loss(fitted, held_back, nu=nu, gamma=gamma, expander=expander, compactor=compactor)
            loss = loss + self.guidance_weight * per_voxel.mean().to(loss.dtype)
        if kappa > 0:
            # The controls of a voxel are in random order, so neighbours are random pairs.
            pairs = latents.shape[1] // 2 * 2
            loss = loss + kappa * (1 - cosine_similarity(latents[:, 0:pairs:2], latents[:, 1:pairs:2], dim=2)).mean()
        loss = self.processes.share(self.colocated.n_voxels) * loss
        if self.contrast:
            contrast = self.contrast.of_step(self.model.encoder, step)
            loss = loss + self.settings.contrast.weight * contrast.to(loss.dtype)
        return loss

    @property
    def guidance_weight(self) -> float:
        """lambda, halved for every row of the history whose reconstruction error exceeds the limit.

        It depends only on the history, which is stored in the checkpoint.
        """
        before = [row.mse for row in self.history if row.phase == "pretraining"]
        limit = self.settings.guidance.largest_mse_ratio * before[-1]
        too_poor = sum(row.phase == "guided" and row.mse > limit for row in self.history)
        return self.settings.guidance.weight * 0.5**too_poor

    # -- batch norm ----------------------------------------------------------------------------------------------
    def freeze_norms(self, guided: bool) -> None:
        latent_norm = self.model.encoder.latent_norm
        for parameter in latent_norm.parameters():
            parameter.requires_grad_(not guided)
        if guided:
            for norm in self.model.inner_norms():
                norm.eval()

    @torch.no_grad()
    def reestimate_norm(self) -> None:
        """Re-estimate the batch-norm statistics changed by co-located batches, as the mean over mixed batches."""
        norm = self.model.encoder.latent_norm
        self.model.eval()
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
        norm.train()
        batches = replace(self.mixed, stream=NORMS)
        for number in range(_NORM_BATCHES):
            self.model(batches[number])
        norm.momentum = 0.1

    def draw_curves(self, writer: SummaryWriter) -> None:
        if self.history and self.history[-1].step == self.step:
            for name, value in asdict(self.history[-1]).items():
                if isinstance(value, float):
                    writer.add_scalar(f"training/{name}", value, self.step)

    # -- checkpoint ----------------------------------------------------------------------------------------------
    def save(self) -> None:
        optimiser = optimiser_tensors(self.optimiser, [*_named_parameters(self.model, self.contrast)])
        history = tuple(self.history)
        contrast = self.contrast.loss.state_dict() if self.contrast else {}
        Checkpoint(self.model, optimiser, self.settings, self.origin, self.step, history, contrast).save(self.out)

    def resume(self) -> None:
        """Load the last checkpoint of the folder, if there is one.

        Raises
        ------
        UserError
            The checkpoint belongs to another run.
        """
        if not Checkpoint.exists(self.out):
            return
        found = Checkpoint.load(self.out, device=self.device)
        ours, theirs = _trained_by(self.settings, self.origin), _trained_by(found.settings, found.origin)
        different = [
            _HASH_TEXTS.get(name, f"{name} {theirs[name]} instead of {value}")
            for name, value in ours.items()
            if theirs.get(name, value) != value
        ]
        if different:
            raise UserError(
                f"{private(self.out, 'its folder')}: found the encoder of another run ({'; '.join(different)}), "
                "expected one of this run. Delete the folder, or choose another output folder."
            )
        self.model.load_state_dict(found.autoencoder.state_dict())
        if self.contrast:
            self.contrast.loss.load_state_dict(found.contrast)
        load_optimiser(self.optimiser, [*_named_parameters(self.model, self.contrast)], found.optimiser)
        self.step, self.history = found.step, list(found.history)


def _trained_by(settings: ModelSettings, origin: Origin) -> dict[str, object]:
    """All values that determine the result of training, by name."""
    sections = trained_by(settings)
    sections["training"].pop("checkpoint_every")
    flat = {f"models.{section}.{name}": value for section, fields in sections.items() for name, value in fields.items()}
    # Named in any case, since the other settings of a term that is off are not compared.
    return flat | {"models.contrast.weight": settings.contrast.weight} | vars(origin)


def _named_parameters(model: PatchAutoEncoder, contrast: ContrastTerm | None) -> dict[str, torch.nn.Parameter]:
    """All parameters that are learnt, by the name in a checkpoint."""
    of_contrast = contrast.loss.named_parameters(prefix="contrast") if contrast else ()
    return {**dict(model.named_parameters()), **dict(of_contrast)}
