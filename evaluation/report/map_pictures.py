"""Pictures of anomaly maps: common colour scale, volumes to draw, and the subject shown first."""

from collections.abc import Sequence

import numpy as np

from ..figures.colour_scale import ColourScale
from ..figures.slices import Head
from .report_inputs import CohortReport, ReportSubject, SubjectImages


def threshold_of(report: CohortReport) -> float | None:
    """Lower end of the colour scale; None without a threshold."""
    if report.threshold is None and report.scores is not None:
        return report.scores.threshold
    return report.threshold


def colour_scale_of(report: CohortReport) -> ColourScale | None:
    """Return the common colour scale of all subjects; None without maps."""
    threshold = threshold_of(report)
    if threshold is not None:
        return ColourScale.at(threshold)
    scored = [s.scores for s in report.subjects if s.scores is not None]
    if scored:
        return ColourScale.of_cohort(scored)
    samples = []
    for subject in report.subjects:
        if subject.images is not None:
            images = subject.images()
            inside = images.brain_mask.voxels if images.brain_mask is not None else np.isfinite(images.map.voxels)
            samples.append(images.map.voxels[inside.astype(bool)][::7])
    return ColourScale.of_maps(samples) if samples else None


def head_of(images: SubjectImages, scale: ColourScale) -> Head:
    """Volumes of a subject, prepared for drawing."""
    return Head.from_volumes(
        images.scan,
        images.map,
        scale,
        brain_mask=images.brain_mask,
        covered=images.covered,
        lesion_mask=images.lesion_mask,
    )


def typical_patient(subjects: Sequence[ReportSubject]) -> tuple[ReportSubject, str] | None:
    """Return the patient with the median average precision (the lower one of an even number), and a caption.

    This avoids a biased choice of the picture at the top of the page.
    """
    ranked = []
    for subject in subjects:
        value = subject.scores.average_precision.value if subject.scores is not None else None
        if value is not None:
            ranked.append((value, subject.key, subject))
    if not ranked:
        return None
    few = {1: "The only patient with lesions", 2: "The patient with the lower average precision"}
    caption = few.get(len(ranked), "The patient with median average precision")
    return sorted(ranked, key=lambda entry: entry[:2])[(len(ranked) - 1) // 2][2], caption
