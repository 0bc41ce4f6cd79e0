"""Log of an output folder."""

import json
import os

import pytest
from voxout.data_manifests.errors import UserError
from voxout.pipeline.workflow.console import Console, duration


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


@pytest.mark.parametrize("first", [1, 6])
def test_lines_of_progress_have_units_and_the_time_left(capsys, monkeypatch, first):
    """A step takes 4 s; an interrupted training goes on at step 6, and the steps before took no time."""
    now = [1000.0]
    monkeypatch.setattr("voxout.pipeline.workflow.console.time.monotonic", lambda: now[0])
    with Console().progress("train", "step") as progress:
        for done in range(first, 41):
            now[0] += 4
            progress(done, 40)
    lines = capsys.readouterr().out.splitlines()
    assert all(" of 40 steps, about " in line for line in lines)
    assert not any(line.startswith("  train: 40 ") for line in lines), "the stage prints its own end"
    shown = {int(line.split()[1]): line for line in lines}
    for done, text in shown.items():
        assert text.endswith(f"about {duration(4 * (40 - done))} left"), text
    assert len(shown) >= 5, "a line every 20 s"
