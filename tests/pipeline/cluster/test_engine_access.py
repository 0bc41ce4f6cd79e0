"""Other users of the machine have no access to ports, keys and temporary files of the engine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from voxout.data_manifests.atomic_write import atomic_write
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.pipeline.workflow.engine import Engine

SUBJECT = SubjectRecord(subject_id="01", group="control", images={})

INTRUDER = """
import os, socket, ssl, sys
from distributed import Client
from distributed.security import Security

Client(processes=False, dashboard_address=None, set_as_default=False).close()  # imports what is imported late
# Only now, since another user may not be able to read this Python.
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
os.environ["HOME"] = "/nonexistent"
for port in map(int, sys.argv[3:]):
    socket.create_connection(("127.0.0.1", port), 5).close()  # the port is open: later refusals are not network errors
    for scheme, security in (("tcp", None), ("tls", Security.temporary())):
        try:
            Client(f"{scheme}://127.0.0.1:{port}", security=security, timeout=3)
        except (OSError, ValueError, RuntimeError):
            print("refused")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 5)) as talk:
            talk.settimeout(5)
            talk.sendall(b"x" * 64)  # TLS 1.3 refuses a missing certificate at the first read
            print("answered" if talk.recv(64) else "refused")
    except OSError:
        print("refused")
for look, path in ((os.listdir, sys.argv[1]), *((open, path) for path in sys.argv[2].split(":"))):
    try:
        look(path)
    except PermissionError:
        print("refused")
"""


def _listening(processes):
    """Return the ports at which these processes listen, as (table, address, port)."""
    inodes = set()
    for process in processes:
        for link in Path(f"/proc/{process}/fd").iterdir():
            name = os.readlink(link) if link.is_symlink() else ""  # that of the folder itself is closed by now
            if name.startswith("socket:["):
                inodes.add(name[8:-1])
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] in inodes and (words[3] == "0A" or table.startswith("udp")):
                address, port = words[1].split(":")
                found.add((table, address, int(port, 16)))
    return found


@pytest.fixture(scope="module")
def at_work(tmp_path_factory):
    def key_of(subject):
        return subject.key

    def key_of_task(subject):
        from distributed import get_worker

        return str(get_worker().get_current_task())

    # All parent folders are open to others, so that only the permissions of the engine's folder count.
    scratch = tmp_path_factory.mktemp("scratch")
    for folder in (scratch, *scratch.parents):
        if folder.stat().st_uid == os.getuid() and folder.name.startswith(("pytest", "scratch")):
            folder.chmod(0o755)
    before = _listening([os.getpid()])
    others = {child.pid for child in psutil.Process().children(recursive=True)}
    with Engine(2, scratch) as engine:
        assert engine.map(key_of, [(SUBJECT,)], stage="test").results == {"sub-01": "sub-01"}
        workers = [child.pid for child in psutil.Process().children(recursive=True) if child.pid not in others]
        task = engine.map(key_of_task, [(SUBJECT,)], stage="test").results["sub-01"]
        yield scratch, _listening([os.getpid(), *workers]) - before, workers, task


def test_all_ports_are_on_loopback(at_work):
    _, ports, workers, _ = at_work
    loopback = socket.inet_aton("127.0.0.1")[::-1].hex().upper()
    assert len(workers) == 2
    # One for the scheduler and one per worker; no web server.
    assert len(ports) == 3 and {(table, address) for table, address, _ in ports} == {("tcp", loopback)}


def test_no_key_is_in_a_file(at_work):
    """Some file systems show all files to all users."""
    scratch, _, _, _ = at_work
    for path in scratch.rglob("*"):
        assert not path.is_file() or b"PRIVATE KEY" not in path.read_bytes()
    assert [folder.stat().st_mode & 0o777 for folder in scratch.iterdir()] == [0o700]


def test_names_of_tasks_hold_no_id(at_work):
    """Dask writes them to its logs."""
    *_, task = at_work
    assert task.startswith("_guarded-") and "sub-01" not in task


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser may try as another user")
def test_another_user_is_refused_everywhere(at_work):
    scratch, ports, workers, _ = at_work
    (folder,) = scratch.iterdir()
    # The keys, as open files of all processes of the cluster.
    keys = [
        str(link)
        for process in (os.getpid(), *workers)
        for link in Path(f"/proc/{process}/fd").iterdir()
        if link.is_symlink() and os.readlink(link).startswith("/memfd:keys")
    ]
    assert len(keys) >= 3
    numbers = [str(port) for _, _, port in sorted(ports)]
    done = subprocess.run(
        [sys.executable, "-c", INTRUDER, str(folder), ":".join(keys), *numbers],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"] * (3 * len(numbers) + 1 + len(keys))


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o077, 0o600, 0o700), (0o022, 0o644, 0o755)])
def test_outputs_follow_the_umask(tmp_path, umask, file, folder):
    """As for other programs, the umask decides who can read results."""

    def write(subject, out, atomic_write):
        from pathlib import Path

        path = Path(out) / "maps" / f"{subject.key}.json"
        path.parent.mkdir()
        with atomic_write(path) as temporary:
            temporary.write_text("{}")

    before = os.umask(umask)
    try:
        with Engine(1) as engine:
            outcome = engine.map(write, [(SUBJECT, str(tmp_path), atomic_write)], stage="test")
    finally:
        os.umask(before)
    assert outcome.failures == ()
    assert (tmp_path / "maps").stat().st_mode & 0o777 == folder
    assert (tmp_path / "maps" / "sub-01.json").stat().st_mode & 0o777 == file
