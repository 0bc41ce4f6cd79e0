"""Model card: what a model is, in counts and settings only."""

import re
from collections.abc import Mapping

import numpy as np

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.errors import counted
from ...evaluation.report.relation import range_in_words
from ...models.anomaly.score_change import ScoreChange
from ..config.config import config_text
from ..workflow.records import StageRecord
from .anomaly_model import AnomalyModel
from .model_files import number_of_controls
from .pack_file import About
from .whole_model import FORMAT

_HEAD = """\
# A model of normal brain anatomy

{made} by voxout. It turns a head scan into a map of z-scores, higher where the scan differs from the healthy controls
that the model was fitted to. Research use only: not a medical device. Use it with

    voxout apply {place} scan.nii.gz OUT

| | |
|---|---|
{facts}

## Calibration

A z-score is calibrated by cross-validation: each control is scored by a model that has not seen it, and one healthy
voxel in a thousand exceeds 3.09 there. {threshold_note}Scans of another scanner can score higher: adapt the model with
five or more healthy scans of it (`voxout adapt-scanner`).
"""
_PACKING = """
## Packing

Arrays are rounded, and the support vectors of one-class SVMs merged. Change of the scores, measured on random features,
as a share of their standard deviation:

| scorer | typical | all but one in a thousand |
|---|---|---|
{changes}

## What it holds of persons

No scans, no names, ids, paths or hashes of scans, and no ages of single persons. Means, covariances and regression
slopes were computed over all controls. This is not anonymous in the strict sense: whoever also has a head can tell
whether it was among the controls (measured in docs/sharing-models.md).
"""
_IN_FOLDER = """
## What it holds of persons

Latents and ids of single controls, and hashes of their scans (docs/privacy.md). To share it, use `voxout model pack`.
"""
_SETTINGS = """
## Settings

```yaml
{settings}```
"""
_NOT_STATED = "not stated"


def about_model(
    model: OutputFolder, loaded: AnomalyModel, licence: str | None = None, note: str | None = None
) -> About:
    """Say when, with what and on how many controls a model was fitted, as far as its record tells."""
    record = StageRecord.read(model.record("fit")) or StageRecord("fit", {}, {})
    date = re.match("[0-9]{4}-[0-9]{2}-[0-9]{2}", record.started)
    return About(
        model_format=FORMAT,
        fitted=date[0] if date else "",
        controls=number_of_controls(model),
        members=len(loaded.source.checkpoints),
        versions=dict(record.versions),
        licence=licence,
        note=note,
    )


def model_facts(model: AnomalyModel, about: About) -> dict[str, str]:
    """Return the table of the card: what the model was fitted to, with what, and its threshold."""
    config, ensemble = model.config, model.ensemble
    adapted = f"to another scanner, on {model.adapted_on} healthy scans of it"
    labels = f"to {model.labelled_patients} labelled patients: how the scorers are combined"
    return {
        "fitted": about.fitted or "unknown",
        "to": f"{about.controls} healthy scans",
        **_controls(model),
        **({"adapted": adapted} if model.adapted_on is not None else {}),
        **({"learnt": labels} if model.labelled_patients is not None else {}),
        "images": f"{', '.join(config.preprocessing.modalities)}; prepared on the template MNI152NLin2009aSym at "
        f"{config.preprocessing.spacing_mm:g} mm, {model.mask.size:,} voxels",
        "brain extraction": config.preprocessing.brain_extraction.method,
        "scorers": ", ".join(scorer.name for scorer in ensemble.scorers),
        "confounds": _confounds(model),
        "calibrated": _calibrated(model),
        "encoder": _encoder(model),
        "threshold": f"{model.threshold:.2f}" if model.threshold is not None else f"none: {model.why_no_threshold}",
        "versions": ", ".join(f"{name} {version}" for name, version in about.versions.items()) or "unknown",
        "licence": about.licence or _NOT_STATED,
        **({"note of the sender": about.note} if about.note else {}),
    }


def model_card(model: AnomalyModel, about: About, changes: Mapping[str, ScoreChange | None] | None) -> str:
    """Return the text of the card.

    Parameters
    ----------
    model : AnomalyModel
        As it is packed.
    about : About
    changes : mapping from scorer to ScoreChange or None
        By packing; None for a model in the folder of a run.
    """
    rows = (
        f"| {name} | {change.typical:.2%} | {change.large:.2%} |" if change else f"| {name} | not measured | |"
        for name, change in (changes or {}).items()
    )
    return "".join(
        (
            _HEAD.format(
                made="Fitted" if changes is None else "Packed",
                place="THIS_FOLDER" if changes is None else "THIS_FILE",
                facts="\n".join(f"| {name} | {_escaped(value)} |" for name, value in model_facts(model, about).items()),
                threshold_note=_threshold_note(model),
            ),
            _IN_FOLDER if changes is None else _PACKING.format(changes="\n".join(rows)),
            _SETTINGS.format(settings=config_text(model.config)),
        )
    )


def _calibrated(model: AnomalyModel) -> str:
    """Return to which ages the maps are calibrated."""
    if model.ensemble.ages is None:
        return "on controls of all ages"
    first, last = model.ensemble.ages.ages[[0, -1]]
    return f"on controls of similar age, {first:g} to {last:g} years; without an age on all of them"


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is, in a cell of a table."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", text)


def _controls(model: AnomalyModel) -> dict[str, str]:
    """Return what is known of the controls and of their maps, in counts and ranges."""
    summary = model.operating_point.controls if model.operating_point is not None else None
    if summary is None:
        return {}
    ages = f"{summary.ages[0]:g} to {summary.ages[1]:g} years, ends rounded" if summary.ages else _NOT_STATED
    sites, sexes = summary.sites or (), _NOT_STATED
    if summary.females is not None and summary.males is not None:
        others = len(summary.clusters) - summary.females - summary.males
        rest = f", {others} other or {_NOT_STATED}" if others else ""
        sexes = f"{summary.females} female, {summary.males} male{rest}"
    return {
        "ages": ages,
        "sexes": sexes,
        "scanners": f"{counted(len(sites), 'site')} ({', '.join(map(str, sites))} scans)" if sites else _NOT_STATED,
        "voxels of the scans": f"{range_in_words(*summary.spacing_mm, 'g')} mm" if summary.spacing_mm else _NOT_STATED,
        "false-positive clusters": f"{np.mean(summary.clusters):.2g} on average at the threshold, "
        f"{max(summary.clusters)} at most, in scans that were left out in turn",
        "voxels above 3.09": f"{100 * np.median(summary.shares_above):.2g} % in the median of these scans, "
        f"{100 * max(summary.shares_above):.2g} % at most",
    }


def _confounds(model: AnomalyModel) -> str:
    confounds = model.ensemble.confounds
    parts = [f"{confounds.brain_components.size} whole-brain components"] if confounds.brain_components else []
    if age := confounds.covariates.age:
        parts.append(f"age ({age.lowest:g} to {age.highest:g} years, ends rounded)")
    parts += [f"{name} ({', '.join(shares)})" for name, shares in confounds.covariates.shares.items()]
    return ", ".join(parts) or "none"


def _encoder(model: AnomalyModel) -> str:
    if not model.source.checkpoints:
        return "none"
    first, count = model.source.checkpoints[0], len(model.source.checkpoints)
    return f"{count} of {first.settings.encoder.latent_size} latent dimensions, {first.step} steps; without decoder"


def _threshold_note(model: AnomalyModel) -> str:
    point = model.operating_point
    if point is None:
        return ""
    low, high = np.percentile(point.draws, [2.5, 97.5]) if point.draws else (point.threshold, point.threshold)
    allowed = model.config.evaluation.false_clusters
    return (
        f"At the threshold {point.threshold:.2f} (95 % bootstrap interval {low:.2f} to {high:.2f}) the "
        f"{point.n_healthy} controls have on average {allowed:g} false-positive cluster{'s' if allowed != 1 else ''} "
        f"of at least {model.config.evaluation.smallest_cluster_mm3:g} mm3. "
    )
