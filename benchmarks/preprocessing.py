"""Benchmark of preprocessing on real scans: brain masks, alignment, registration and cost, with goals.

    python benchmarks/preprocessing.py --data ../shared/data --out /tmp/preprocessing [--quick]

80 healthy adults (IXI) and 16 elderly participants with white-matter hyperintensities (wmh), whole heads of 2 mm with
reference brain masks, and 3 heads whose FLAIR is not aligned to the T1w (wmh_unaligned). voxout gets only the scans and
uses default settings; each head is prepared in a separate process with one thread. A second call resumes an interrupted
benchmark: results are saved in OUT/results, one file per head. The table is printed and saved as OUT/table.md.

Parts: brains (masks against the references, also for rotated, reoriented, shaded, thick-slice or rescaled scans), flair
(recovery of known rigid transforms), template (overlaps; round trips of maps and lesions), speed, repeat (identical
files for any number of jobs, and without a network).
"""

import argparse
import json
import os

os.environ.update(OMP_NUM_THREADS="1", ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS="1")

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from preprocessing_flair import flair_moved, flair_unaligned
from preprocessing_measures import (
    Measure,
    Numbers,
    brain_of_disturbed,
    brain_of_prepared,
    heads,
    on_template,
    prepared,
)
from voxout.data_manifests.atomic_write import atomic_write
from voxout.data_manifests.cohort.manifest import write_manifest
from voxout.data_manifests.cohort.subject import Manifest

PARTS = ("brains", "flair", "template", "speed", "repeat")
COHORTS = ("ixi", "wmh", "wmh_unaligned")
DISTURBED_EVERY = {"ixi": 20, "wmh": 8}
"""Every n-th head is used for the disturbances."""
QUICK = {"ixi": 6, "wmh": 3, "wmh_unaligned": 1}


@dataclass(frozen=True)
class Study:
    """Options of the benchmark, and access to saved results."""

    data: Path
    out: Path
    jobs: int
    quick: bool

    def names(self, *cohorts: str) -> list[str]:
        """``cohort_sub-id`` of every head, or of an evenly spaced subset if `quick`."""
        found = []
        for cohort in cohorts:
            keys = list(heads(self.data, cohort))
            found += [f"{cohort}_{key}" for key in (keys[:: len(keys) // QUICK[cohort]] if self.quick else keys)]
        return found

    def measured(self, measure: Measure, names: Sequence[str], *, jobs: int | None = None) -> dict[str, Numbers]:
        """Measure each head in a new process, unless its result is saved already."""
        waiting = [name for name in names if not self.result(measure, name).exists()]
        with ProcessPoolExecutor(jobs or self.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
            for number, (name, numbers) in enumerate(
                zip(waiting, pool.map(_Measured(measure, self.data, self.out), waiting), strict=True), start=1
            ):
                with atomic_write(self.result(measure, name)) as temporary:
                    temporary.write_text(json.dumps(numbers, indent=1))
                print(f"{measure.__name__} {name}: {number} of {len(waiting)}", file=sys.stderr, flush=True)
        return {name: json.loads(self.result(measure, name).read_text()) for name in names}

    def result(self, measure: Measure, name: str) -> Path:
        return self.out / "results" / measure.__name__ / f"{name}.json"


@dataclass(frozen=True)
class _Measured:
    measure: Measure
    data: Path
    out: Path

    def __call__(self, name: str) -> Numbers:
        return self.measure(self.data, self.out, name)


@dataclass(frozen=True)
class Row:
    quantity: str
    goal: str
    found: str


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("preprocessing_benchmark"))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default=",".join(PARTS), help="comma-separated parts: " + ",".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="a few heads of each cohort")
    options = parser.parse_args(arguments)
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"--only: found {', '.join(unknown)}, expected some of {', '.join(PARTS)}")
    if not (options.data / "ixi").is_dir():
        print(f"skipped: no real scans at {options.data} (expected the folders {', '.join(COHORTS)} there)")
        return 0
    study = Study(options.data.resolve(), options.out.resolve(), options.jobs, options.quick)
    lines = ["| quantity | goal | found |", "|---|---|---|"]
    for part, rows in (
        ("brains", brain_rows),
        ("flair", flair_rows),
        ("template", template_rows),
        ("speed", speed_rows),
        ("repeat", repeat_rows),
    ):
        if part in wanted:
            lines += [f"| {row.quantity} | {row.goal} | {row.found} |" for row in rows(study)]
    table = "\n".join(lines) + "\n"
    print(table)
    (study.out / "table.md").write_text(table)
    return 0


def brain_rows(study: Study) -> list[Row]:
    rows = []
    for cohort, goal in (("ixi", "median >= 0.978, none < 0.965"), ("wmh", "median >= 0.965, none < 0.945")):
        done = study.measured(prepared, study.names(cohort))
        failed = [name for name, numbers in done.items() if "failed" in numbers]
        found = study.measured(brain_of_prepared, [name for name in done if name not in failed])
        values = {name: numbers["dice"] for name, numbers in found.items()}
        if not values:
            rows.append(Row(f"brain mask, {len(done)} heads of {cohort}", goal, "all failed: " + failed[0]))
            continue
        worst = min(values, key=values.__getitem__)
        methods = [numbers["method"] for numbers in found.values()]
        counted = ", ".join(f"{methods.count(m)} {m}" for m in sorted(set(methods)))
        offset = np.median([numbers["offset_mm"] for numbers in found.values()])
        rows.append(
            Row(
                f"brain mask, Dice with the reference, {len(done)} heads of {cohort}",
                goal,
                f"median {np.median([*values.values()]):.4f}, worst {values[worst]:.4f} ({worst.split('_')[-1]}), "
                f"{len(failed)} failures; {counted}; surface {offset:+.2f} mm outwards",
            )
        )
    done = study.measured(prepared, study.names("wmh_unaligned"))
    rows.append(
        Row(
            "brain mask, wmh_unaligned (without reference)",
            "no failure",
            "; ".join(f"{n.split('_')[-1]}: {v.get('method', 'failed')}, {v.get('verdict')}" for n, v in done.items()),
        )
    )
    names = [name for cohort, step in DISTURBED_EVERY.items() for name in study.names(cohort)[::step]]
    disturbed = study.measured(brain_of_disturbed, names)
    for kind in next(iter(disturbed.values())):
        if kind == "as it is":
            continue
        drops = [numbers["as it is"]["dice"] - numbers[kind]["dice"] for numbers in disturbed.values()]
        rows.append(
            Row(
                f"brain mask, {len(drops)} heads, {kind}",
                "drop <= 0.01",
                f"median drop {np.median(drops):.4f}, largest {max(drops):.4f}",
            )
        )
    return rows


def flair_rows(study: Study) -> list[Row]:
    rows = []
    found = study.measured(flair_moved, study.names("wmh")).values()
    for kind in ("moved by its header", "moved by resampling"):
        errors = [numbers[kind]["error_mm"] for numbers in found]
        far = max(numbers[kind]["moved_mm"] for numbers in found)
        rows.append(
            Row(
                f"FLAIR to T1w, {len(errors)} heads, {kind} (up to {far:.0f} mm): mean error in the brain",
                "<= 1 mm in all",
                f"median {np.median(errors):.2f} mm, largest {max(errors):.2f} mm",
            )
        )
    header_off, before, after = (
        np.array([numbers[key] for numbers in found]) for key in ("header_off_mm", "edges_by_header", "edges_aligned")
    )
    rows.append(
        Row(
            "FLAIR to T1w, unmoved: displacement by the alignment, and agreement of edges",
            "reported",
            f"median {np.median(header_off):.1f} mm, largest {header_off.max():.1f} mm; correlation of the gradients "
            f"{np.median(before):.3f} from the headers, {np.median(after):.3f} aligned, better in "
            f"{(after > before).sum()} of {len(after)}",
        )
    )
    study.measured(prepared, study.names("wmh_unaligned"))
    for name, numbers in study.measured(flair_unaligned, study.names("wmh_unaligned")).items():
        rows.append(
            Row(
                f"FLAIR to T1w, {name.split('_')[-1]}, 7 headers: largest distance to their median",
                "<= 1 mm",
                f"{max(numbers['spread_mm']):.2f} mm (error of its header: {numbers['header_wrong_mm']:.1f} mm)",
            )
        )
    return rows


def template_rows(study: Study) -> list[Row]:
    names = study.names("ixi", "wmh")
    done = study.measured(prepared, names)
    found = study.measured(on_template, [name for name in done if "failed" not in done[name]]).values()
    lesions = [lesion for numbers in found for lesion in numbers["lesions"]]
    off = np.array([abs(lesion["kept"] - 1) for lesion in lesions])
    correlations = [numbers["map_correlation"] for numbers in found]

    def values(key: str) -> str:
        numbers = [n[key] for n in found]
        return f"median {np.median(numbers):.3f}, worst {min(numbers):.3f}"

    return [
        Row(
            f"brain on the template, Dice with the template brain, {len(found)} heads",
            "median >= 0.97",
            f"{values('brain_overlap')} (affine only: {values('brain_overlap_affine')})",
        ),
        Row("white matter on the template, Dice before the warp", "reported", values("white_overlap_affine")),
        Row("white matter on the template, Dice after the warp", "reported", values("white_overlap")),
        Row("smallest Jacobian in the brain", "> 0", values("jacobian_smallest")),
        Row(
            "native to template to native, correlation of a smooth map in the brain",
            ">= 0.99",
            f"median {np.median(correlations):.4f}, worst {min(correlations):.4f}",
        ),
        Row(
            f"volume of {len(lesions)} lesions of 0.5-50 ml after native to template to native",
            "kept within 5 %",
            f"deviation: median {np.median(off):.1%}, 95th percentile {np.percentile(off, 95):.1%}, "
            f"worst {off.max():.1%}",
        ),
    ]


def speed_rows(study: Study) -> list[Row]:
    done = [n for n in study.measured(prepared, study.names("ixi", "wmh")).values() if "failed" not in n]
    seconds, memory = [n["cpu_s"] for n in done], [n["peak_gb"] for n in done]
    imports = [n["cpu_with_imports_s"] - n["cpu_s"] for n in done]
    return [
        Row(
            f"CPU seconds per head at 2 mm, all steps, {len(done)} heads",
            "<= 40",
            f"median {np.median(seconds):.0f}, largest {max(seconds):.0f} "
            f"(plus {np.median(imports):.0f} s of imports per process)",
        ),
        Row("peak memory per head", "<= 2.5 GB", f"median {np.median(memory):.1f}, largest {max(memory):.1f} GB"),
        _scaling(study),
    ]


def _scaling(study: Study) -> Row:
    """Speed-up of two parallel processes, for `prepared` and for a pure computation."""
    names = study.names("ixi")[:2]

    def ratio(measure: Callable[[Path, Path, str], Numbers], label: str) -> float:
        walls = []
        for jobs in (1, 2):
            fresh = Study(study.data, study.out / "scaling" / f"{label}-{jobs}-{time.time_ns()}", jobs, study.quick)
            began = time.monotonic()
            fresh.measured(measure, names)
            walls.append(time.monotonic() - began)
        return walls[0] / walls[1]

    found, possible, load = ratio(prepared, "prepared"), ratio(_counting, "counting"), os.getloadavg()[0]
    return Row(
        "two heads in parallel, throughput",
        ">= 1.8 x",
        f"{found:.2f} x; two independent computations: {possible:.2f} x (load before: {load:.1f})",
    )


def _counting(data: Path, out: Path, name: str) -> Numbers:
    state = np.random.default_rng(0).random((400, 400))
    for _ in range(1500):
        state = np.tanh(state @ state.T / 400)
    return {"sum": float(state.sum())}


def repeat_rows(study: Study) -> list[Row]:
    """Compare the files of `voxout prepare` with one job and no network, and with two jobs."""
    folder = study.out / "repeat"
    four = [*heads(study.data, "ixi").values()][:4]  # the smallest number of controls in a cohort
    write_manifest(folder / "cohort.csv", Manifest(tuple(four)))
    hashes = []
    # A new network namespace that contains only the loopback device.
    isolated = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    for jobs, prefix in ((1, isolated), (2, [])):
        out = folder / f"jobs-{jobs}"
        for stage in ("check", "prepare"):
            command = [sys.executable, "-m", "voxout.pipeline.cli", stage, str(folder / "cohort.csv"), str(out)]
            command += ["--jobs", str(jobs)]
            done = subprocess.run([*prefix, *command], capture_output=True, text=True, check=False)
            if done.returncode:
                return [Row("identical files", "all", f"{stage} failed: {done.stderr.strip()[-200:]}")]
        hashes.append(_hashes(out / "prepared"))
    same = sum(hashes[0][name] == hashes[1].get(name) for name in hashes[0])
    return [
        Row("identical files with 1 and 2 jobs", "all", f"{same} of {len(hashes[0])} files of four heads"),
        Row("prepare without a network", "passes", "passes (network namespace with loopback only)"),
    ]


def _hashes(folder: Path) -> dict[str, str]:
    """Hashes of all prepared files, except records, which contain times."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "record.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    sys.exit(main())
