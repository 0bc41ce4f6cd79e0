"""The stage fit: all scorers on the training controls, calibrated."""

from collections.abc import Sequence
from typing import Any

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord, count_participants
from ...data_manifests.errors import counted
from ...data_manifests.images.volume import Volume, write_volume
from ...models.anomaly.ensemble import Ensemble
from ...models.anomaly.fit import fit_ensemble
from ...models.settings import FEWEST_TO_LEARN_FROM
from ...preprocessing.intensity.channels import Channels
from ...preprocessing.patches.volume_store import VolumeStore
from ..config.config import Config, save_config
from ..model.anomaly_model import BRAIN_MASK, feature_source
from ..model.model_files import write_model_record
from ..model.whole_model import FORMAT, MODEL_FORMAT
from ..workflow.console import Progress
from ..workflow.records import file_fingerprint, write_json
from ..workflow.runner import Run, Stage, StageResult
from ..workflow.stage_inputs import (
    covariates_of,
    record_of,
    settings_of,
    split_of,
)


def _fit_inputs(run: Run) -> dict[str, Any]:
    models = run.config.models
    learned = ("models.learned",) if "learned" in models.ensemble.scorers else ()
    return {
        MODEL_FORMAT: FORMAT,
        "the patches": record_of(run, "extract").identity,
        "the encoder": record_of(run, "train").identity if models.ensemble.needs_encoder else None,
        **settings_of(run, "models.detector", "models.ensemble", *learned, "seed"),
        **{f"{name} {key}": value for key in split_of(run)[0] for name, value in covariates_of(run, key).items()},
    }


def _fit(run: Run) -> StageResult:
    train, _ = split_of(run)
    controls = [run.manifest[key] for key in train]
    with run.console.progress("fit", "step") as progress:
        ensemble = fit_model(run.config, run.out, controls, device=run.device, jobs=run.engine.jobs, progress=progress)
    save_config(run.out.fitted_config, run.config)
    write_json(run.out.trained_on, sorted(file_fingerprint(run.manifest[key].images["t1w"]) for key in train))
    write_model_record(run.out, encoders=run.config.models.ensemble.needs_encoder)
    scorers = [scorer.name for scorer in ensemble.scorers]
    warnings = [f"{c.key}: {text}" for c in controls for text in ensemble.warnings(c)]
    if "learned" in run.config.models.ensemble.scorers and "learned" not in scorers:
        participants = count_participants(train)
        warnings.append(
            f"the scorer `learned` is left out: {counted(participants, 'training control')}, expected at "
            f"least {FEWEST_TO_LEARN_FROM} to learn from"
        )
    return StageResult(warnings=tuple(warnings), summary=", ".join(scorers))


def fit_model(
    config: Config, out: OutputFolder, train: Sequence[SubjectRecord], *, device: str, jobs: int, progress: Progress
) -> Ensemble:
    """Fit and calibrate all scorers on the training controls, and save them."""
    store = VolumeStore.open(out.patches)
    source = feature_source(config, Channels.load(out.patches), out, device)
    keys = [subject.key for subject in train]
    ensemble = fit_ensemble(
        store,
        keys,
        source,
        config.models,
        out.latents,
        seed=config.seed,
        participants=train,
        jobs=jobs,
        progress=progress,
    )
    ensemble.save(out.detectors)
    # With the brain mask and the channels, a model can be applied without its training scans.
    source.channels.save(out.detectors)
    write_volume(out.detectors / BRAIN_MASK, Volume(store.grid.brain_mask, store.grid.grid))
    return ensemble


STAGE = Stage("fit", _fit_inputs, _fit, ("latents", "detectors"), needs=("extract", "train"))
