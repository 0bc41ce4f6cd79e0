"""Stages score and report: maps against lesion masks, and the cohort page."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING

import yaml

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.errors import Failure, SubjectError, UserError, private
from ...data_manifests.images.volume import Volume, read_mask, read_volume
from ...evaluation.metrics.bootstrap import Estimate
from ...evaluation.report.cohort_page import (
    CohortReport,
    ReportSubject,
    StageTime,
    SubjectImages,
    write_report,
)
from ...evaluation.report.report_inputs import QualityNumber, Threshold
from ...evaluation.scoring.metric_labels import METRICS, is_oracle
from ...evaluation.scoring.operating_point import OperatingPoint, StoredPoint
from ...evaluation.scoring.reference_results import RunScores
from ...evaluation.scoring.sanity_checks import scoring_warnings
from ...evaluation.scoring.score_cohort import CohortScores, score_cohort
from ...evaluation.scoring.score_subject import score_map
from ...evaluation.scoring.subject_scores import SubjectScores
from ...evaluation.scoring.tables import write_scores
from ..config.config import Config
from ..workflow.console import Progress
from ..workflow.records import StageRecord
from ..workflow.runner import Run, StageResult, all_failures
from ..workflow.stage_inputs import cohort_of
from ..workflow.stage_titles import STAGE_TITLES
from .training_curves import training_curves

if TYPE_CHECKING:
    from ...preprocessing.quality.verdict import Quality

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


def score_maps(run: Run, keys: tuple[str, ...], progress: Progress) -> StageResult:
    """Score every map against its lesion mask (controls have none); write the tables and the counts per subject."""
    from .null_threshold import null_threshold

    settings = run.config.evaluation
    scores: list[SubjectScores] = []
    failed: list[Failure] = []
    subjects = cohort_of(run)
    for done, key in enumerate(keys):
        progress(done, len(keys), key)
        try:
            subject = subjects[key]
            volumes = maps_and_masks(subject, run.out, settings.space)
            about = {"group": subject.group, "site": subject.site, "age": subject.age}
            scores.append(score_map(key, *volumes, settings, **about).save(run.out.subject_scores(key)))
        except SubjectError as error:
            failed.append(Failure(key, "score", str(error)))
        except UserError as error:
            failed.append(Failure(key, "score", f"{key}: {error}"))
    if not scores:
        raise UserError([failure.reason for failure in failed])
    if not run.applies_a_model and (own := null_threshold(run)) is not None:
        StoredPoint.from_point(own, settings, _fitted(run)).save(run.out.operating_point)
    point, warning = _model_point(run, scores)
    cohort = score_cohort(scores, settings, seed=run.config.seed, point=point)
    write_scores(run.out.scores, cohort, left_out=[failure.key for failure in failed])
    return StageResult(
        warnings=(*([warning] if warning else []), *scoring_warnings(cohort)),
        done=tuple(s.key for s in scores),
        failed=tuple(failed),
        summary=f"{sum(s.has_lesions for s in scores)} patients with lesions, "
        f"{sum(s.is_healthy for s in scores)} healthy scans",
    )


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
    unfit = stored.unfit_because(run.config.evaluation, _fitted(run)) if stored is not None else None
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
                f"evaluation.recalibrate: found {healthy} healthy scans with a map, expected at least "
                f"{ENOUGH_HEALTHY}. Add healthy scans, or remove the setting: {own}."
            )
        return None, f"the threshold was set on {healthy} healthy scans of this cohort; {own}"
    if stored is not None and holds:
        return stored.point, None
    why = f"the model's threshold is not valid here: {unfit}" if unfit else "the model has no threshold"
    note = f"{why}. Scores that need a threshold are undefined"
    if healthy >= ENOUGH_HEALTHY:
        note += "; to set one on the healthy scans of this cohort, use --set evaluation.recalibrate=true"
    return OperatingPoint.missing(run.config.evaluation.bootstrap_draws, why), note


def _fitted(run: Run) -> str:
    """Return the identity of the fit that the maps come from."""
    record = StageRecord.read(run.model.record("fit"))
    return record.identity if record else ""


def load_scores(run: Run) -> CohortScores:
    """Compute the cohort's scores from the counts that the stage score saved."""
    out, config = run.out, run.config
    record = StageRecord.read(out.record("score"))
    if record is None:
        raise UserError(f"{private(out.root, 'the output folder')}: holds no scores. Run `voxout score` first.")
    subjects = [SubjectScores.load(out.subject_scores(key)) for key in record.done]
    return score_cohort(subjects, config.evaluation, seed=config.seed, point=_model_point(run, subjects)[0])


def score_lines(scores: CohortScores) -> list[str]:
    """Format the main scores, one line each, for the end of a run."""
    width = max(len(METRICS[name].label) for name in _HEADLINES) + len(" (oracle)")
    lines = [f"scores ({scores.space} space, inside the {scores.mask})"]
    for name in _HEADLINES:
        label = METRICS[name].label + (" (oracle)" if is_oracle(name) else "")
        lines.append(f"  {label:<{width}}  {format_estimate(scores.estimates[name], scores.settings.confidence)}")
    return lines


def format_estimate(estimate: Estimate, confidence: float) -> str:
    """Format a value with its bootstrap interval, or the reason why it is undefined."""
    if estimate.value is None:
        return f"undefined: {estimate.reason_undefined}"
    if estimate.ci_low is None:
        return f"{estimate.value:.3g}  (too few subjects for an interval)"
    interval = f"{100 * confidence:g} % bootstrap interval"
    return f"{estimate.value:.3g}  ({interval} {estimate.ci_low:.3g} to {estimate.ci_high:.3g})"


def write_cohort_report(
    run: Run,
    scores: CohortScores,
    role: Mapping[str, str],
    reference_runs: Sequence[RunScores] = (),
    without_page: Sequence[Failure] = (),
) -> None:
    """Write the cohort page: scores, cohort, training, pictures, failures, run times, settings.

    Parameters
    ----------
    run : Run
    scores : CohortScores
    role : mapping from subject key to its role, such as "held-out control"
    reference_runs : sequence of RunScores
        Other runs, shown for comparison.
    without_page : sequence of Failure
        Subjects whose own page could not be written.
    """
    # An encoder kept from other settings was not used for these maps.
    needs_encoder = run.config.models.ensemble.needs_encoder
    stages = [name for name in STAGE_TITLES if name != "train" or needs_encoder]
    records = {name: StageRecord.read(run.out.record(name)) for name in stages}
    trained = {name: StageRecord.read(run.model.record(name)) for name in stages} | {
        name: record for name, record in records.items() if record is not None
    }
    by_key = {scored.key: scored for scored in scores.subjects}
    done = [record for record in trained.values() if record is not None]
    write_report(
        run.out.report,
        CohortReport(
            title="Anomaly maps",
            created=datetime.now().astimezone(),
            subjects=[
                report_subject(subject, role[subject.key], run.out, run.config, by_key.get(subject.key))
                for subject in cohort_of(run)
            ],
            scores=scores,
            threshold=Threshold.of_z_maps(scores).value,
            runs=reference_runs,
            summary=run_summary(run.config),
            training=training_curves(run.model, run.config.models.ensemble.members) if needs_encoder else [],
            stages=[
                StageTime(r.stage, r.wall_s, r.peak_memory_mb, done=len(r.done) or None, failed=len(r.failed))
                for r in done
            ],
            failures=[*all_failures(run.out), *without_page],
            warnings=[warning for record in records.values() if record is not None for warning in record.warnings],
            settings_text=yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False),
            versions=next((record.versions for record in done if record.versions), {}),
        ),
    )


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
        _prepared_lesions(subject, out),
        read_mask(out.template_coverage(subject)),
    )


def _prepared_lesions(subject: SubjectRecord, out: OutputFolder) -> Volume | None:
    path = out.prepared_lesion_mask(subject)
    return read_mask(path) if subject.lesion_mask and path.is_file() else None


def report_subject(
    subject: SubjectRecord, role: str, out: OutputFolder, config: Config, scores: SubjectScores | None
) -> ReportSubject:
    """Collect what the pages show of a subject; images are read only when they are drawn."""
    from ...preprocessing.quality.verdict import Quality

    prepared = out.quality(subject).is_file()
    quality = Quality.load(out.quality(subject)) if prepared else None
    page = out.subject_page(subject)
    return ReportSubject(
        key=subject.key,
        group=subject.group,
        role=role,
        site=subject.site,
        age=subject.age,
        sex=subject.sex,
        quality_verdict=quality.verdict if quality else None,
        quality_reasons=quality.reasons if quality else (),
        quality_picture=out.quality_picture(subject) if prepared else None,
        quality=_quality_numbers(quality) if quality else (),
        brain_method=quality.brain_method if quality else None,
        brain_volume_ml=quality.brain_ml if quality else None,
        scores=scores,
        images=partial(_images, subject, out, config) if scores is not None else None,
        page=f"{page.parent.name}/{page.name}" if page.is_file() else None,
    )


def _quality_numbers(quality: "Quality") -> tuple[QualityNumber, ...]:
    from ...preprocessing.quality.metrics import LABELS

    values = {name: getattr(quality, name) for name in LABELS}
    return tuple(
        QualityNumber(name, LABELS[name], value if isfinite(value) else None, name in quality.unusual)
        for name, value in values.items()
    )


def run_summary(config: Config) -> dict[str, str]:
    """Return the main settings, as shown at the top of the pages."""
    models, encoder, detector = config.models, config.models.encoder, config.models.detector
    summary = {
        "Template grid": f"MNI152, {config.preprocessing.spacing_mm:g} mm",
        "Modalities": ", ".join(config.preprocessing.modalities),
        "Derived maps": ", ".join(config.preprocessing.derived_maps) or "none",
        "Intensities": config.preprocessing.intensity.method.replace("_", "-"),
        "Scorers": ", ".join(models.ensemble.scorers),
    }
    if models.ensemble.needs_encoder:
        summary |= {
            "Patches": f"{', '.join(f'{size:g}' for size in encoder.patch_size_mm)} mm, {', '.join(encoder.planes)}",
            "Latents": f"{encoder.latent_size} dimensions",
            "Encoders": f"{models.ensemble.members}",
            "Guidance": f"lambda {models.guidance.weight:g}, nu {models.guidance.nu:g}",
            "One-class SVM": f"nu {detector.nu:g}, gamma {detector.gamma}, {detector.latent_scaling} latents",
        }
    return summary | {
        "Scored in": f"{config.evaluation.space} space, inside the brain mask",
    }


def _images(subject: SubjectRecord, out: OutputFolder, config: Config) -> SubjectImages:
    # On the template grid, slices of different subjects show the same anatomy.
    return SubjectImages(
        scan=read_volume(out.prepared_image(subject, config.preprocessing.modalities[0])),
        map=read_volume(out.template_map(subject)),
        brain_mask=read_mask(out.prepared_brain_mask(subject)),
        covered=read_mask(out.template_coverage(subject)),
        lesion_mask=_prepared_lesions(subject, out),
    )
