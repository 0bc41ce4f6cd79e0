"""Jobs for queueing systems that are not installed here: stand-ins for their commands take the scripts."""

import os
import sys

import pytest
from voxout.data_manifests.errors import UserError, for_terminal
from voxout.pipeline.cluster.choice import ClusterChoice
from voxout.pipeline.cluster.queue_systems import SYSTEMS, Queue
from voxout.pipeline.config.cluster_settings import ClusterSettings
from voxout.pipeline.config.config import names_only_cluster, read_settings

pytest.importorskip("dask_jobqueue")
SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub", "sge": "qsub"}
LISTING = {"slurm": "squeue", "pbs": "qstat", "lsf": "bjobs", "sge": "qstat"}
ANSWER = {
    "slurm": "Submitted batch job 4711",
    "pbs": "4711.server.example",
    "lsf": "Job <4711> is submitted to queue <long>.",
    "sge": 'Your job 4711 ("voxout-0") has been submitted',
}
LISTED = {
    "slurm": "4711 PENDING (Resources)\n4712 RUNNING (None)\n",
    "pbs": "\nserver:\nJob ID  Username Queue\n------- --------\n4711.server  me  long\n4712.server  me  long\n",
    "lsf": "4711 PEND Job requirements for reserving resources\n4712 RUN -\n",
    "sge": "job-ID  prior  name\n-------------------\n   4711 0.5 voxout-0 me qw\n   4712 0.5 voxout-1 me r\n",
}
SETTINGS = ClusterSettings(
    partition="long",
    account="lab",
    time="36:30:00",
    cores=2,
    memory_gb=7.5,
    gpus=1,
    directives=("-pe smp 2",),
    prologue=("module load x",),
)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A folder on the path; ``answer(name, text, code)`` makes a command there that keeps its input."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LSF_ENVDIR", str(tmp_path))
    (tmp_path / "lsf.conf").write_text("LSF_UNIT_FOR_LIMITS=MB\n")

    def answer(name, text, code=0):
        program = tmp_path / name
        program.write_text(
            f"#!{sys.executable}\nimport sys\n"
            f"open({str(tmp_path / 'input')!r}, 'w').write(sys.stdin.read())\n"
            f"open({str(tmp_path / 'words')!r}, 'w').write(' '.join(sys.argv[1:]))\n"
            f"print({text!r}, file=sys.stderr if {code} else sys.stdout)\nsys.exit({code})\n"
        )
        program.chmod(0o700)
        return tmp_path

    return answer


@pytest.mark.parametrize(
    ("system", "directives"),
    [
        (
            "slurm",
            {"-J voxout-0", "-p long", "-A lab", "-t 36:30:00", "--cpus-per-task=2", "--mem=7680M", "--gres=gpu:1"},
        ),
        ("pbs", {"-N voxout-0", "-q long", "-A lab", "-l walltime=36:30:00", "-l select=1:ncpus=2:ngpus=1:mem=7680mb"}),
        ("lsf", {"-J voxout-0", "-q long", '-P "lab"', "-W 36:30", "-n 2", '-gpu "num=1"'}),
        ("sge", {"-N voxout-0", "-q long", "-P lab", "-l h_rt=36:30:00", "-l gpu=1"}),
    ],
)
def test_a_job_asks_for_what_the_settings_say(commands, system, directives):
    folder = commands(SUBMIT[system], ANSWER[system])
    assert Queue(system, SETTINGS).submit("voxout-0", ["exec work"], folder / "log") == "4711"
    lines = (folder / "input").read_text().splitlines()
    sign = {"slurm": "#SBATCH ", "pbs": "#PBS ", "lsf": "#BSUB ", "sge": "#$ "}[system]
    found = {line.removeprefix(sign) for line in lines if line.startswith(sign)}
    assert lines[0].startswith("#!") and lines[-3:] == [f"exec >{folder}/log 2>&1", "module load x", "exec work"]
    assert directives | {"-o /dev/null", "-pe smp 2"} <= found


@pytest.mark.parametrize("system", SYSTEMS)
def test_unfinished_jobs(commands, system):
    commands(SUBMIT[system], ANSWER[system])
    commands(LISTING[system], LISTED[system])
    found = Queue(system, SETTINGS).unfinished()
    assert set(found) == {"4711", "4712"}
    if system == "slurm":
        assert found["4711"] == "PENDING (Resources)"


def test_a_system_that_does_not_answer(commands):
    commands("sbatch", "")
    commands("squeue", "slurm_load_jobs error: Unable to contact slurm controller", code=1)
    assert Queue("slurm", SETTINGS).unfinished() is None


def test_a_refusal_is_told_in_the_words_of_the_system(commands):
    folder = commands("qsub", "qsub: Unknown queue", code=170)
    with pytest.raises(UserError) as caught:
        Queue("pbs", SETTINGS).submit("voxout-0", [], folder / "log")
    assert for_terminal(str(caught.value)) == (
        "--cluster pbs: qsub refused a job: qsub: Unknown queue. Correct the settings of cluster (partition, account, "
        "time, memory_gb, cores, gpus, directives)."
    )


def test_what_is_missing_is_told_before_anything_is_submitted(monkeypatch, tmp_path, commands):
    with pytest.raises(UserError, match="--cluster slurm: found --scheduler, too"):
        ClusterChoice("slurm", "tls://node:8786", ClusterSettings())
    commands("qsub", "")
    with pytest.raises(UserError, match="names no parallel environment"):
        ClusterChoice("sge", None, ClusterSettings(cores=2))
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(UserError, match="dask-jobqueue is not installed"):
        ClusterChoice("pbs", None, ClusterSettings())
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="found no command sbatch on this machine"):
        ClusterChoice("slurm", None, ClusterSettings())


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("cluster.time=4h", "Setting cluster.time is '4h', expected hours:minutes:seconds, as in 4:00:00"),
        ("cluster.time=0:10:00", "drain_minutes is 15 and time is 0:10:00, so that a job would begin no subject"),
        ("cluster.partition=a b", "Setting cluster.partition is 'a b'"),
        ("cluster.job=2", "Did you mean cluster.jobs?"),
        ("cluster.gpus=-1", "expected greater than or equal to 0"),
        ('cluster.prologue=["a\\nb"]', "one line of text for each item"),
    ],
)
def test_a_wrong_setting(setting, words):
    with pytest.raises(UserError) as caught:
        read_settings(overrides=[setting])
    assert words in str(caught.value)


def test_settings_of_the_cluster_are_no_settings_of_the_run(tmp_path):
    """A prologue is a program, which is run only if the user names it; a saved file is data."""
    (tmp_path / "site.yaml").write_text("cluster: {jobs: 7, prologue: [module load x]}\n")
    assert names_only_cluster(tmp_path / "site.yaml")
    given = read_settings(tmp_path / "site.yaml")
    assert given.cluster.jobs == 7 and "cluster" not in given.config.model_dump()
    assert read_settings(saved=given).cluster == ClusterSettings()
    (tmp_path / "both.yaml").write_text("seed: 1\ncluster: {jobs: 7}\n")
    assert not names_only_cluster(tmp_path / "both.yaml")
    # The settings of an earlier run stay when the file of the site is named.
    earlier = read_settings(overrides=["seed=5"])
    assert read_settings(tmp_path / "site.yaml", saved=earlier).config.seed == 5
