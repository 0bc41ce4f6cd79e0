"""The stage score: the maps against the lesion masks."""

from collections.abc import Sequence
from typing import Any

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.errors import Failure, SubjectError, UserError, counted, private
from ...data_manifests.images.volume import Volume, read_mask, read_volume
from ...evaluation.metrics.bootstrap import CONFIDENCE, Estimate
from ...evaluation.scoring.metric_labels import METRICS, is_oracle
from ...evaluation.scoring.operating_point import OperatingPoint, StoredPoint
from ...evaluation.scoring.sanity_checks import scoring_warnings
from ...evaluation.scoring.score_cohort import CohortScores, score_cohort
from ...evaluation.scoring.score_subject import score_map
from ...evaluation.scoring.subject_scores import SubjectScores
from ...evaluation.scoring.tables import write_scores
from ..workflow.console import Progress
from ..workflow.records import StageRecord, file_fingerprint, fingerprint
from ..workflow.runner import Run, Stage, StageResult
from ..workflow.stage_inputs import (
    cohort_of,
    files_of,
    fit_identity,
    record_of,
    settings_of,
)

ENOUGH_HEALTHY = 20
"""Fewest healthy scans to set a threshold on: with fewer, its bootstrap interval is wider than scanner differences."""


_HEADLINES = (
    "healthy_threshold",
    "auroc",
    "auroc_per_subject_mean",
    "average_precision",
    "prevalence",
    "best_dice_pooled",
    "dice_at_healthy_threshold",
    "lesion_sensitivity",
    "false_clusters_per_healthy_subject",
)


def _score_inputs(run: Run) -> dict[str, Any]:
    mapped = record_of(run, "map").done
    identities = {}
    for subject in (s for s in cohort_of(run) if s.key in mapped):
        record = StageRecord.read(run.out.map_record(subject))
        about = [subject.group, subject.site, subject.age, subject.sex, files_of(subject), record and record.identity]
        identities[f"map and truth of {subject.key}"] = fingerprint(about)
    identities["the model's threshold"] = file_fingerprint(run.model.operating_point)
    return identities | settings_of(run, "evaluation", "seed")


def _score(run: Run) -> StageResult:
    with run.console.progress("score", "subject") as progress:
        return score_maps(run, record_of(run, "map").done, progress)


def score_maps(run: Run, keys: tuple[str, ...], progress: Progress) -> StageResult:
    """Score every map against its lesion mask (controls have none); write the tables and the counts per subject."""
    settings = run.config.evaluation
    scores: list[SubjectScores] = []
    failed: list[Failure] = []
    subjects = cohort_of(run)
    for done, key in enumerate(keys):
        progress(done, len(keys), key)
        try:
            subject = subjects[key]
            volumes = maps_and_masks(subject, run.out, settings.space)
            about = {"group": subject.group, "site": subject.site, "age": subject.age, "sex": subject.sex}
            scores.append(score_map(key, *volumes, settings, **about).save(run.out.subject_scores(key)))
        except SubjectError as error:
            failed.append(Failure(key, "score", str(error)))
        except UserError as error:
            failed.append(Failure(key, "score", f"{key}: {error}"))
    if not scores:
        raise UserError([failure.reason for failure in failed])
    point, warning = _model_point(run, scores)
    cohort = score_cohort(scores, settings, seed=run.config.seed, point=point)
    write_scores(run.out.scores, cohort, left_out=[failure.key for failure in failed])
    return StageResult(
        warnings=(*([warning] if warning else []), *scoring_warnings(cohort)),
        done=tuple(s.key for s in scores),
        failed=tuple(failed),
        summary=_summary(scores),
    )


def _summary(scores: Sequence[SubjectScores]) -> str:
    if not any(s.truth_known for s in scores):
        return "nothing to evaluate: no lesion masks and no healthy scans"
    with_lesions, healthy = sum(s.has_lesions for s in scores), sum(s.is_healthy for s in scores)
    return f"{counted(with_lesions, 'patient')} with lesions, {counted(healthy, 'healthy scan')}"


def _model_point(run: Run, scores: Sequence[SubjectScores]) -> tuple[OperatingPoint | None, str | None]:
    """Return the valid threshold and a note; None if the threshold is set on the healthy scans of the cohort.

    An applied model has its own threshold. Healthy scans of the new cohort replace it only with
    `evaluation.recalibrate`, since a few scans give a less certain threshold than the model's training controls.

    Raises
    ------
    UserError
        Too few healthy scans to set a threshold on.
    """
    stored = StoredPoint.load(run.model.operating_point)
    unfit = stored.unfit_because(run.config.evaluation, fit_identity(run.model)) if stored is not None else None
    holds = stored is not None and unfit is None
    if not run.applies_a_model:
        if unfit:
            return None, f"the model's threshold is not valid here: {unfit}"
        return (stored.point, None) if stored is not None else (None, None)
    own = f"the model's is {stored.threshold:.2f}" if stored is not None and holds else "the model has none"
    healthy = sum(s.is_healthy for s in scores)
    if run.config.evaluation.recalibrate:
        if healthy < ENOUGH_HEALTHY:
            raise UserError(
                f"evaluation.recalibrate: found {counted(healthy, 'healthy scan')} with a map, expected at "
                f"least {ENOUGH_HEALTHY}. Add healthy scans, or remove the setting: {own}."
            )
        return None, f"the threshold was set on {healthy} healthy scans of this cohort; {own}"
    if stored is not None and holds:
        return stored.point, None
    why = f"the model's threshold is not valid here: {unfit}" if unfit else "the model has no threshold"
    note = f"{why}. Scores that need a threshold are undefined"
    if healthy >= ENOUGH_HEALTHY:
        note += "; to set one on the healthy scans of this cohort, use --set evaluation.recalibrate=true"
    return OperatingPoint.missing(run.config.evaluation.bootstrap_draws, why), note


def load_scores(run: Run) -> CohortScores:
    """Compute the cohort's scores from the counts that the stage score saved."""
    out, config = run.out, run.config
    record = StageRecord.read(out.record("score"))
    if record is None:
        raise UserError(f"{private(out.root, 'the output folder')}: holds no scores. Run `voxout score` first.")
    subjects = [SubjectScores.load(out.subject_scores(key)) for key in record.done]
    return score_cohort(subjects, config.evaluation, seed=config.seed, point=_model_point(run, subjects)[0])


def score_lines(scores: CohortScores) -> list[str]:
    """Format the main scores, one line each, for the end of a run; without lesions, those that are defined."""
    with_lesions = any(subject.has_lesions for subject in scores.subjects)
    names = [name for name in _HEADLINES if with_lesions or scores.estimates[name].value is not None]
    width = max((len(METRICS[name].label) for name in names), default=0) + len(" (oracle)")
    lines = [f"scores ({scores.space} space, inside the {scores.mask})"]
    for name in names:
        label = METRICS[name].label + (" (oracle)" if is_oracle(name) else "")
        lines.append(f"  {label:<{width}}  {format_estimate(scores.estimates[name])}")
    return lines


def format_estimate(estimate: Estimate) -> str:
    """Format a value with its bootstrap interval, or the reason why it is undefined."""
    if estimate.value is None:
        return f"undefined: {estimate.reason_undefined}"
    if estimate.ci_low is None:
        return f"{estimate.value:.3g}  (too few subjects for an interval)"
    interval = f"{100 * CONFIDENCE:g} % bootstrap interval"
    return f"{estimate.value:.3g}  ({interval} {estimate.ci_low:.3g} to {estimate.ci_high:.3g})"


def maps_and_masks(subject: SubjectRecord, out: OutputFolder, space: str):
    """Read map, evaluation mask, truth and coverage of one subject, all on one grid."""
    if space == "native":
        truth = read_mask(out.native_lesion_mask(subject)) if subject.lesion_mask else None
        return (
            read_volume(out.native_map(subject)),
            read_mask(out.native_brain_mask(subject)),
            truth,
            read_mask(out.native_coverage(subject)),
        )
    return (
        read_volume(out.template_map(subject)),
        read_mask(out.prepared_brain_mask(subject)),
        prepared_lesions(subject, out),
        read_mask(out.template_coverage(subject)),
    )


def prepared_lesions(subject: SubjectRecord, out: OutputFolder) -> Volume | None:
    """Read the lesion mask on the template grid; None if there is none."""
    path = out.prepared_lesion_mask(subject)
    return read_mask(path) if subject.lesion_mask and path.is_file() else None


STAGE = Stage("score", _score_inputs, _score, ("scores",), needs=("map",))
