"""The page of one subject: what a worker of the stage report writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

import yaml

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.images.volume import read_mask, read_volume
from ...evaluation.metrics.fdr import Discovery
from ...evaluation.report.cohort_page import (
    ReportSubject,
    SubjectImages,
)
from ...evaluation.report.report_inputs import QualityNumber, ScoredMap, SubjectReport, Threshold
from ...evaluation.report.subject_page import write_subject_page
from ...evaluation.scoring.score_cohort import CohortScores, subject_row
from ...evaluation.scoring.subject_scores import SubjectScores
from ..config.config import Config
from ..model.map_files import MapContext, write_clusters
from ..workflow.per_subject import cached
from ..workflow.records import StageRecord
from .score import maps_and_masks, prepared_lesions

if TYPE_CHECKING:
    from ...preprocessing.quality.verdict import Quality


@dataclass(frozen=True)
class Shared:
    """Inputs that all pages of a cohort share; small, since they are sent to every worker.

    Attributes
    ----------
    threshold : Threshold
    roles : mapping from subject key to its role, such as "held-out control"
    versions : mapping of str to str
    model : str
        Identity of the fit of the model.
    """

    threshold: Threshold
    roles: Mapping[str, str]
    versions: Mapping[str, str]
    model: str

    @classmethod
    def from_scores(
        cls, scores: CohortScores, roles: Mapping[str, str], versions: Mapping[str, str], model: str
    ) -> "Shared":
        """Collect the inputs, with the threshold of the cohort's z-maps."""
        return cls(Threshold.of_z_maps(scores), roles, versions, model)


def write_page(
    subject: SubjectRecord, inputs: Mapping[str, Any], config: Config, out: OutputFolder, shared: Shared
) -> StageRecord:
    """Write the page of a subject from its maps, scores and quality, and its clusters; runs in a worker."""

    def work(out: OutputFolder) -> Sequence[str]:
        _write_page(subject, config, out, shared)
        return ()

    return cached("report", subject, out.page_record(subject), inputs, out, ("pages", "cluster_maps"), work)


def _write_page(subject: SubjectRecord, config: Config, out: OutputFolder, shared: Shared) -> None:
    """Write one subject's page and the table of its clusters, and the numbered clusters beside its maps."""
    from ...preprocessing.registration.template import load_template
    from ...preprocessing.registration.template_transform import TemplateTransform

    scores = SubjectScores.load(out.subject_scores(subject.key))
    space = config.evaluation.space
    map, evaluation_mask, truth, covered = maps_and_masks(subject, out, space)
    transform = TemplateTransform.load(out.transform_folder(subject))
    template = load_template(config.preprocessing.spacing_mm)
    page = out.subject_page(subject)
    report = SubjectReport(
        subject=report_subject(subject, shared.roles[subject.key], out, config, scores),
        created=datetime.now().astimezone(),
        scored=ScoredMap(
            map,
            evaluation_mask.with_voxels(evaluation_mask.voxels & covered.voxels),
            transform.points_to_template if space == "native" else lambda points: points,
            truth,
        ),
        space=space,
        threshold=shared.threshold,
        smallest_cluster_mm3=config.evaluation.smallest_cluster_mm3,
        grey=template.grey,
        white=template.white,
        jacobian=transform.jacobian(),
        discovery=Discovery.from_z(map.voxels[covered.voxels]),
        row=subject_row(scores, shared.threshold.value),
        cohort_page="../" + out.report.name,
        summary=run_summary(config),
        settings_text=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
        versions=shared.versions,
    )
    found = write_subject_page(page, report, table=out.subject_clusters(subject))
    context = MapContext(config, shared.model, shared.threshold.value, shared.threshold.origin)
    write_clusters(out.cluster_labels(subject, space), found.labels, found.clusters, found.rows, context)


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
        lesion_mask=prepared_lesions(subject, out),
    )
