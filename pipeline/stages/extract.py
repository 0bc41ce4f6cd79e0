"""The stage extract: all prepared controls on one grid, as a memory map."""

from typing import Any

from ...data_manifests.errors import UserError, counted
from ...preprocessing.intensity.channels import Channels
from ...preprocessing.patches.volume_store import VolumeStore
from ..workflow.records import fingerprint
from ..workflow.runner import Run, Stage, StageResult
from ..workflow.stage_inputs import (
    prepared_of,
    settings_of,
    split_of,
)

CHANNEL_SETTINGS = ("preprocessing.intensity.method", "preprocessing.derived_maps")
"""Settings of the channels, which are computed from prepared scans: no setting of prepare."""


def _extract_inputs(run: Run) -> dict[str, Any]:
    train, held_out = split_of(run)
    prepared = prepared_of(run)
    return {
        "the training controls": fingerprint(train),
        "the held-out controls": fingerprint(held_out),
        **{f"prepared {key}": prepared[key] for key in [*train, *held_out]},
        **settings_of(run, *CHANNEL_SETTINGS),
    }


def _extract(run: Run) -> StageResult:
    from ...preprocessing.intensity.standardisation import IntensityScale
    from ...preprocessing.prepared_images import PreparedImages, covered
    from ...preprocessing.registration.template import load_template

    train, held_out = split_of(run)
    if not train:
        raise UserError("extract: found no prepared training control. Add healthy scans (group control) to the cohort.")
    settings = run.config.preprocessing
    mask = load_template(settings.spacing_mm).brain_mask
    images = [
        PreparedImages.from_record(run.manifest[key], run.out, settings.modalities) for key in [*train, *held_out]
    ]
    scale = IntensityScale.learn(settings.intensity.method, settings.modalities, images[: len(train)], mask.grid)
    channels = Channels(scale, settings.derived_maps)
    voxels = covered(images[: len(train)], mask)
    with run.console.progress("extract", "scan") as progress:
        store = VolumeStore.create(run.out.patches, images, mask.grid, voxels, channels, progress)
    summary = f"{counted(len(train), 'training control')}, {len(held_out)} held out, {store.grid.size:,} voxels"
    if left_out := int(mask.voxels.sum()) - store.grid.size:
        summary += f" ({left_out:,} left out: brain in fewer than half of the controls, or than four)"
    return StageResult(done=store.keys, summary=summary)


STAGE = Stage("extract", _extract_inputs, _extract, ("patches",), needs=("prepare",))
