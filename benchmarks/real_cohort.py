"""Benchmark of the complete pipeline on real scans: evaluation metrics, wall time and peak memory of each stage.

    python benchmarks/real_cohort.py --data ../shared/data --out /tmp/real_cohort

80 healthy IXI scans (2 mm): 60 for training, 10 held out, and 10 with lesions painted before preprocessing: real lesion
shapes at their real positions, 0.05-3 ml, darker by 50, 100 or 150 % of the white-grey contrast, with soft edges and
exact truth. In addition two real patients with multiple sclerosis, T1w only. The pipeline runs through the command
line; the table is printed and saved as ``table.md``. A second call resumes an interrupted benchmark.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from painted_cohort import Canvas, Head, drawn, lesion_shapes, nearest_in_size, random_ml, write_painted
from voxout.data_manifests.cohort.manifest import read_manifest, write_manifest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.images.volume import Volume
from voxout.data_manifests.synthetic.lesion_effects import Shift
from voxout.evaluation.scoring.score_cohort import CohortScores, score_cohort
from voxout.evaluation.scoring.subject_scores import SubjectScores
from voxout.pipeline.config.config import load_config
from voxout.pipeline.stages.order import STAGES
from voxout.pipeline.workflow.records import StageRecord

TRAIN, HELD_OUT, PAINTED = 60, 10, 10
CONTRASTS = (0.5, 1.0, 1.5)
LESIONS_A_HEAD = 4


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("real_cohort"))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--preset", default="default")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not (options.data / "ixi").is_dir():
        print(f"skipped: no real scans at {options.data} (expected the folders ixi, ms and lesion_masks there)")
        return 0

    began = time.monotonic()
    manifest = options.out / "cohort" / "cohort.csv"
    if not manifest.exists():
        make_cohort(options.data, manifest, options.seed)
    painting_s = time.monotonic() - began
    run = options.out / "run"
    command = [sys.executable, "-m", "voxout.pipeline.cli", "run", str(manifest), str(run)]
    command += ["--jobs", str(options.jobs), "--preset", options.preset, "--seed", str(options.seed)]
    for setting in options.set:
        command += ["--set", setting]
    code = subprocess.run(command, check=False).returncode
    if code not in (0, 3):
        return code
    table = results_table(manifest, OutputFolder(run), painting_s, time.monotonic() - began)
    print(table)
    (options.out / "table.md").write_text(table)
    return code


def make_cohort(data: Path, path: Path, seed: int) -> None:
    """Split the scans, paint lesions into ten of them, and write the manifest."""
    heads = sorted(read_manifest(data / "ixi").records, key=lambda r: drawn(seed, r.subject_id))
    heads = [replace(head, brain_mask=None) for head in heads]
    masks = {head.subject_id: data / "ixi/derivatives/reference" / head.key / "anat" for head in heads}
    shapes = lesion_shapes(data / "lesion_masks")
    records = [replace(head, split="train", site="IXI") for head in heads[:TRAIN]]
    records += [replace(head, split="held_out", site="IXI") for head in heads[TRAIN : TRAIN + HELD_OUT]]
    for number, head in enumerate(heads[TRAIN + HELD_OUT : TRAIN + HELD_OUT + PAINTED]):
        print(f"painting {number + 1} of {PAINTED}", flush=True)
        brain_mask = masks[head.subject_id] / f"{head.key}_desc-brain_mask.nii.gz"
        records.append(_painted(head, brain_mask, shapes, path.parent, number, seed))
    for patient in read_manifest(data / "ms"):
        records.append(replace(patient, group="patient", site="Ljubljana"))
    write_manifest(path, Manifest(tuple(records)))


def _painted(
    record: SubjectRecord, brain_mask: Path, shapes: Sequence[Volume], folder: Path, number: int, seed: int
) -> SubjectRecord:
    """Paint darker lesions at their real positions into one scan."""
    head = Head.read(record, brain_mask, seed=seed)
    random = np.random.default_rng([seed, number])
    canvas = Canvas.blank(head)
    for lesion in range(LESIONS_A_HEAD):
        candidates = nearest_in_size(shapes, random_ml(random))
        darker = Shift(-CONTRASTS[(number + lesion) % len(CONTRASTS)] * head.contrast)
        canvas = canvas.with_lesion(candidates, darker, head.in_tissue) or canvas
    return write_painted(folder, record, canvas, site="painted")


def results_table(manifest: Path, out: OutputFolder, painting_s: float, total_s: float) -> str:
    """Markdown tables of the metrics of each part of the cohort and of the cost of each stage."""
    records = read_manifest(manifest)
    settings = load_config(out.config).evaluation
    scores = {path.stem: SubjectScores.load(path) for path in sorted((out.scores / "subjects").glob("*.npz"))}
    healthy = [scores[r.key] for r in records.controls if r.key in scores]
    parts = {
        site: [scores[r.key] for r in records.patients if r.site == site and r.key in scores]
        for site in ("painted", "Ljubljana")
    }
    lines = [
        f"Real cohort, {time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} cores, voxout {StageRecord.read(out.record('map')).versions['voxout']}",
        "",
        "| metric (in native space, inside the brain) | simulated lesions | MS patients, T1w only |",
        "|---|---|---|",
    ]
    cohorts = {site: score_cohort([*healthy, *subjects], settings) for site, subjects in parts.items()}
    for name in cohorts["painted"].estimates:
        lines.append(f"| {name} | " + " | ".join(_estimate(cohort, name) for cohort in cohorts.values()) + " |")
    lesions = [len(s.lesions) for s in parts["painted"]]
    lines += [
        "",
        f"{len(healthy)} healthy held-out scans, {len(lesions)} scans with {sum(lesions)} simulated lesions, "
        f"{len(parts['Ljubljana'])} MS patients; bootstrap intervals over subjects.",
        "",
        "| stage | wall time | peak memory |",
        "|---|---|---|",
        f"| painting (not part of voxout) | {painting_s:.0f} s | |",
    ]
    for name in STAGES:
        record = StageRecord.read(out.record(name))
        if record is not None:
            lines.append(f"| {name} | {record.wall_s:.0f} s | {record.peak_memory_mb / 1024:.1f} GB |")
    lines += [f"| this call in total | {total_s:.0f} s | |", ""]
    failed = [f for name in STAGES if (record := StageRecord.read(out.record(name))) for f in record.failed]
    lines += [f"failed: {f.key} in {f.stage}: {f.reason}" for f in failed]
    return "\n".join(lines)


def _estimate(cohort: CohortScores, name: str) -> str:
    estimate = cohort.estimates[name]
    if estimate.value is None:
        return f"not defined: {estimate.reason_undefined}"
    interval = "" if estimate.ci_low is None else f" ({estimate.ci_low:.3g} to {estimate.ci_high:.3g})"
    return f"{estimate.value:.3g}{interval}"


if __name__ == "__main__":
    sys.exit(main())
