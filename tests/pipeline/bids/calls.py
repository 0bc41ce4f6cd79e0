"""Calls of `voxout-bids` within the test process, and what is checked of datasets."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from voxout.pipeline.cli.bids_app import main


def bids(*words: object) -> subprocess.CompletedProcess[str]:
    """Give a command within this process."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as errors:
        code = main([*map(str, words), "--device", "cpu", "--n-cpus", "2"])
    return subprocess.CompletedProcess(words, code, out.getvalue(), errors.getvalue())


def validate(folder: Path) -> dict[str, list[str]]:
    """Return the errors of the BIDS validator: files by code."""
    pytest.importorskip("bids_validator_deno")
    command = [sys.executable, "-c", "from bids_validator_deno import cli; cli()", str(folder), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [issue for issue in json.loads(done.stdout)["issues"]["issues"] if issue.get("severity") == "error"]
    errors: dict[str, list[str]] = {}
    for issue in found:
        errors.setdefault(issue["code"], []).append(issue.get("location", ""))
    assert (done.returncode == 0) == (not errors), done.stderr
    return errors


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of all files and folders; a file written for a moment changes that of its folder."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}
