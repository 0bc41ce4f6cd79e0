"""The page of one subject, from what the stages left of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml

from ..data_manifests.atomic import written_whole
from ..data_manifests.derivatives import OutputFolder
from ..data_manifests.subject import SubjectRecord
from ..evaluation.colour_scale import ColourScale
from ..evaluation.report_inputs import ScoredMap, SubjectReport, Threshold
from ..evaluation.score_cohort import CohortScores, subject_row
from ..evaluation.score_subject import SubjectScores
from ..evaluation.subject_page import write_subject_page
from .assessment import maps_and_masks, report_subject, run_summary
from .config import Config


@dataclass(frozen=True)
class Shared:
    """What all pages of a cohort have in common; small, since it travels to every worker.

    Attributes
    ----------
    scale : ColourScale
    threshold : Threshold
    roles : mapping from subject key to what the subject is here for, in words
    versions : mapping of str to str
    """

    scale: ColourScale
    threshold: Threshold
    roles: Mapping[str, str]
    versions: Mapping[str, str]

    @classmethod
    def of(cls, scores: CohortScores, roles: Mapping[str, str], versions: Mapping[str, str]) -> "Shared":
        scale = ColourScale.of_cohort(scores.subjects)
        if scores.threshold is not None:
            allowed = scores.settings.false_clusters
            threshold = Threshold(
                scores.threshold,
                f"set on healthy scans alone, of which each shows at most {allowed:g} such "
                f"cluster{'s' if allowed != 1 else ''} on average",
            )
        else:
            threshold = Threshold(
                scale.high,
                "0.03 % of all voxels of this cohort lie above it; no healthy scan was there to set it on",
            )
        return cls(scale, threshold, roles, versions)


def write_page(subject: SubjectRecord, config: Config, out: OutputFolder, shared: Shared) -> list[Path]:
    """Write one subject's page, and the table of its clusters.

    Returns
    -------
    list of Path
        The files written.
    """
    from ..preprocessing.template import load_template
    from ..preprocessing.template_transform import TemplateTransform

    scores = SubjectScores.load(out.subject_scores(subject.key))
    space = config.evaluation.space
    map, evaluation_mask, truth, covered = maps_and_masks(subject, out, space)
    transform = TemplateTransform.load(out.transform_folder(subject)) if space == "native" else None
    template = load_template(config.preprocessing.spacing_mm)
    page = out.subject_page(subject)
    report = SubjectReport(
        subject=report_subject(subject, shared.roles[subject.key], out, config, scores),
        created=datetime.now().astimezone(),
        scored=ScoredMap(
            map,
            evaluation_mask.with_voxels(evaluation_mask.voxels & covered.voxels),
            transform.points_to_template if transform else lambda points: points,
            truth,
        ),
        space=space,
        threshold=shared.threshold,
        smallest_cluster_mm3=config.evaluation.smallest_cluster_mm3,
        scale=shared.scale,
        grey=template.grey,
        white=template.white,
        row=subject_row(scores, shared.threshold.value),
        cohort_page="../" + out.report.name,
        summary=run_summary(config),
        settings_text=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
        versions=shared.versions,
    )
    return write_subject_page(page, report, table=out.subject_clusters(subject))


def gather_clusters(out: OutputFolder, subjects: Sequence[SubjectRecord]) -> None:
    """Put the clusters of all subjects in one table."""
    tables = [out.subject_clusters(subject).read_text(encoding="utf-8").splitlines(True) for subject in subjects]
    out.clusters.unlink(missing_ok=True)
    if tables:
        with written_whole(out.clusters) as temporary:
            temporary.write_text("".join([*tables[0], *(line for table in tables[1:] for line in table[1:])]))
