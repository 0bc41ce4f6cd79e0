"""The stage prepare: head scan to normalised brain on the template grid."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.subject import SubjectRecord
from ...preprocessing.prepared_images import FORMAT
from ...preprocessing.settings import REGISTRATION_SEED
from ..config.config import Config
from ..workflow.origin import Origin
from ..workflow.per_subject import cached, work_by_subject
from ..workflow.records import StageRecord, fingerprint
from ..workflow.runner import Run, Stage, StageResult
from ..workflow.stage_inputs import (
    checked,
    files_of,
    settings_of,
)
from .extract import CHANNEL_SETTINGS


def _prepare_inputs(run: Run) -> dict[str, Any]:
    scans = {f"scans of {s.key}": fingerprint(files_of(s)) for s in checked(run)}
    return scans | _settings_of_prepare(run)


def _prepare(run: Run) -> StageResult:
    inputs = {s.key: files_of(s) | _settings_of_prepare(run) for s in checked(run)}
    return work_by_subject(run, "prepare", prepare_in_worker, inputs, run.out.subject_record, run.config, run.out)


def _settings_of_prepare(run: Run) -> dict[str, Any]:
    settings = settings_of(run, "preprocessing")
    # The intensity scale and the derived maps need the cohort and come later; a prepared scan needs its subject only.
    own = {name: value for name, value in settings.items() if name.removeprefix("settings.") not in CHANNEL_SETTINGS}
    # Under the name that it had while it was the seed of the run, so that scans prepared with seed 0 stay up to date.
    return own | {"the format of prepared images": FORMAT, "settings.seed": REGISTRATION_SEED}


def prepare_in_worker(
    subject: SubjectRecord, inputs: Mapping[str, Any], origin: Origin, config: Config, out: OutputFolder
) -> StageRecord:
    """Prepare one subject: from head scan to normalised brain on the template grid."""

    def work(out: OutputFolder) -> Sequence[str]:
        from ...preprocessing.prepare_subject import prepare_subject

        return prepare_subject(subject, config.preprocessing, out).reasons

    path = out.subject_record(subject)
    return cached("prepare", subject, path, inputs, out, ("prepared",), work, origin=origin, keep_failures=True)


STAGE = Stage("prepare", _prepare_inputs, _prepare, needs=("check",), retry_failed=True)
