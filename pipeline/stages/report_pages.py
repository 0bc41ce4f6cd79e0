"""The page of one subject: what a worker of the stage report writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.images.grid import Grid
from ...data_manifests.images.volume import Volume, read_map, read_mask, read_volume
from ...data_manifests.open_file import is_readable
from ...data_manifests.terms import BIDS_SUFFIX
from ...evaluation.metrics.fdr import Discovery
from ...evaluation.report.cluster_table import count_clusters, read_clusters
from ...evaluation.report.cohort_page import (
    ReportSubject,
    SubjectImages,
)
from ...evaluation.report.report_inputs import Findings, OwnScan, QualityNumber, ScoredMap, SubjectReport, Threshold
from ...evaluation.report.subject_page import write_subject_page
from ...evaluation.scoring.score_cohort import CohortScores, subject_row
from ...evaluation.scoring.subject_scores import SubjectScores
from ..config.config import Config
from ..model.map_files import MapContext, of_labels, of_scanner, read_latent_distance, write_clusters
from ..model.matched_model import MATCHED, matched_sentence
from ..model.model_files import adapted_on, labelled_patients
from ..workflow.origin import Origin
from ..workflow.per_subject import cached
from ..workflow.records import StageRecord
from ..workflow.scan_places import scans_of_earlier_call
from ..workflow.stage_inputs import fit_identity
from .score import maps_and_masks, prepared_lesions

if TYPE_CHECKING:
    from ...preprocessing.quality.verdict import Quality
    from ...preprocessing.registration.template_transform import TemplateTransform


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
    adapted_on, labelled_patients : int or None
        Number of healthy scans of another scanner, and of labelled patients, that the model was adapted to; None if it
        was not.
    """

    threshold: Threshold
    roles: Mapping[str, str]
    versions: Mapping[str, str]
    model: str
    adapted_on: int | None = None
    labelled_patients: int | None = None

    @classmethod
    def from_scores(
        cls, scores: CohortScores, roles: Mapping[str, str], versions: Mapping[str, str], model: OutputFolder
    ) -> "Shared":
        """Collect the inputs, with the threshold of the cohort's z-maps."""
        adapted = adapted_on(model), labelled_patients(model)
        return cls(Threshold.of_z_maps(scores), roles, versions, fit_identity(model), *adapted)


def write_page(
    subject: SubjectRecord,
    inputs: Mapping[str, Any],
    origin: Origin,
    config: Config,
    out: OutputFolder,
    shared: Shared,
) -> StageRecord:
    """Write the page of a subject from its maps, scores and quality, and its clusters; runs in a worker."""

    def work(out: OutputFolder) -> Sequence[str]:
        _write_page(subject, origin, config, out, shared)
        return ()

    path, parts = out.page_record(subject), ("pages", "cluster_maps")
    return cached("report", subject, path, inputs, out, parts, work, origin=origin)


def _write_page(subject: SubjectRecord, origin: Origin, config: Config, out: OutputFolder, shared: Shared) -> None:
    """Write one subject's page and the table of its clusters, and the numbered clusters beside its maps."""
    from ...preprocessing.registration.template import load_template
    from ...preprocessing.registration.template_transform import TemplateTransform

    why_no_scan = ""
    if not subject.images:  # of an earlier call
        images, why_no_scan = scans_of_earlier_call(out, subject)
        subject = replace(subject, images=images)
    scores = SubjectScores.load(out.subject_scores(subject.key))
    space = config.evaluation.space
    map, evaluation_mask, truth, covered = maps_and_masks(subject, out, space)
    transform = TemplateTransform.load(out.transform_folder(subject))
    template = load_template(config.preprocessing.spacing_mm)
    page = out.subject_page(subject)
    mapped = StageRecord.read(out.map_record(subject))
    matched = mapped.about.get(MATCHED, {}) if mapped else {}
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
        own_scan=own_scan(subject, out, config, transform),
        why_no_scan=why_no_scan or "The scan could not be read",
        jacobian=transform.jacobian(),
        discovery=Discovery.from_z(map.voxels[covered.voxels]),
        row=subject_row(scores, shared.threshold.value),
        latent_distance=read_latent_distance(out.template_map(subject)),
        cohort_page="../" + out.report.name,
        matched=matched_sentence(matched) if matched else "",
        summary=run_summary(config, shared.adapted_on, shared.labelled_patients),
        settings_text=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
        versions=shared.versions,
    )
    found = write_subject_page(page, report, table=out.subject_clusters(subject))
    context = MapContext(
        config,
        shared.model,
        shared.threshold.value,
        shared.threshold.origin,
        shared.adapted_on,
        shared.labelled_patients,
        origin,
        mapped.scans if mapped else {},
        found.relation,
        report.subject.quality_verdict,
        report.subject.quality_reasons,
        matched=matched,
    )
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
        findings=_findings(out.subject_clusters(subject)),
    )


def _findings(table: Path) -> Findings | None:
    """Count the findings of a subject's page by the table beside it; None without a table."""
    if not table.is_file():
        return None
    rows = read_clusters(table)
    return Findings(count_clusters(rows), len(rows), sum(float(row["volume_mm3"]) for row in rows) / 1000)


def _quality_numbers(quality: "Quality") -> tuple[QualityNumber, ...]:
    from ...preprocessing.quality.metrics import LABELS

    values = {name: getattr(quality, name) for name in LABELS}
    return tuple(
        QualityNumber(name, LABELS[name], value if isfinite(value) else None, name in quality.unusual)
        for name, value in values.items()
    )


def run_summary(config: Config, adapted_on: int | None = None, labelled_patients: int | None = None) -> dict[str, str]:
    """Return the main settings, as shown at the top of the pages, and what the model was adapted to."""
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
    if adapted_on is not None:
        summary["Model adapted to"] = of_scanner(adapted_on)
    if labelled_patients is not None:
        summary["Scorers combined as learnt from"] = of_labels(labelled_patients)
    return summary | {
        "Scored in": f"{config.evaluation.space} space, inside the brain mask",
    }


def _images(subject: SubjectRecord, out: OutputFolder, config: Config) -> SubjectImages:
    # On the template grid, slices of different subjects show the same anatomy.
    modalities = config.preprocessing.modalities
    names = [BIDS_SUFFIX[modality] for modality in modalities]
    scans = [read_volume(out.prepared_image(subject, modality)) for modality in modalities]
    return SubjectImages(
        scan=scans[0],
        map=read_volume(out.template_map(subject)),
        brain_mask=read_mask(out.prepared_brain_mask(subject)),
        covered=read_mask(out.template_coverage(subject)),
        lesion_mask=prepared_lesions(subject, out),
        name=names[0],
        others=dict(zip(names[1:], scans[1:], strict=True)),
    )


def own_scan(
    subject: SubjectRecord, out: OutputFolder, config: Config, transform: "TemplateTransform"
) -> OwnScan | None:
    """Read the subject's scans as they were given.

    None if the T1w cannot be read now, as from a drive that is gone, or is not known (see `scans_of_earlier_call`).
    """
    if "t1w" not in subject.images or not is_readable(subject.images["t1w"]):
        return None
    from ...preprocessing.registration.coregistration import UNMOVED, Alignment
    from ...preprocessing.registration.resampling import ras_affine, resample

    whole_head = config.evaluation.page_scan == "head"
    brain = read_mask(out.native_brain_mask(subject))
    scans: dict[str, Volume] = {}
    for modality in dict.fromkeys(("t1w", *config.preprocessing.modalities)):
        path = subject.images.get(modality)
        if path is None or not is_readable(path):
            continue
        scan, to_scan = read_volume(path), UNMOVED.transform
        if modality != "t1w":
            to_scan = Alignment.load(out.alignment(subject, modality)).transform
        if not whole_head:
            inside = brain if modality == "t1w" else resample(brain, scan.grid, to_scan.GetInverse(), "linear")
            scan = scan.with_voxels(np.where(inside.voxels, scan.voxels, 0))
        # The scan is moved by its header, so that it is not interpolated.
        moved = Grid(scan.grid.size_vox, np.linalg.inv(ras_affine(to_scan)) @ scan.affine)
        scans[BIDS_SUFFIX[modality]] = scan if modality == "t1w" else Volume(scan.voxels, moved)
    name, *others = scans
    images = SubjectImages(
        scan=scans[name],
        map=read_map(out.native_map(subject)),
        brain_mask=brain,
        covered=read_mask(out.native_coverage(subject)),
        lesion_mask=read_mask(out.native_lesion_mask(subject)) if subject.lesion_mask else None,
        name=name,
        others={other: scans[other] for other in others},
    )
    return OwnScan(images, transform.points_to_native, whole_head)
