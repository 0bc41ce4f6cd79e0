"""Script of `test_bombs`: read files with limited memory, and print the CPU time and the error message of each reader.

Each line of standard input is a JSON list: file, bytes, readers. Each file is read in a process of its own, a copy of
this one, whose exit code ends the answer.
"""

import json
import os
import resource
import signal
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


def read(path: Path, room_bytes: int, names: list[str]) -> None:
    signal.alarm(300)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room_bytes,) * 2)
    for name in names:
        began = time.process_time()
        try:
            found = READERS[name](path)
            message = "" if found is None else f"accepted: {type(found).__name__}"
        except (UserError, ValueError) as error:
            message = for_terminal(str(error))
        print(f"{time.process_time() - began:.1f} {message[:400]}")


for line in sys.stdin:
    file, room, *readers = json.loads(line)
    if os.fork() == 0:
        read(Path(file), room, readers)
        break
    print("exit", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
