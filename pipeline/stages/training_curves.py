"""Training curves for the report."""

from ...data_manifests.cohort.output_paths import OutputFolder
from ...evaluation.report.report_inputs import TrainingCurve

_CURVES = (
    ("Reconstruction error", "training", "mse_train", "MSE"),
    ("Reconstruction error", "held-out", "mse_held_out", "MSE"),
    ("Guidance", "guidance loss", "guidance", "loss"),
    ("Contrast with edits", "contrast loss", "contrast", "loss"),
    ("Controls outside the boundary", "share", "outside_share", "share"),
    ("Kernel between controls", "mean off-diagonal", "kernel_mean", "k"),
    ("Latents", "effective rank", "effective_rank", "dimensions"),
)
"""Panel, name, quantity of the history, unit."""


def training_curves(model: OutputFolder, members: int) -> list[TrainingCurve]:
    """Return the curves of all encoders; curves of one quantity share a panel."""
    from ...models.encoder.checkpoint import Checkpoint

    each = [Checkpoint.load(model.member(member)).history for member in range(members)]
    return [
        TrainingCurve(
            panel,
            f"{name} (encoder {number})" if members > 1 else name,
            [row.step for row in history if getattr(row, quantity) is not None],
            [getattr(row, quantity) for row in history if getattr(row, quantity) is not None],
            unit,
            log_scale=unit == "MSE",
        )
        for panel, name, quantity, unit in _CURVES
        for number, history in enumerate(each, start=1)
    ]
