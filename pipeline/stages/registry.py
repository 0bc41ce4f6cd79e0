"""The stages, from scans to report: inputs, work and outputs of each."""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ...data_manifests.errors import Failure, UserError
from ..config.config import save_config
from ..workflow.per_subject import work_by_subject
from ..workflow.records import StageRecord, file_fingerprint, fingerprint, write_json
from ..workflow.replacement import Replacement, remove_recorded
from ..workflow.runner import Run, Stage, StageResult
from ..workflow.stage_inputs import (
    checked,
    cohort_of,
    files_of,
    mapped_earlier,
    prepared_of,
    record_of,
    roles_of,
    settings_of,
    settings_of_map,
    split_controls_of,
    split_of,
)
from . import workers
from .model_files import read_trained_on, require_files_of_model, write_model_record
from .whole_model import FORMAT, MODEL_FORMAT

if TYPE_CHECKING:
    from ...models.encoder.checkpoint import TrainingRow

_MEMBERS = "models.ensemble.members"
_CHANNEL_SETTINGS = ("preprocessing.intensity.method", "preprocessing.derived_maps")


# -- check: every header and every array, before any long computation ------------------------------------------------
def _check_inputs(run: Run) -> dict[str, Any]:
    rows = {f"row and files of {s.key}": fingerprint([s.group, s.split, files_of(s)]) for s in run.manifest}
    return rows | settings_of(
        run,
        "preprocessing.modalities",
        "preprocessing.brain_extraction",
        "models.ensemble.covariates",
        "data_manifests.held_out_share",
        "seed",
    )


def _check(run: Run) -> StageResult:
    from ...data_manifests.cohort.check import check_manifest
    from ...preprocessing.subject_inputs import refusals

    settings = run.config.preprocessing
    # An applied model comes with its controls.
    limits = {"fewest_controls": 0} if run.applies_a_model else {}
    with run.console.progress("check", "scan") as progress:
        result = check_manifest(
            run.manifest,
            modalities=settings.modalities,
            judge=lambda subject, scans, brain: refusals(subject, settings, scans, brain),
            progress=progress,
            **limits,
        )
    sentences: dict[str, list[str]] = {}
    for problem in result.problems:
        sentences.setdefault(problem.subject_key, []).append(problem.sentence)
    unmet = _unmet_settings(run)
    if unmet or "" in sentences or not result.good:
        raise UserError([*unmet, *result.sentences])
    return StageResult(
        done=result.good,
        failed=tuple(Failure(key, "check", " ".join(messages)) for key, messages in sentences.items()),
        warnings=tuple(run.manifest.notes) + tuple(warning.sentence for warning in result.warnings),
        summary=f"{_groups(run)}; {len(result.good)} of {len(run.manifest)} subjects passed",
    )


def _groups(run: Run) -> str:
    """Return the number of controls and patients, as text."""
    text = _counted(len(run.manifest.controls), "control")
    if not run.applies_a_model:
        split = split_controls_of(run)
        text += f" ({len(split.train)} for training, {len(split.held_out)} held out)"
    return f"{text} and {_counted(len(run.manifest.patients), 'patient')}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _unmet_settings(run: Run) -> tuple[str, ...]:
    """Return the requirements of the settings that the manifest or the machine does not meet."""
    from ...models.confounds.covariates import Covariates
    from ...preprocessing.brain_extraction.availability import require_method

    def require_covariates() -> None:
        split = split_controls_of(run)
        Covariates.learn(run.config.models.ensemble.covariates, [run.manifest[key] for key in split.train])

    needs = [lambda: require_method(run.config.preprocessing.brain_extraction)]
    if not run.applies_a_model:
        needs.append(require_covariates)
    unmet: list[str] = []
    for need in needs:
        try:
            need()
        except UserError as error:
            unmet += error.problems
    return tuple(unmet)


def _too_few_controls(run: Run) -> list[str]:
    """Return warnings if there are too few controls for train or fit, which would stop hours later."""
    from ...models.anomaly.calibration import require_enough_participants
    from ...models.encoder.schedule import require_enough_controls

    if run.applies_a_model:
        return []
    good, messages = record_of(run, "check").done, []
    train = [key for key in split_controls_of(run).train if key in good]
    needs = {"fit": lambda: require_enough_participants(train)}
    if run.config.models.ensemble.needs_encoder:
        needs = {"train": lambda: require_enough_controls(len(train), run.config.models)} | needs
    for stage, need in needs.items():
        try:
            need()
        except UserError as error:
            messages.append(f"{stage} will stop: {error}")
    return messages


# -- prepare: head scan -> normalised brain on the template grid -----------------------------------------------------
def _prepare_inputs(run: Run) -> dict[str, Any]:
    scans = {f"scans of {s.key}": fingerprint(files_of(s)) for s in checked(run)}
    return scans | _settings_of_prepare(run)


def _prepare(run: Run) -> StageResult:
    inputs = {s.key: files_of(s) | _settings_of_prepare(run) for s in checked(run)}
    return work_by_subject(run, "prepare", workers.prepare, inputs, run.out.subject_record, run.config, run.out)


def _settings_of_prepare(run: Run) -> dict[str, Any]:
    settings = settings_of(run, "preprocessing", "seed")
    # The intensity scale and the derived maps need the cohort and come later; a prepared scan needs its subject only.
    return {name: value for name, value in settings.items() if name.removeprefix("settings.") not in _CHANNEL_SETTINGS}


# -- extract: all prepared controls on one grid, as a memory map -----------------------------------------------------
def _extract_inputs(run: Run) -> dict[str, Any]:
    train, held_out = split_of(run)
    prepared = prepared_of(run)
    return {
        "the training controls": fingerprint(train),
        "the held-out controls": fingerprint(held_out),
        **{f"prepared {key}": prepared[key] for key in [*train, *held_out]},
        **settings_of(run, *_CHANNEL_SETTINGS),
    }


def _extract(run: Run) -> StageResult:
    from ...preprocessing.intensity.channels import Channels
    from ...preprocessing.intensity.standardisation import IntensityScale
    from ...preprocessing.patches.volume_store import VolumeStore
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
    store = VolumeStore.create(run.out.patches, images, mask.grid, voxels, channels)
    summary = f"{len(train)} training controls, {len(held_out)} held out, {store.grid.size:,} voxels"
    if left_out := int(mask.voxels.sum()) - store.grid.size:
        summary += f" ({left_out:,} left out: brain in fewer than half of the controls, or than four)"
    return StageResult(done=store.keys, summary=summary)


# -- train: one or several patch encoders ----------------------------------------------------------------------------
def _train_inputs(run: Run) -> dict[str, Any]:
    sections = ("models.encoder", "models.guidance", "models.training", "seed", _MEMBERS)
    return {"the patches": record_of(run, "extract").identity} | settings_of(run, *sections)


def _needs_no_encoder(run: Run) -> str | None:
    return None if run.config.models.ensemble.needs_encoder else "skipped: no scorer uses the encoder"


def _train(run: Run) -> StageResult:
    from ...models.encoder.training import train_encoder
    from ...preprocessing.intensity.channels import Channels
    from ...preprocessing.patches.volume_store import VolumeStore

    train, held_out = split_of(run)
    channels = Channels.load(run.out.patches).chosen(run.config.models.encoder.channels)
    store, members, steps = VolumeStore.open(run.out.patches).only(channels), run.config.models.ensemble.members, []
    with run.console.progress("train", "step") as progress:
        for member in range(members):
            checkpoint = train_encoder(
                store,
                run.config.models,
                run.out.member(member),
                train=train,
                held_out=held_out,
                seed=run.config.seed + member,
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
    same = _same_but_for_members(record.inputs, _train_inputs(run))
    if record.outputs and same and record.is_complete(run.out.root) and not going_on:
        shutil.copytree(run.out.encoder, built.encoder, dirs_exist_ok=True)
    wanted = {built.member(number) for number in range(run.config.models.ensemble.members)}
    files.discard(*(folder for folder in built.encoder.glob("member-*") if folder not in wanted))


# -- fit: the scorers and their calibration, on the training controls ------------------------------------------------
def _fit_inputs(run: Run) -> dict[str, Any]:
    return {
        MODEL_FORMAT: FORMAT,
        "the patches": record_of(run, "extract").identity,
        "the encoder": record_of(run, "train").identity if run.config.models.ensemble.needs_encoder else None,
        **settings_of(run, "models.detector", "models.ensemble", "seed"),
        **{f"{name} {key}": value for key in split_of(run)[0] for name, value in _covariates(run, key).items()},
    }


def _covariates(run: Run, key: str) -> dict[str, Any]:
    return {name: getattr(run.manifest[key], name) for name in run.config.models.ensemble.covariates}


def _fit(run: Run) -> StageResult:
    from .detection import fit_model

    train, _ = split_of(run)
    controls = [run.manifest[key] for key in train]
    with run.console.progress("fit", "step") as progress:
        ensemble = fit_model(run.config, run.out, controls, device=run.device, jobs=run.engine.jobs, progress=progress)
    save_config(run.out.fitted_config, run.config)
    write_json(run.out.trained_on, sorted(file_fingerprint(run.manifest[key].images["t1w"]) for key in train))
    write_model_record(run.out, encoders=run.config.models.ensemble.needs_encoder)
    return StageResult(
        warnings=tuple(f"{c.key}: {text}" for c in controls for text in ensemble.confounds.covariates.warnings(c)),
        summary=f"{', '.join(r.name for r in ensemble.scorers)}",
    )


# -- map: anomaly maps of patients and held-out controls -------------------------------------------------------------
def _map_inputs(run: Run) -> dict[str, Any]:
    named = {f"{name} {key}": value for key, own in _mapped(run).items() for name, value in own.items()}
    named |= {f"mapped before {key}": subject.group for key, subject in mapped_earlier(run).items()}
    return named | settings_of_map(run)


def _map(run: Run) -> StageResult:
    mapped = {key: own | settings_of_map(run) for key, own in _mapped(run).items()}
    if not mapped:
        raise UserError("map: found no patients and no held-out controls. Add patients to the manifest.")
    _remove_maps_of_failed(run, mapped)
    known = _known_to_the_model(run)
    require_files_of_model(run.model)
    work = work_by_subject(
        run, "map", workers.write_maps, mapped, run.out.map_record, run.config, run.out, run.model, run.device
    )
    left_out = tuple(f"{key}: left out, since the model was trained on this scan" for key in sorted(known))
    earlier = tuple(mapped_earlier(run))
    summary = work.summary + (f", and {len(earlier)} from earlier calls" if earlier else "")
    return replace(work, warnings=work.warnings + left_out, done=work.done + earlier, summary=summary)


def _remove_maps_of_failed(run: Run, mapped: Collection[str]) -> None:
    """Delete maps of an earlier scan if the new scan could not be prepared."""
    for subject in run.manifest:
        for path in (run.out.map_record(subject), run.out.page_record(subject)):
            record = StageRecord.read(path) if subject.key not in mapped else None
            if record is not None:
                remove_recorded(run.out, record)
                path.unlink()


def _mapped(run: Run) -> dict[str, dict[str, Any]]:
    prepared = prepared_of(run)
    keys = {subject.key for subject in run.manifest.patients}
    controls = {subject.key for subject in run.manifest.controls}
    keys |= controls - _known_to_the_model(run) if run.applies_a_model else set(split_of(run)[1])
    mapped = [s.key for s in run.manifest if s.key in keys and s.key in prepared]
    return {key: {"prepared": prepared[key]} | _covariates(run, key) for key in mapped}


def _known_to_the_model(run: Run) -> set[str]:
    """Return the keys of the controls whose scan an applied model was trained on."""
    if not run.applies_a_model:
        return set()
    trained_on = read_trained_on(run.model)
    return {s.key for s in run.manifest.controls if file_fingerprint(s.images["t1w"]) in trained_on}


# -- score and report ------------------------------------------------------------------------------------------------
def _score_inputs(run: Run) -> dict[str, Any]:
    mapped = record_of(run, "map").done
    identities = {}
    for subject in (s for s in cohort_of(run) if s.key in mapped):
        record = StageRecord.read(run.out.map_record(subject))
        about = [subject.group, subject.site, subject.age, subject.sex, files_of(subject), record and record.identity]
        identities[f"map and truth of {subject.key}"] = fingerprint(about)
    if run.applies_a_model:
        identities["the model's threshold"] = file_fingerprint(run.model.operating_point)
    return identities | settings_of(run, "evaluation", "seed")


def _score(run: Run) -> StageResult:
    from .assessment import score_maps

    with run.console.progress("score", "subject") as progress:
        return score_maps(run, record_of(run, "map").done, progress)


def _report_inputs(run: Run) -> dict[str, Any]:
    from ...evaluation.scoring.reference_results import scores_file

    # Results of the early stages, not their times: retrying a broken scan does not change the page.
    early = {name: record_of(run, name) for name in ("check", "prepare")}
    inputs = {f"stage {n}": fingerprint([r.done, [asdict(f) for f in r.failed], r.warnings]) for n, r in early.items()}
    inputs |= {
        f"reference run {name or path.name}": file_fingerprint(scores_file(path)) for name, path in run.reference_runs
    }
    return inputs | {f"stage {name}": record_of(run, name).identity for name in ("map", "score")}


def _report(run: Run) -> StageResult:
    from .report_pages import write_pages

    return write_pages(run, roles_of(run), _page_inputs(run))


def _page_inputs(run: Run) -> dict[str, dict[str, Any]]:
    score, roles = record_of(run, "score"), roles_of(run)
    subjects = cohort_of(run)
    maps = {key: StageRecord.read(run.out.map_record(subjects[key])) for key in score.done}
    return {
        key: {"the map": record and record.identity, "the scores": score.identity, "the role": roles[key]}
        for key, record in maps.items()
    }


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("check", _check_inputs, _check, preflight=_too_few_controls),
        Stage("prepare", _prepare_inputs, _prepare, needs=("check",), retry_failed=True),
        Stage("extract", _extract_inputs, _extract, ("patches",), needs=("prepare",)),
        Stage(
            "train",
            _train_inputs,
            _train,
            ("encoder",),
            goes_on=_same_but_for_members,
            begins_with=_keep_members,
            needs=("extract",),
            skip_reason=_needs_no_encoder,
        ),
        Stage("fit", _fit_inputs, _fit, ("latents", "detectors"), needs=("extract", "train")),
        Stage("map", _map_inputs, _map, needs=("prepare", "fit"), retry_failed=True),
        Stage("score", _score_inputs, _score, ("scores", "operating_point"), needs=("map",)),
        Stage(
            "report",
            _report_inputs,
            _report,
            ("cohort_page", "figures", "tables"),
            needs=("map", "score"),
            retry_failed=True,
        ),
    )
}

APPLIED = ("check", "prepare", "map", "score", "report")
"""Stages that apply a fitted model to new subjects."""
