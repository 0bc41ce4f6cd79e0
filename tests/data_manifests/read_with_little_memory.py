"""Script of `test_bombs`: read a file with limited memory, and print the duration and the error message.

``python read_with_little_memory.py FILE BYTES READER...``
"""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.data_manifests.cohort.participants import read_participant_table
from voxout.data_manifests.errors import UserError, for_terminal
from voxout.data_manifests.images.volume import read_mask, read_volume
from voxout.data_manifests.typed_json import load_json
from voxout.models.tensor_file import opened_tensors
from voxout.pipeline.config.config import load_config
from voxout.pipeline.workflow.records import StageRecord


def read_tensors(path: Path) -> None:
    with opened_tensors(path, "calibration"):
        pass


READERS: dict[str, Callable[[Path], object]] = {
    "read_manifest": read_manifest,
    "read_participant_table": read_participant_table,
    "read_volume": read_volume,
    "read_mask": read_mask,
    "read_tensors": read_tensors,
    "load_json": load_json,
    "load_config": load_config,
    "StageRecord.read": StageRecord.read,
}

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
for name in sys.argv[3:]:
    began = time.monotonic()
    try:
        found = READERS[name](Path(sys.argv[1]))
        message = "" if found is None else f"accepted: {type(found).__name__}"
    except (UserError, ValueError) as error:
        message = for_terminal(str(error))
    print(f"{time.monotonic() - began:.1f} {message[:400]}")
