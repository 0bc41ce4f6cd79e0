"""The detection limits of a fitted model, measured on its held-out controls."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..data_manifests.cohort.output_paths import OutputFolder
from ..data_manifests.cohort.subject import Manifest
from ..data_manifests.errors import Failure, UserError, private
from .config.config import read_settings
from .model.anomaly_model import AnomalyModel
from .model.painted_head import Trial
from .model.whole_model import require_whole_model
from .stages.certify import NAME, certify_stage, held_out_controls
from .workflow.console import Console
from .workflow.device import choose_devices
from .workflow.engine import Engine
from .workflow.origin import Origin
from .workflow.ownership import require_own_place
from .workflow.records import StageRecord
from .workflow.runner import Run, run_stages
from .workflow.scratch import at_work_in


@dataclass(frozen=True)
class CertifyOptions:
    """What is asked of the detection limits of a model.

    Attributes
    ----------
    out : Path
        Output folder of the run that fitted the model.
    lesions : int
        To paint into each head.
    seed : int or None
        Of the lesions; None: that of the run.
    device, jobs, command
        As in `RunOptions`.
    """

    out: Path
    lesions: int
    seed: int | None = None
    device: str = "auto"
    jobs: int | None = None
    command: str = ""


def certify(options: CertifyOptions, open_console: Callable[[], Console]) -> tuple[Run, tuple[Failure, ...]]:
    """Measure the detection limits of a fitted model on its held-out controls.

    Raises
    ------
    UserError
        No fitted model, no threshold, or no held-out control.
    """
    out = OutputFolder(options.out)
    fitted = require_whole_model(out).config
    require_own_place(options.out)
    config = read_settings(out.config, saved_file=True).config if out.config.is_file() else fitted
    config = fitted.model_copy(update={"evaluation": config.evaluation})
    point, why = AnomalyModel.stored_threshold(out, config)
    if point is None:
        raise UserError(
            f"{private(out.root, 'the output folder')}: its model has no threshold ({why}), expected one. Finish the "
            "run with `voxout run` first."
        )
    heads = held_out_controls(out)
    trial = Trial(options.lesions, config.seed if options.seed is None else options.seed, point.threshold)
    console = open_console()
    with at_work_in(options.out), Engine(options.jobs) as engine:
        run = Run(
            manifest=Manifest(tuple(heads)),
            config=config,
            out=out,
            model=out,
            chosen=None,
            engine=engine,
            device=choose_devices(options.device)[0],
            console=console,
            origin=Origin.of(options.command, config),
        )
        run_stages((NAME,), {NAME: certify_stage(trial)}, run)
    record = StageRecord.read(out.record(NAME))
    return run, record.failed if record is not None else ()
