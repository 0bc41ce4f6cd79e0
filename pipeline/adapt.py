"""A fitted model adapted: to another scanner, or to a few labelled patients."""

import math
from collections.abc import Callable
from dataclasses import replace

from ..data_manifests.cohort.output_paths import OutputFolder
from ..data_manifests.errors import Failure, UserError
from ..models.anomaly.learn import LabelSettings
from .run import RunOptions, run_pipeline
from .stages.adapt import require_can_adapt
from .stages.labels import require_labels
from .stages.order import ADAPTED, adapting_stages, learning_stages
from .workflow.console import Console
from .workflow.runner import Run


def adapt_scanner(options: RunOptions, open_console: Callable[[], Console]) -> tuple[Run, tuple[Failure, ...]]:
    """Adapt a fitted model to another scanner.

    Parameters
    ----------
    options : RunOptions
        `manifest` holds healthy controls of that scanner only; `out` is the folder of the adapted model. `stages` are
        not used.
    open_console : callable
        As for `run_pipeline`.

    Returns
    -------
    As `run_pipeline`.

    Raises
    ------
    UserError
        Patients among the subjects, too few controls, or settings, folders or inputs that cannot be used.
    """
    assert options.model is not None
    require_can_adapt(options.manifest, OutputFolder(options.model), OutputFolder(options.out))
    return run_pipeline(replace(options, stages=ADAPTED), open_console, adapting_stages())


def adapt_to_labels(
    options: RunOptions, open_console: Callable[[], Console], *, head: bool = False, variance_weight: float = 0.0
) -> tuple[Run, tuple[Failure, ...]]:
    """Adapt a fitted model to labelled patients.

    Parameters
    ----------
    options : RunOptions
        `manifest` holds patients with lesion masks only; `out` is the folder of the adapted model. `stages` are not
        used.
    open_console : callable
        As for `run_pipeline`.
    head, variance_weight
        As in `LabelSettings`.

    Returns
    -------
    As `run_pipeline`.

    Raises
    ------
    UserError
        Patients or labels that cannot be learnt from, or settings, folders or inputs that cannot be used.
    """
    assert options.model is not None
    if not (math.isfinite(variance_weight) and variance_weight >= 0) or (variance_weight > 0 and not head):
        expected = "0 or more" if head else "none without a head, whose variance it weighs. Add --head"
        raise UserError(f"adapt: found the variance weight {variance_weight:g}, expected {expected}.")
    require_labels(options.manifest, OutputFolder(options.model), OutputFolder(options.out))
    stages = learning_stages(LabelSettings(head, variance_weight))
    return run_pipeline(replace(options, stages=ADAPTED), open_console, stages)
