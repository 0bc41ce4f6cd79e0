"""A throw-away SLURM with one node on this machine, as root, without systemd, cgroups or a database."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue")
_CONF = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
PlugStackConfig=/dev/null
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
ReturnToService=2
KillWait=5
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE DefMemPerCPU=500 State=UP
PartitionName=short Nodes={host} MaxTime=1 State=UP
"""


def is_possible() -> bool:
    """Whether the programs are installed, and may be started."""
    return os.geteuid() == 0 and all(shutil.which(program) for program in PROGRAMS)


@contextmanager
def local_slurm(folder: Path) -> Iterator[Path]:
    """Run a SLURM with all its files in a folder; yield the file that SLURM_CONF has to name."""
    for name in ("spool", "state"):
        (folder / name).mkdir()
    munge = folder / "munge"
    munge.mkdir(mode=0o700)
    (munge / "key").touch(mode=0o600)
    (munge / "key").write_bytes(secrets.token_bytes(128))
    host = socket.gethostname().partition(".")[0]
    gpus = [folder / f"nvidia{number}" for number in (0, 1)]
    for gpu in gpus:  # devices that do nothing, with the names of real ones
        os.mknod(gpu, 0o666 | 0o020000, os.makedev(1, 3))
    conf = folder / "slurm.conf"
    # More cores than there are: the tests' calls sleep.
    conf.write_text(_CONF.format(host=host, folder=folder, ports=_free_ports(2), cpus=os.cpu_count()))
    (folder / "gres.conf").write_text(
        "".join(f"NodeName={host} Name=gpu File={gpu} Flags=nvidia_gpu_env\n" for gpu in gpus)
    )
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    environment = os.environ | {"SLURM_CONF": str(conf)}

    def start(*command: str) -> None:
        subprocess.run(command, check=True, env=environment, capture_output=True, timeout=60)

    try:
        files = [f"--key-file={munge}/key", f"--log-file={munge}/log", f"--seed-file={munge}/seed"]
        start("munged", "--force", *files, f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid")
        start("slurmctld", "-f", str(conf), "-c")
        start("slurmd", "-f", str(conf), "-c")
        give_up = time.monotonic() + 60
        while (
            "idle"
            not in subprocess.run(
                ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, check=False
            ).stdout.split()
        ):
            assert time.monotonic() < give_up, (folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.2)
        yield conf
    finally:
        for name in ("slurmd", "slurmctld", "munged"):
            _stop(folder / f"{name}.pid", name)


def _free_ports(number: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _stop(pid_file: Path, name: str) -> None:
    with suppress(OSError, ValueError):
        process = int(pid_file.read_text())
        # Never another program that has the number by now.
        if Path(f"/proc/{process}/comm").read_text().strip().startswith(name):
            os.kill(process, signal.SIGTERM)
            for _ in range(100):
                os.kill(process, 0)
                time.sleep(0.1)
