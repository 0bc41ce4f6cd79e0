"""Log of an output folder."""

import json
import os

import pytest
from voxout.data_manifests.errors import UserError
from voxout.pipeline.workflow.console import Console


def test_lines_are_added_to_the_log(tmp_path):
    log = tmp_path / "log.jsonl"
    for word in ("one", "two"):
        Console(log, verbosity=-1).say(word)
    assert [json.loads(line)["message"] for line in log.read_text().splitlines()] == ["one", "two"]


@pytest.mark.parametrize("kind", ["link", "pipe", "pipe with a reader"])
def test_a_log_that_is_no_regular_file_is_refused(tmp_path, kind):
    log, other = tmp_path / "log.jsonl", tmp_path / "other.log"
    other.write_text("precious")
    if kind == "link":
        log.symlink_to(other)
    else:
        os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK) if kind == "pipe with a reader" else None
    with pytest.raises(UserError, match="is a link, a pipe or a folder"):
        Console(log)
    if reader is not None:
        os.close(reader)
    assert other.read_text() == "precious"
