"""Adaptation of a fitted model to a few labelled patients: how its scorers are combined, and its threshold.

As with `adapt`, the stages take the places of fit and map, and the output folder holds a model like that of a run. The
combination of the model itself is kept beside the learnt one. What is gained is measured on patients that were left
out.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import Manifest, SubjectRecord, count_participants, participant_of_key
from ...data_manifests.csv_file import write_csv
from ...data_manifests.errors import UserError, counted, private, some_of
from ...data_manifests.images.volume import Volume, read_mask
from ...data_manifests.user_paths import real
from ...evaluation.scoring.gain import FEWEST_TO_SHOW, Gain, gains
from ...evaluation.scoring.operating_point import StoredPoint
from ...evaluation.scoring.score_subject import score_map
from ...evaluation.scoring.subject_scores import SubjectScores
from ...models.anomaly.control_nulls import ControlNulls
from ...models.anomaly.ensemble import LEARNT, ScorerOutputs
from ...models.anomaly.fit import NULL
from ...models.anomaly.learn import FEWEST_PATIENTS, LabelledPatient, LabelSettings, Learner
from ...models.features.feature_store import LatentStore
from ...models.labels.fusion import Fusion
from ..config.config import save_config
from ..model.anomaly_model import UNADAPTED_POINT, AnomalyModel, read_voxel_mask
from ..model.model_files import CONTROLS, copy_model, number_of_controls, read_trained_on, write_model_record
from ..model.null_threshold import threshold_on
from ..model.whole_model import FORMAT, MODEL_FORMAT
from ..workflow.records import StageRecord, file_fingerprint, fingerprint, write_json
from ..workflow.runner import Run, Stage, StageResult
from ..workflow.stage_inputs import covariates_of, fit_identity, prepared_of, settings_of
from .adapt import copied_train_record, null_maps, threshold_in_words
from .score import prepared_lesions

MODEL = "the model without labels"
"""Name of its identity among the inputs of the stage fit."""
_OUTPUTS = "labelled"
"""Folder of what the scorers put out for the labelled patients, among the latents."""
_SETTINGS = ("evaluation.smallest_lesion_mm3", "evaluation.smallest_cluster_mm3", "evaluation.bootstrap_draws", "seed")


def require_labels(manifest: Manifest, model: OutputFolder, out: OutputFolder) -> None:
    """Refuse what cannot be learnt from, and an output folder that holds another model, before anything is done.

    Raises
    ------
    UserError
    """
    if controls := len(manifest.controls):
        raise UserError(
            f"adapt: found {counted(controls, 'healthy control')} among {counted(len(manifest), 'scan')}, expected "
            "patients with lesion masks only. Take the controls out; to adapt the model to the scanner of healthy "
            "controls, use `voxout adapt-scanner`."
        )
    if unlabelled := [subject.key for subject in manifest if subject.lesion_mask is None]:
        raise UserError(
            f"adapt: {len(unlabelled)} of {counted(len(manifest), 'patient')} have no lesion mask "
            f"({some_of(unlabelled)}), expected one of each. Name it in the column lesion_mask, or take them out."
        )
    _require_enough([subject.key for subject in manifest])
    trained_on = read_trained_on(model) if model.trained_on.exists() else frozenset()
    files = {subject.key: subject.images["t1w"] for subject in manifest}
    if known := [key for key, path in files.items() if path.is_file() and file_fingerprint(path) in trained_on]:
        raise UserError(
            f"adapt: {counted(len(known), 'labelled patient')} ({some_of(known)}) with a scan that the model was "
            "fitted to as a healthy one, expected other scans. Take them out, or fit the model without them."
        )
    if real(out.root).is_relative_to(real(model.root)):
        raise UserError(
            f"{private(out.root, 'the output folder')}: lies in the model's own folder, expected a separate folder. "
            "Choose another output folder."
        )
    fit = StageRecord.read(out.record("fit"))
    if fit is not None and MODEL not in fit.inputs:
        raise UserError(
            f"{private(out.root, 'the output folder')}: holds another model, expected a new folder or one of `voxout "
            "adapt`. Choose another output folder."
        )


def _require_enough(keys: Sequence[str], why: str = "") -> None:
    if (count := count_participants(keys)) < FEWEST_PATIENTS:
        raise UserError(
            f"adapt: found labels of {counted(count, 'patient')}{why}, expected at least {FEWEST_PATIENTS} different "
            f"persons, since what is learnt is tested on patients that are left out; a gain can be shown with "
            f"{FEWEST_TO_SHOW} or more. Add labelled patients."
        )


def _inputs(settings: LabelSettings, run: Run) -> dict[str, Any]:
    prepared = prepared_of(run)
    used = {s.key: [prepared[s.key], covariates_of(run, s.key)] for s in run.manifest.patients if s.key in prepared}
    train = copied_train_record(run.model, MODEL)
    return {
        MODEL_FORMAT: FORMAT,
        MODEL: fit_identity(run.model),
        CONTROLS: number_of_controls(run.model),
        "the encoder": train.identity if train is not None else None,
        # Without ids, since the record is part of the model.
        "the labelled patients": fingerprint(used),
        "head": settings.head,
        "variance weight": settings.variance_weight,
    } | settings_of(run, *_SETTINGS)


def _learn(settings: LabelSettings, run: Run) -> StageResult:
    model = AnomalyModel.load(run.model, run.config, run.device).with_stored_threshold(run.model)
    _require_can_learn(model, run)
    controls = ControlNulls.open(
        run.model.patches,
        run.model.latents,
        model.ensemble,
        model.source,
        run.config.models,
        seed=run.config.seed,
        scratch=run.out.latents,
        jobs=run.engine.jobs,
    )
    labelled = _Labelled.score(run, model, settings)
    _require_enough([subject.key for subject in labelled.subjects], " with a lesion voxel in the scored brain")
    learner = Learner(model.ensemble, labelled.patients, settings, run.config.seed)
    found = _measured(run, model, learner, labelled, controls)
    learnt, null = controls.calibrated(model.ensemble, learner.fusion(np.arange(len(labelled.subjects))))
    encoders = copy_model(run.model, run.out)
    learnt.save(run.out.detectors / LEARNT)
    if (point := StoredPoint.load(run.model.operating_point)) is not None:
        point.save(run.out.detectors / UNADAPTED_POINT)
    controls.write_null(run.out.latents / NULL, null)
    save_config(run.out.fitted_config, run.config)
    if (train := copied_train_record(run.model, MODEL)) is not None:
        train.write(run.out.record("train"))
    _write_results(run, learnt.fusion, settings, found, labelled)
    write_model_record(run.out, encoders=encoders)
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in _weights(learnt.fusion).items())
    summary = f"{counted(count_participants(s.key for s in labelled.subjects), 'labelled patient')}; weights: {weights}"
    return StageResult(warnings=labelled.notes, summary="\n    ".join([summary, *(gain.sentence for gain in found)]))


def _require_can_learn(model: AnomalyModel, run: Run) -> None:
    ensemble, name = model.ensemble, private(run.model.root, "the model")
    if ensemble.learnt is not None:
        raise UserError(
            f"{name}: was adapted to labels already, expected the model of `voxout run`. Give that model, with all "
            "labelled patients."
        )
    if ensemble.ages is not None:
        raise UserError(
            f"{name}: is calibrated to the age (models.ensemble.age_years), expected a model that is not, since "
            "`voxout adapt` cannot do both. Fit a model with models.ensemble.age_years=0."
        )


@dataclass(frozen=True, eq=False)
class _Labelled:
    """The labelled patients that have a lesion voxel in the scored brain.

    Attributes
    ----------
    subjects : tuple of SubjectRecord
    patients : tuple of LabelledPatient
    notes : tuple of str
        On those that were left out.
    """

    subjects: tuple[SubjectRecord, ...]
    patients: tuple[LabelledPatient, ...]
    notes: tuple[str, ...]

    @classmethod
    def score(cls, run: Run, model: AnomalyModel, settings: LabelSettings) -> "_Labelled":
        """Score the prepared patients, and keep what the scorers put out on disk."""
        prepared, mask = prepared_of(run), model.mask
        subjects = [subject for subject in run.manifest.patients if subject.key in prepared]
        empty, kept, patients = [], [], []
        store: LatentStore | None = None
        with run.console.progress("fit", "scan") as progress:
            for index, subject in enumerate(subjects):
                progress(index, len(subjects), subject.key)
                channels, brain = model.read_channels(subject, run.out)
                inside = mask.transform(brain.voxels)
                found = model.ensemble.outputs(channels, inside, subject, jobs=run.engine.jobs, latents=settings.head)
                lesions = prepared_lesions(subject, run.out)
                lesion = mask.transform(lesions.voxels.astype(bool)) if lesions is not None else None
                if lesion is None or not (lesion & found.inside).any():
                    empty.append(subject.key)
                    continue
                values = found.neg_log10_ps.T
                if found.latents is not None:
                    values = np.concatenate([values, found.latents], axis=1)
                store = store or LatentStore.create(run.out.latents / _OUTPUTS, mask, values.shape[1])
                store.write(subject.key, values, available=found.inside)
                read = partial(_read_outputs, store, subject.key, len(found.neg_log10_ps))
                kept.append(subject)
                patients.append(LabelledPatient(participant_of_key(subject.key), read, lesion))
        failed = [subject.key for subject in run.manifest.patients if subject.key not in prepared]
        notes = []
        if failed:
            notes.append(f"{len(failed)} left out, since the check or the preparation failed ({some_of(failed)})")
        if empty:
            notes.append(f"{len(empty)} left out, with no lesion voxel in the scored brain ({some_of(empty)})")
        return cls(tuple(kept), tuple(patients), tuple(notes))


def _read_outputs(store: LatentStore, key: str, n_scorers: int) -> ScorerOutputs:
    values = store.subject(key)
    inside = np.isfinite(values[:, 0])
    latents = values[:, n_scorers:] if values.shape[1] > n_scorers else None
    return ScorerOutputs(np.nan_to_num(values[:, :n_scorers].T), inside, latents)


def _measured(
    run: Run, model: AnomalyModel, learner: Learner, labelled: _Labelled, controls: ControlNulls
) -> tuple[Gain, ...]:
    """Score each patient with what was learnt without it, and write a row for each."""
    before: dict[int, SubjectScores] = {}
    after: dict[int, SubjectScores] = {}
    for index, *maps, inside in learner.cross_validated(controls):
        subject = labelled.subjects[index]
        run.console.say(f"    fit {subject.key}: mapped with what was learnt without it", level=1)
        for z, scores in zip(maps, (before, after), strict=True):
            scores[index] = _scores(run, model, subject, z, inside)
    order = sorted(before)
    pairs = [(before[index], after[index]) for index in order]
    path = run.out.adaptation / "patients.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(
        path,
        ["subject", "lesions", "average_precision_without_labels", "average_precision_with_labels"],
        [[x.key, len(x.lesions), x.average_precision.value, y.average_precision.value] for x, y in pairs],
    )
    own = [list(scores) for scores in zip(*pairs, strict=True)]
    return gains(*own, draws=run.config.evaluation.bootstrap_draws, seed=run.config.seed)


def _scores(run: Run, model: AnomalyModel, subject: SubjectRecord, z: np.ndarray, inside: np.ndarray) -> SubjectScores:
    mask = model.mask
    return score_map(
        subject.key,
        Volume(mask.inverse_transform(z), mask.grid),
        read_mask(run.out.prepared_brain_mask(subject)),
        prepared_lesions(subject, run.out),
        Volume(mask.inverse_transform(inside), mask.grid),
        run.config.evaluation,
    )


def _weights(fusion: Fusion) -> dict[str, float]:
    return {name: round(float(weight), 4) for name, weight in zip(fusion.names, fusion.weights, strict=True)}


def _write_results(
    run: Run, fusion: Fusion, settings: LabelSettings, found: Sequence[Gain], labelled: _Labelled
) -> None:
    """Write what was gained, in numbers of the cohort only."""
    content = {
        "patients": count_participants(subject.key for subject in labelled.subjects),
        "scans": len(labelled.subjects),
        "weights": _weights(fusion),
        "head": settings.head,
        "variance_weight": settings.variance_weight,
        "measured_on": "patients that were left out of what was learnt, on the template grid",
        "gain_is_shown": {gain.metric: gain.is_shown for gain in found},
        "gains": [asdict(gain) for gain in found],
        "sentences": [gain.sentence for gain in found],
    }
    write_json(run.out.adaptation / "adaptation.json", content)


def _threshold_inputs(run: Run) -> dict[str, Any]:
    names = ("false_clusters", "smallest_cluster_mm3", "space", "bootstrap_draws")
    return {"the detectors": fit_identity(run.out)} | settings_of(
        run, *(f"evaluation.{name}" for name in names), "seed"
    )


def _threshold(run: Run) -> StageResult:
    mask, folder = read_voxel_mask(run.out), run.out.latents / NULL
    keys = sorted(path.stem for path in folder.glob("*.npy"))
    null = LatentStore.open(folder, keys, mask)
    point = threshold_on(lambda: null_maps(null, mask), keys, mask.grid, run.config, [])
    before, summary = StoredPoint.load(run.model.operating_point), point.controls
    if summary is not None and before is not None and before.controls is not None:
        # Of the controls themselves; what they have at the threshold is new.
        summary = replace(before.controls, clusters=summary.clusters, shares_above=summary.shares_above)
    stored = StoredPoint.from_point(replace(point, controls=summary), run.config.evaluation, fit_identity(run.out))
    stored.save(run.out.operating_point)
    return StageResult(summary=threshold_in_words(stored, before))


def label_stages(settings: LabelSettings) -> dict[str, Stage]:
    """Return the stages that learn from labels, by name of the stage whose place they take."""
    learn = Stage(
        "fit",
        partial(_inputs, settings),
        partial(_learn, settings),
        ("encoder", "detectors", "latents", "adaptation"),
        needs=("prepare",),
        title="learn from the labelled patients, each left out in turn",
    )
    threshold = Stage(
        "map",
        _threshold_inputs,
        _threshold,
        ("operating_point",),
        needs=("fit",),
        title="set the threshold on the model's training controls, in cross-validation",
    )
    return {"fit": learn, "map": threshold}
