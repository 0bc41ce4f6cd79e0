"""Messages and exit codes of voxout for invalid input and system errors.

    python benchmarks/faults.py --faults FOLDER --out /tmp/faults [--demo DEMO]

FOLDER holds small generators, ``NAME.py FOLDER``, each of which creates inputs with one kind of fault. A case is a
command on such inputs, its expected exit code, and patterns that its output must or must not match. With ``--demo``,
the folder created by ``voxout demo``, the cases that need a finished run are included; some need root. The table is
printed and saved as OUT/table.md, the output of the commands in OUT/said.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SLOWEST_S = 900


@dataclass(frozen=True)
class Case:
    """A command, run by bash in the folder that a generator created.

    Attributes
    ----------
    generator : str
    name : str
    command : str
        ``voxout`` is the one of this installation.
    code : int
        Expected exit code.
    says : tuple of str
        Regular expressions that the output must match.
    lacks : tuple of str
        Regular expressions that the output must not match, in addition to a traceback.
    """

    generator: str
    name: str
    command: str
    code: int
    says: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


def _check(generator: str, table: str, code: int, *says: str, more: str = "") -> Case:
    out = re.sub(r"\W", "_", table)
    return Case(
        generator, f"{table} {more}".strip(), f"voxout check {table} out_{out} --preset fast {more}", code, says
    )


def _score(generator: str, maps: str, code: int, *says: str, lacks: tuple[str, ...] = ()) -> Case:
    command = (
        f"voxout evaluate --maps {maps} --masks masks --brain-masks brains --healthy 'control*' --out scores_{maps}"
    )
    return Case(generator, maps, command, code, says, lacks)


_METHOD = "--set preprocessing.brain_extraction.method"

CASES = (
    _check("bids_masks_without_session", "bids", 0, r"5 controls .* 1 patient", more=f"{_METHOD}=given"),
    _check("bids_patients_as_controls", "case", 2, "PT01"),
    _check("bids_patients_as_controls", "diagnosis_for_group", 2, "diagnosis"),
    _check("bids_patients_as_controls", "excel_ids", 2, "sub-006"),
    _check("bids_patients_as_controls", "unpadded_ids", 2, "sub-006"),
    *(
        _check("bids_patients_as_controls", name, 0, r"5 controls .* 1 patient", "patient because .*sub-006")
        for name in ("derivatives_one_deeper", "mask_as_dseg", "mask_as_roi", "mask_folder_is_a_link")
    ),
    _check("bids_patients_as_controls", "table_not_fetched", 2, "participants.tsv"),
    _check("check_passes_prepare_refuses", "cohort.csv", 3, "offset", "sub-z", "sub-mask", "sub-gone", "sub-fsl"),
    _check("check_passes_prepare_refuses", "cohort.csv", 2, "brain mask", more=f"{_METHOD}=given"),
    _check("check_passes_prepare_refuses", "cohort.csv", 2, "HD-BET", more=f"{_METHOD}=hdbet"),
    _check(
        "check_passes_prepare_refuses",
        "cohort.csv",
        2,
        "no-such-program",
        more=f"{_METHOD}=command --set 'preprocessing.brain_extraction.command=no-such-program {{image}} {{mask}}'",
    ),
    _check("manifest_tables", "float_ids.csv", 2, r"Write 1\."),
    _check("manifest_tables", "sep_line.csv", 0),
    _check("manifest_tables", "accent.csv", 0),
    _check("manifest_tables", "date_id.csv", 2, "date"),
    Case("no_flock", "no locks", "bash reproduce.sh", 0, ("two runs|at once|lock",)),
    Case(
        "phi_in_failures",
        "names in what is kept",
        "voxout check cohort.csv out --preset fast > /dev/null; test -s out/failures.csv && ! grep -r DOE out",
        0,
    ),
    _score("score_links", "maps", 3, "left out"),
    _score("score_segmentations", "binary", 0, "two values", lacks=("Lesions found[^0-9]*0 ", "not defined")),
    _score("score_segmentations", "sparse", 0, lacks=("not defined",)),
    _score("score_segmentations", "binary_noisy", 0, "two values"),
    Case("set_not_yaml", "--set", "voxout check cohort.csv out --set 'preprocessing.modalities=[t1w,flair'", 2),
    Case(
        "terminated_run",
        "SIGTERM while a site's program runs",
        # `setsid` starts the run in a new process group, as a scheduler does.
        """printf '#!/bin/bash\\nsleep 917 &\\nexec sleep 917\\n' > slow.sh; chmod +x slow.sh
        setsid voxout run cohort.csv out --preset fast --jobs 2 --set preprocessing.brain_extraction.method=command \
          --set "preprocessing.brain_extraction.command=$PWD/slow.sh {image} {mask}" & run=$!
        for n in $(seq 90); do sleep 1; pgrep -fx 'sleep 917' > /dev/null && break; done
        kill -TERM $run
        timeout 10 tail --pid=$run -f /dev/null || echo STILL-RUNNING; wait $run; echo code=$?
        sleep 1; pgrep -fx 'sleep 917' && echo ORPHANS; ls -A out; tail -1 out/log.jsonl""",
        0,
        ("interrupted", "code=143"),
        ("ORPHANS", "STILL-RUNNING", r"\.scratch"),
    ),
    _check("tilde_path", "unknown_user.csv", 2, "nosuchuser"),
    _check("tilde_path", "office_lock_file.csv", 3, "no such file"),
    Case(
        "tilde_path",
        "no HOME, no passwd entry",
        "chmod a+rwx .; unset HOME; setpriv --reuid=4711 --clear-groups voxout check no_home.csv out --preset fast",
        2,
        ("home",),
    ),
    _check("unfetched_files", "cohort.csv", 3, "datalad get", "git lfs pull"),
    _check("vox_offset_zero", "cohort.csv", 3, "vox_offset"),
    Case(
        "readonly_install_no_home",
        "read-only package, no home",
        """unshare -m bash -c 'mount --bind "$PACKAGE" "$PACKAGE"; mount -o remount,ro,bind "$PACKAGE"
        env -u NUMBA_CACHE_DIR HOME=/nonexistent voxout evaluate --maps maps --masks masks --brain-masks brains \
          --healthy "control*" --out scores'""",
        0,
    ),
    Case(
        "disk_full",
        "score",
        """mkdir -p t; unshare -m bash -c 'mount -t tmpfs -o size=24k none t
        voxout evaluate --maps maps --masks masks --brain-masks brains --healthy "control*" --out t/s'""",
        2,
        ("no space left",),
    ),
    Case(
        "disk_full",
        "extract",
        """mkdir -p t; unshare -m bash -c 'mount -t tmpfs -o size=2g none t; cp -r "$DEMO"/run t/run
        rm -rf t/run/patches t/run/latents t/run/detectors t/run/report t/run/.building
        mount -o remount,size=$(( $(du -sm t/run | cut -f1) + 3 ))m t
        voxout extract "$DEMO"/cohort/cohort.csv t/run; code=$?
        mount -o remount,size=2g t; voxout extract -q "$DEMO"/cohort/cohort.csv t/run || echo AGAIN-FAILED
        ls -A t/run/patches t/run; exit $code'""",
        2,
        ("no space left",),
        ("AGAIN-FAILED", r"\.\d+-volumes", r"\.building"),
    ),
    Case(
        "disk_full",
        "prepare",
        """mkdir -p t; unshare -m bash -c 'mount -t tmpfs -o size=2g none t
        voxout check -q "$DEMO"/cohort/cohort.csv t/run --preset demo
        mount -o remount,size=$(( $(du -sk t | cut -f1) + 250 ))k t
        voxout prepare "$DEMO"/cohort/cohort.csv t/run --subjects control001 --jobs 1'""",
        2,
        ("no space left",),
        ("Look at the scan",),
    ),
    *(
        Case(
            "refused_setting_deletes_model",
            f"{stage} {setting}",
            f'cp -r "$DEMO"/run {stage}; find {stage} -type f ! -name log.jsonl ! -path "*/records/check.json" '
            f'-exec sha256sum {{}} + > before; voxout {stage} "$DEMO"/cohort/cohort.csv {stage} {setting}; code=$?; '
            "sha256sum --quiet -c before || echo CHANGED; exit $code",
            2,
            (),
            ("CHANGED",),
        )
        for stage, setting in (
            ("run", "--set 'models.ensemble.covariates=[sex]'"),
            ("fit", "--set 'models.ensemble.covariates=[sex]'"),
            ("report", "--runs x=/nonexistent"),
        )
    ),
    Case(
        "native_volumes",
        "labels beyond 2^24",
        'voxout native "$DEMO"/run sub-patient001 atlas.nii.gz native.nii.gz --labels; code=$?; python -c '
        '"import nibabel, numpy; v = numpy.asarray(nibabel.load(\\"native.nii.gz\\").dataobj); '
        'print(v.dtype, *numpy.unique(v))"; exit $code',
        0,
        ("16777217", "614454277", "int"),
    ),
    Case("native_volumes", "misses the head", 'voxout native "$DEMO"/run sub-patient001 far.nii.gz native.nii.gz', 2),
    Case(
        "native_volumes",
        "result is the volume",
        'sha256sum atlas.nii.gz > before; voxout native "$DEMO"/run sub-patient001 atlas.nii.gz atlas.nii.gz --labels; '
        "code=$?; sha256sum --quiet -c before || echo CHANGED; exit $code",
        2,
        (),
        ("CHANGED",),
    ),
)


@dataclass(frozen=True)
class CaseResult:
    """Result of a case: run time, deviations from the expectation, and output."""

    case: Case
    wall_s: float
    deviations: tuple[str, ...]
    output: str


def run_case(case: Case, faults: Path, out: Path, demo: Path | None) -> CaseResult:
    """Generate the input and run the command."""
    name = re.sub(r"\W+", "_", f"{case.generator} {case.name}")
    folder = out / "inputs" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, faults / f"{case.generator}.py", folder], check=True, capture_output=True)
    environment = os.environ | {"PACKAGE": str(Path(__file__).parents[1]), "DEMO": str(demo)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", case.command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        timeout=_SLOWEST_S,
    )
    log = out / "said" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"{case.command}\n\n{done.stdout}\nexit code {done.returncode}\n")
    deviations = tuple(_deviations(case, done.returncode, done.stdout))
    return CaseResult(case, time.monotonic() - began, deviations, done.stdout)


def _deviations(case: Case, code: int, output: str) -> Iterator[str]:
    if code != case.code:
        yield f"exit code {code}, expected {case.code}"
    yield from (f"no match of {pattern!r}" for pattern in case.says if not re.search(pattern, output))
    yield from (f"match of {pattern!r}" for pattern in ("Traceback", *case.lacks) if re.search(pattern, output))


def table(results: list[CaseResult]) -> str:
    """Markdown table with one row per case."""
    rows = ["| generator | case | as expected | first message |", "|---|---|---|---|"]
    for result in results:
        every = result.output.splitlines()
        lines = [line for line in every if line.startswith("voxout:")] or every or [""]
        short = lines[0].replace("|", "/")[:110]
        verdict = "NO: " + "; ".join(result.deviations).replace("|", "/") if result.deviations else "yes"
        rows.append(f"| {result.case.generator} | {result.case.name} | {verdict} | {short} |")
    good = sum(not result.deviations for result in results)
    return "\n".join([*rows, "", f"{good} of {len(results)} cases as expected."])


def main() -> int:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=Path, required=True, help="folder of the generators")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--demo", type=Path, help="folder created by `voxout demo`")
    parser.add_argument("--only", default="", help="run only generators whose name contains this text")
    options = parser.parse_args()
    faults, out = options.faults.resolve(), options.out.resolve()
    demo = options.demo.resolve() if options.demo else None
    results = []
    for case in CASES:
        if options.only in case.generator and (demo is not None or "$DEMO" not in case.command):
            result = run_case(case, faults, out, demo)
            results.append(result)
            print(f"{result.wall_s:4.0f} s  {case.generator}: {case.name}: {result.deviations or 'ok'}", flush=True)
    (out / "table.md").write_text(table(results) + "\n")
    print(table(results))
    return 1 if any(result.deviations for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
