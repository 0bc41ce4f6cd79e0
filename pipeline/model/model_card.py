"""Model card: what a packed model is, in counts and settings only."""

from collections.abc import Mapping

import numpy as np

from ...models.anomaly.score_change import ScoreChange
from ..config.config import config_text
from .anomaly_model import AnomalyModel
from .pack_file import About

_TEMPLATE = """\
# A model of normal brain anatomy

Packed by voxout. It turns a head scan into a map of z-scores, higher where the scan differs from the healthy controls
that the model was fitted to. Research use only: not a medical device. Use it with

    voxout apply THIS_FILE scan.nii.gz OUT

| | |
|---|---|
| fitted | {fitted} |
| to | {controls} healthy scans |{adapted}
| images | {modalities}; prepared on the template MNI152NLin2009aSym at {spacing_mm:g} mm, {voxels:,} voxels |
| brain extraction | {extraction} |
| scorers | {scorers} |
| confounds | {confounds} |
| encoder | {encoder} |
| threshold | {threshold} |
| versions | {versions} |

## Calibration

A z-score is calibrated by cross-validation: each control is scored by a model that has not seen it, and one healthy
voxel in a thousand exceeds 3.09 there. {threshold_note}Scans of another scanner can score higher: adapt the model with
five or more healthy scans of it (`voxout adapt-scanner`).

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

## Settings

```yaml
{settings}```
"""


def model_card(model: AnomalyModel, about: About, changes: Mapping[str, ScoreChange | None]) -> str:
    """Return the text of the card.

    Parameters
    ----------
    model : AnomalyModel
        As it is packed.
    about : About
    changes : mapping from scorer to ScoreChange or None
    """
    config, ensemble = model.config, model.ensemble
    rows = (
        f"| {name} | {change.typical:.2%} | {change.large:.2%} |" if change else f"| {name} | not measured | |"
        for name, change in changes.items()
    )
    return _TEMPLATE.format(
        fitted=about.fitted or "unknown",
        controls=about.controls,
        adapted=f"\n| adapted | to another scanner, on {model.adapted_on} healthy scans of it |"
        if model.adapted_on is not None
        else "",
        modalities=", ".join(config.preprocessing.modalities),
        spacing_mm=config.preprocessing.spacing_mm,
        voxels=model.mask.size,
        extraction=config.preprocessing.brain_extraction.method,
        scorers=", ".join(scorer.name for scorer in ensemble.scorers),
        confounds=_confounds(model),
        encoder=_encoder(model),
        threshold=f"{model.threshold:.2f}" if model.threshold is not None else f"none: {model.why_no_threshold}",
        threshold_note=_threshold_note(model),
        versions=", ".join(f"{name} {version}" for name, version in about.versions.items()) or "unknown",
        changes="\n".join(rows),
        settings=config_text(config),
    )


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
