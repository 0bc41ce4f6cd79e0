"""Preparation works without a network: all it needs is part of the installed packages."""

import shutil
import subprocess
import sys

import pytest
from voxout.data_manifests.synthetic.phantoms import make_cohort

PREPARE = """
import socket, sys
from pathlib import Path

def blocked(*_, **__):
    raise OSError("the network is disabled")

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, blocked)
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = blocked

from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.preprocessing.prepare_subject import prepare_subject
from voxout.preprocessing.settings import PreprocessingSettings, RegistrationSettings

settings = PreprocessingSettings(spacing_mm=4, registration=RegistrationSettings(transform="affine"))
(subject,) = read_manifest(Path(sys.argv[1]))
print(prepare_subject(subject, settings, OutputFolder(Path(sys.argv[2])), seed=1).brain_method)
"""


@pytest.mark.slow
def test_prepare_without_network(tmp_path):
    """Sockets are blocked; a separate network namespace is used if the system allows it."""
    cohort = make_cohort(tmp_path / "head", controls=1, held_out=0, patients=0, spacing_mm=3.0)
    isolated = [shutil.which("unshare") or "unshare", "--map-root-user", "--net"]
    try:
        subprocess.run([*isolated, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        isolated = []
    command = [*isolated, sys.executable, "-c", PREPARE, str(cohort), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "deepbet\n"), done.stderr
