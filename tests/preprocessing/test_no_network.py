"""A node of a hospital has no internet: whatever the preparation needs lies in the installed packages."""

import shutil
import subprocess
import sys

from voxout.data_manifests.synthetic.phantoms import make_cohort

PREPARE = """
import socket, sys
from pathlib import Path

def refused(*_, **__):
    raise OSError("the network is cut off")

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refused)
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refused

from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.preprocessing.prepare_subject import prepare_subject
from voxout.preprocessing.settings import PreprocessingSettings, RegistrationSettings

settings = PreprocessingSettings(spacing_mm=4, registration=RegistrationSettings(transform="affine"))
(subject,) = read_manifest(Path(sys.argv[1]))
print(prepare_subject(subject, settings, OutputFolder(Path(sys.argv[2])), seed=1).quality.brain_method)
"""


def test_a_whole_head_is_prepared_with_the_network_cut(tmp_path):
    """In a network namespace of its own where the system allows one; with sockets blocked anyhow."""
    cohort = make_cohort(tmp_path / "head", controls=1, held_out=0, patients=0, spacing_mm=3.0)
    apart = [shutil.which("unshare") or "unshare", "--map-root-user", "--net"]
    try:
        subprocess.run([*apart, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        apart = []
    command = [*apart, sys.executable, "-c", PREPARE, str(cohort), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "deepbet\n"), done.stderr
