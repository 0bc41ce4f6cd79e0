"""One method of the comparison: fitted, calibrated, its form chosen, its maps scored."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.errors import Failure, UserError
from ...data_manifests.images.volume import Volume, read_map, read_mask
from ...data_manifests.open_file import file_hash
from ...data_manifests.typed_json import load_json
from ...evaluation.metrics import voxel_metrics as vm
from ...evaluation.scoring.operating_point import OperatingPoint, StoredPoint
from ...evaluation.scoring.score_subject import score_map
from ...evaluation.scoring.subject_scores import SubjectScores
from ...models.anomaly.fit import NULL
from ...models.features.feature_store import LatentStore
from ...models.rivals.cross_fit import CrossFit
from ...models.rivals.forms import FORMS, Forms
from ...models.rivals.registry import OWN, make
from ...models.rivals.training import training_costs
from ..model.null_threshold import threshold_on
from ..stages.score import maps_and_masks, prepared_lesions
from ..workflow.stage_inputs import fit_identity
from .cohort import RivalCohort

MAPPED = "as mapped"
"""Form of voxout's own map, which is calibrated and smoothed already."""
_MOST_EDITED = 20
"""Controls of which an edited copy is scored, to choose a form."""
_FPR = 0.3
_IDENTITY, _COST = "identity.json", "cost.json"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cost:
    """What a method costs on this machine.

    Attributes
    ----------
    cpu_s : float
        Processor time of all fits and maps, over all calls.
    trainings : int
        Networks that were trained.
    steps : int
        Of the longest training.
    cpu_s_a_step : float or None
        None without a network.
    """

    cpu_s: float = 0.0
    trainings: int = 0
    steps: int = 0
    cpu_s_a_step: float | None = None


@dataclass(frozen=True, eq=False)
class MethodScores:
    """Scores of one method.

    Attributes
    ----------
    name : str
    scores : mapping from form to tuple of SubjectScores
    points : mapping from form to OperatingPoint
        Threshold of each form, set on the controls.
    chosen : str
        The form that is compared.
    on_edits : mapping from form to float
        Normalised AUROC up to a false-positive rate of 0.3 on edited copies of controls, by which the form was chosen.
    template_map : callable
        Returns the map (P,) of a subject in the chosen form.
    cost : Cost
    failures : tuple of Failure
    """

    name: str
    scores: Mapping[str, tuple[SubjectScores, ...]]
    points: Mapping[str, OperatingPoint]
    chosen: str
    on_edits: Mapping[str, float]
    template_map: Callable[[str], np.ndarray]
    cost: Cost
    failures: tuple[Failure, ...] = ()


def run_method(name: str, cohort: RivalCohort, progress: Progress = lambda done, total: None) -> MethodScores:
    """Fit, calibrate and score one method, or go on where an earlier call stopped.

    Raises
    ------
    UserError
        The method is not usable on this cohort.
    """
    folder = cohort.out.rivals / name
    _start_anew_if_changed(folder, cohort)
    controls = replace(cohort.controls, folder=folder)
    edited = tuple(controls.keys[:: -(-len(controls.keys) // _MOST_EDITED)])
    families = cohort.config.models.learned.families
    fit = CrossFit(name, controls, cohort.readers, edited, families)
    with _timed(folder):
        fit.run(progress)
    keys, null, folds = fit.null()
    mask = controls.mask
    inside = np.stack([mask.transform(controls.inside(key)) for key in keys])
    forms, nulls = Forms.fit(null, inside, folds, mask, cohort.config.models.ensemble.smoothing_mm)
    points = {form: _point(folder, form, keys, nulls[form], inside, cohort) for form in FORMS}
    on_edits = _on_edits(fit, forms)
    chosen = max(FORMS, key=lambda form: on_edits[form])
    failures = list(fit.failures)
    scores: dict[str, list[SubjectScores]] = {form: [] for form in FORMS}
    for key in cohort.subjects:
        raw = fit.scores(key)
        if raw is None:
            continue
        try:
            own = _scored(folder, key, raw, forms, cohort)
        except UserError as error:
            failures.append(Failure(key, "rivals", f"{name}: {error}"))
            continue
        for form in FORMS:
            scores[form].append(own[form])
    if not scores[chosen]:
        raise UserError(f"{name}: failed on all subjects ({failures[0].reason if failures else 'no map'}).")

    def template_map(key: str) -> np.ndarray:
        raw = fit.scores(key)
        assert raw is not None
        return forms.of(raw, mask.transform(cohort.coverage(key).voxels))[chosen]

    return MethodScores(
        name,
        {form: tuple(own) for form, own in scores.items()},
        points,
        chosen,
        on_edits,
        template_map,
        _cost(folder),
        tuple(failures),
    )


def run_own(cohort: RivalCohort) -> MethodScores:
    """Score voxout's own maps of the run in the same way.

    Raises
    ------
    UserError
        The run has no valid threshold, or its maps cannot be read.
    """
    out, settings = cohort.out, cohort.config.evaluation
    point, scores = _own_point(cohort), []
    for key, subject in cohort.subjects.items():
        about = {"group": subject.group, "site": subject.site, "age": subject.age}
        scores.append(score_map(key, *maps_and_masks(subject, out, settings.space), settings, **about))

    def template_map(key: str) -> np.ndarray:
        return cohort.controls.mask.transform(read_map(out.template_map(cohort.subjects[key])).voxels)

    return MethodScores(OWN, {MAPPED: tuple(scores)}, {MAPPED: point}, MAPPED, {}, template_map, Cost())


def _own_point(cohort: RivalCohort) -> OperatingPoint:
    """Return the threshold of the run or, for other settings of the evaluation, one set on its null maps."""
    out, config, mask = cohort.out, cohort.config, cohort.controls.mask
    stored = StoredPoint.load(out.operating_point)
    if stored is not None and stored.unfit_because(config.evaluation, fit_identity(out)) is None:
        return stored.point
    keys = tuple(key for key in cohort.controls.keys if (out.latents / NULL / f"{key}.npy").is_file())
    if not keys:
        raise UserError(
            f"{OWN}: the run has no threshold for these settings of the evaluation, and its null maps were deleted. "
            "Leave the settings out, or run `voxout run` again."
        )
    null = LatentStore.open(out.latents / NULL, keys, mask)
    inside = np.stack([mask.transform(cohort.controls.inside(key)) for key in keys])
    rows = np.stack([null.subject(key)[:, 0] for key in keys])
    return threshold_on(_null_volumes(rows, inside, cohort), keys, mask.grid, config, [])


def _null_volumes(null: np.ndarray, inside: np.ndarray, cohort: RivalCohort) -> Callable[[], Iterator[np.ndarray]]:
    """Return a function that yields the null maps (S, P) as volumes, -inf outside the brain."""
    mask = cohort.controls.mask

    def maps() -> Iterator[np.ndarray]:
        for row, brain in zip(null, inside, strict=True):
            yield mask.inverse_transform(np.where(brain, row, -np.inf).astype(np.float32), -np.inf)

    return maps


def _start_anew_if_changed(folder: Path, cohort: RivalCohort) -> None:
    """Delete what was made with other controls, settings or scans."""
    controls = cohort.controls
    identity = {
        "controls": list(controls.keys),
        "mask": controls.mask.mask_hash,
        "channels": asdict(controls.channels),
        "preset": asdict(controls.preset),
        "seed": controls.seed,
        "smoothing_mm": cohort.config.models.ensemble.smoothing_mm,
        "evaluation": cohort.config.evaluation.model_dump(mode="json"),
        "subjects": {key: _hash_of(cohort, key) for key in cohort.subjects},
    }
    if controls.encoder_weights is not None and getattr(make(folder.name), "uses_encoder_weights", False):
        identity["encoder_weights"] = file_hash(controls.encoder_weights)
    text, file = json.dumps(identity, sort_keys=True, indent=1, default=str), folder / _IDENTITY
    if file.is_file() and file.read_text() == text:
        return
    for pattern in ("maps", "scores", "thresholds", "fold-*", _COST):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with atomic_write(file) as temporary:
        temporary.write_text(text)


def _hash_of(cohort: RivalCohort, key: str) -> str:
    return file_hash(cohort.out.subject_record(cohort.subjects[key]))[:16]


def _on_edits(fit: CrossFit, forms: Forms) -> dict[str, float]:
    """Rank each form on the voxels of the edited copies, pooled: normalised AUROC up to `_FPR`; 0 without any copy.

    The average precision would depend on the few edits that are plain to see.
    """
    mask, histograms = fit.controls.mask, {form: [] for form in FORMS}
    for key, raw in fit.edited_copies().items():
        inside, truth = mask.transform(fit.controls.inside(key)), fit.truth_of_copy(key)
        used = inside & (truth >= 0)
        for form, values in forms.of(raw, inside).items():
            histograms[form].append(vm.ScoreHistogram.from_voxels(values[used].astype(np.float32), truth[used] > 0))
    found = {}
    for form, own in histograms.items():
        counts = vm.rank_counts(own, vm.common_edges([h.lesion_scores for h in own])) if own else None
        value = float(vm.area_below_fpr(counts, _FPR)) if counts is not None else 0.0
        found[form] = value if np.isfinite(value) else 0.0
    return found


def _point(
    folder: Path, form: str, keys: tuple[str, ...], null: np.ndarray, inside: np.ndarray, cohort: RivalCohort
) -> OperatingPoint:
    """Set the threshold of a form on the null maps of the controls, on the template grid, as for voxout's own map."""
    config = cohort.config
    path = folder / "thresholds" / f"{FORMS.index(form)}.json"
    stored = StoredPoint.load(path)
    if stored is None:
        volumes = _null_volumes(null, inside, cohort)
        point = threshold_on(volumes, keys, cohort.controls.mask.grid, config, [])
        StoredPoint.from_point(point, config.evaluation, folder.name).save(path)
        stored = StoredPoint.load(path)
        assert stored is not None
    return stored.point


def _scored(folder: Path, key: str, raw: np.ndarray, forms: Forms, cohort: RivalCohort) -> Mapping[str, SubjectScores]:
    """Score all forms of the map of a subject, in the space of the settings."""
    paths = {form: folder / "scores" / str(number) / f"{key}.npz" for number, form in enumerate(FORMS)}
    if all(path.is_file() for path in paths.values()):
        return {form: SubjectScores.load(path) for form, path in paths.items()}
    subject, settings, mask = cohort.subjects[key], cohort.config.evaluation, cohort.controls.mask
    coverage = cohort.coverage(key)
    about = {"group": subject.group, "site": subject.site, "age": subject.age}
    native = settings.space == "native"
    transform, grid = cohort.transform(key), cohort.native_grid(key)
    if native:
        brain = read_mask(cohort.out.native_brain_mask(subject))
        truth = read_mask(cohort.out.native_lesion_mask(subject)) if subject.lesion_mask else None
    else:
        brain, truth = cohort.brain_mask(key), prepared_lesions(subject, cohort.out)
    scores = {}
    for form, values in forms.of(raw, mask.transform(coverage.voxels)).items():
        map, covered = Volume(mask.inverse_transform(values.astype(np.float32)), mask.grid), coverage
        if native:
            map, covered = transform.scores_to_native(map, coverage, grid)
        scores[form] = score_map(key, map, brain, truth, covered, settings, **about).save(paths[form])
    return scores


@contextmanager
def _timed(folder: Path) -> Iterator[None]:
    """Add the processor time of a block to that of earlier calls."""
    before, began = _cpu_s(folder), time.process_time()
    try:
        yield
    finally:
        with atomic_write(folder / _COST) as temporary:
            temporary.write_text(json.dumps({"cpu_s": round(before + time.process_time() - began, 1)}))


def _cpu_s(folder: Path) -> float:
    return float(load_json(folder / _COST)["cpu_s"]) if (folder / _COST).is_file() else 0.0


def _cost(folder: Path) -> Cost:
    costs = training_costs(folder)
    steps = sum(step for step, _ in costs)
    each = sum(cpu_s for _, cpu_s in costs) / steps if steps else None
    return Cost(_cpu_s(folder), len(costs), max((step for step, _ in costs), default=0), each)
