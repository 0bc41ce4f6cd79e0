"""Work of the stages prepare and map for one subject, run in worker processes."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ..config.config import Config
from ..workflow.earlier_subjects import about_subject
from ..workflow.per_subject import cached
from ..workflow.records import StageRecord


def prepare(subject: SubjectRecord, inputs: Mapping[str, Any], config: Config, out: OutputFolder) -> StageRecord:
    """Prepare one subject: from head scan to normalised brain on the template grid."""

    def work(out: OutputFolder) -> Sequence[str]:
        from ...preprocessing.prepare_subject import prepare_subject

        return prepare_subject(subject, config.preprocessing, out, seed=config.seed).quality.reasons

    path = out.subject_record(subject)
    return cached("prepare", subject, path, inputs, out, ("prepared",), work, keep_failures=True)


def write_maps(
    subject: SubjectRecord,
    inputs: Mapping[str, Any],
    config: Config,
    out: OutputFolder,
    model: OutputFolder,
    device: str,
) -> StageRecord:
    """Write the anomaly maps of one prepared subject, on the template grid and in native space."""

    def work(out: OutputFolder) -> Sequence[str]:
        from .detection import map_subject

        return map_subject(subject, config, out, model, device)[1]

    return cached("map", subject, out.map_record(subject), inputs, out, ("maps",), work, about=about_subject(subject))
