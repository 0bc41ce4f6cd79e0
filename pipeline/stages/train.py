"""The stage train: the patch encoder, or several."""

import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..workflow.replacement import Replacement
from ..workflow.runner import Run, Stage, StageResult
from ..workflow.stage_inputs import (
    record_of,
    settings_of,
    split_of,
)
from .encoder_task import EncoderTask

if TYPE_CHECKING:
    from ...models.encoder.checkpoint import Checkpoint


_MEMBERS = "models.ensemble.members"


def _train_inputs(run: Run) -> dict[str, Any]:
    sections = ["models.encoder", "models.guidance", "models.training", "seed", _MEMBERS]
    if run.config.models.contrast.weight > 0:
        sections.append("models.contrast")
    return {"the patches": record_of(run, "extract").identity} | settings_of(run, *sections)


def _needs_no_encoder(run: Run) -> str | None:
    return None if run.config.models.ensemble.needs_encoder else "skipped: no scorer uses the encoder"


def _train(run: Run) -> StageResult:
    train, held_out = split_of(run)
    members, steps = run.config.models.ensemble.members, []
    with run.console.progress("train", "step") as progress:
        for member in range(members):
            task = EncoderTask(
                patches=run.out.patches,
                settings=run.config.models,
                out=run.out.member(member),
                train=tuple(train),
                held_out=tuple(held_out),
                seed=run.config.seed + member,
                tensorboard=run.out.tensorboard(member),
            )
            checkpoint = _trained(
                run, task, lambda done, total, before=member: progress(before * total + done, members * total)
            )
            steps.append(f"{checkpoint.step} steps{_changed_guidance(checkpoint, len(train))}")
    return StageResult(summary=", ".join(steps))


def _trained(run: Run, task: EncoderTask, progress: Callable[[int, int], None]) -> "Checkpoint":
    if len(run.training_devices) <= 1:
        return task.run(run.device, progress)
    from ...models.encoder.checkpoint import Checkpoint
    from .training_group import train_together

    train_together(task, run.training_devices, progress, lambda text: run.console.warn(f"    warning: {text}"))
    return Checkpoint.load(task.out)


def _changed_guidance(checkpoint: "Checkpoint", n_train: int) -> str:
    """Say which settings of the guidance were not kept to, and why."""
    from ...models.encoder.schedule import guidance_nu

    guidance, last = checkpoint.settings.guidance, checkpoint.history[-1]
    if last.phase != "guided" or guidance.weight == 0:
        return ""
    changes = []
    if last.guidance_weight != guidance.weight:
        lowered = f"lambda lowered from {guidance.weight:g} to {last.guidance_weight:.2g}"
        changes.append(f"{lowered}, since the reconstruction error rose")
    nu = guidance_nu(guidance.nu, min(n_train, checkpoint.settings.training.controls_per_voxel))
    if nu > guidance.nu:
        changes.append(f"nu of the guidance raised from {guidance.nu:g} to {nu:.2g}, since the controls are few")
    return f" ({'; '.join(changes)})" if changes else ""


def _same_but_for_members(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the inputs differ at most in the number of members, so that trained encoders can be kept."""
    first, second = ({name: v for name, v in i.items() if name != f"settings.{_MEMBERS}"} for i in (before, now))
    return first == second


def _keep_members(run: Run, files: Replacement, going_on: bool) -> None:
    """Keep the finished encoders, up to the number that is set."""
    record, built = record_of(run, "train"), files.built
    same = _same_but_for_members(record.comparable_inputs, _train_inputs(run))
    if record.outputs and same and record.is_complete(run.out.root) and not going_on:
        shutil.copytree(run.out.encoder, built.encoder, dirs_exist_ok=True)
    wanted = {built.member(number) for number in range(run.config.models.ensemble.members)}
    files.discard(*(folder for folder in built.encoder.glob("member-*") if folder not in wanted))


STAGE = Stage(
    "train",
    _train_inputs,
    _train,
    ("encoder",),
    goes_on=_same_but_for_members,
    begins_with=_keep_members,
    needs=("extract",),
    skip_reason=_needs_no_encoder,
)
