"""What preparing and mapping do for one subject; made to run in a worker."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data_manifests.derivatives import OutputFolder
from ..data_manifests.subject import SubjectRecord
from .config import Config
from .records import StageRecord, clear
from .subject_work import recorded


def prepare(subject: SubjectRecord, inputs: Mapping[str, Any], config: Config, out: OutputFolder) -> StageRecord:
    """Head scan to normalised brain on the template grid."""

    def work() -> tuple[Sequence[Path], Sequence[str]]:
        from ..preprocessing.prepare_subject import prepare_subject

        # What an earlier manifest or other settings made here must not pass for this one's.
        clear(out.subject_files(subject))
        prepared = prepare_subject(subject, config.preprocessing, out, seed=config.seed)
        return out.subject_files(subject), prepared.quality.reasons

    return recorded("prepare", subject, out.subject_record(subject), inputs, out, work)


def write_maps(
    subject: SubjectRecord,
    inputs: Mapping[str, Any],
    config: Config,
    out: OutputFolder,
    model: OutputFolder,
    device: str,
) -> StageRecord:
    """Prepared brain to anomaly maps, on the template grid and in native space."""

    def work() -> tuple[Sequence[Path], Sequence[str]]:
        from .detection import map_subject

        clear([out.map_folder(subject)])
        return map_subject(subject, config, out, model, device)

    return recorded("map", subject, out.map_record(subject), inputs, out, work)
