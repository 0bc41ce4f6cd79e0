"""The stage train: the patch encoder, or several."""

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...preprocessing.intensity.channels import Channels
from ...preprocessing.patches.volume_store import VolumeStore
from ..workflow.replacement import Replacement
from ..workflow.runner import Run, Stage, StageResult
from ..workflow.stage_inputs import (
    record_of,
    settings_of,
    split_of,
)

if TYPE_CHECKING:
    from ...models.encoder.checkpoint import TrainingRow


_MEMBERS = "models.ensemble.members"


def _train_inputs(run: Run) -> dict[str, Any]:
    sections = ["models.encoder", "models.guidance", "models.training", "seed", _MEMBERS]
    if run.config.models.contrast.weight > 0:
        sections.append("models.contrast")
    return {"the patches": record_of(run, "extract").identity} | settings_of(run, *sections)


def _needs_no_encoder(run: Run) -> str | None:
    return None if run.config.models.ensemble.needs_encoder else "skipped: no scorer uses the encoder"


def _train(run: Run) -> StageResult:
    from ...models.encoder.training import train_encoder

    train, held_out = split_of(run)
    channels = Channels.load(run.out.patches)
    store = VolumeStore.open(run.out.patches).only(channels.chosen(run.config.models.encoder.channels))
    members, steps = run.config.models.ensemble.members, []
    with run.console.progress("train", "step") as progress:
        for member in range(members):
            checkpoint = train_encoder(
                store,
                run.config.models,
                run.out.member(member),
                train=train,
                held_out=held_out,
                seed=run.config.seed + member,
                channels=channels,
                device=run.device,
                tensorboard=run.out.tensorboard(member),
                progress=lambda done, total, before=member: progress(before * total + done, members * total),
            )
            steps.append(
                f"{checkpoint.step} steps{_lowered_guidance(run.config.models.guidance.weight, checkpoint.history[-1])}"
            )
    return StageResult(summary=", ".join(steps))


def _lowered_guidance(asked: float, last: "TrainingRow") -> str:
    if last.phase != "guided" or last.guidance_weight == asked:
        return ""
    return f" (lambda lowered from {asked:g} to {last.guidance_weight:.2g}, since the reconstruction error rose)"


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
