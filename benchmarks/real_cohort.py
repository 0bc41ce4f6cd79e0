"""The whole pipeline on real scans, as a lab would run it: honest figures, wall time and peak memory of each stage.

    python benchmarks/real_cohort.py --data ../shared/data --out /tmp/real_cohort

80 healthy IXI heads (2 mm): 60 to train on, 10 held out, and 10 with lesions painted in before any preprocessing:
real lesion shapes at their real places, 0.05-3 ml, darker by 50, 100 or 150 % of the white-grey contrast, soft edges,
exact truth. With them go two real multiple-sclerosis patients, on T1w alone. Everything then runs through the command
line, and the table is printed and saved as ``table.md``. A second call goes on where the first one stopped.
"""

import argparse
import hashlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from voxout.data_manifests.derivatives import OutputFolder
from voxout.data_manifests.lesion_effects import Shift
from voxout.data_manifests.manifest import read_manifest, write_manifest
from voxout.data_manifests.painted_lesions import lesion_components, paint_lesion, white_grey_contrast
from voxout.data_manifests.subject import Manifest, SubjectRecord
from voxout.data_manifests.volume import Volume, read_mask, read_volume, write_volume
from voxout.evaluation.score_cohort import CohortScores, score_cohort
from voxout.evaluation.subject_scores import SubjectScores
from voxout.pipeline.config import load_config
from voxout.pipeline.records import StageRecord
from voxout.pipeline.stages import STAGES

TRAIN, HELD_OUT, PAINTED = 60, 10, 10
CONTRASTS = (0.5, 1.0, 1.5)
SMALLEST_ML, LARGEST_ML = 0.05, 3.0
LESIONS_A_HEAD = 4
SOFTNESS_MM = 1.0


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
    """Choose who trains, paint lesions into ten heads, and write the manifest as a lab would."""
    heads = sorted(read_manifest(data / "ixi").records, key=lambda r: _drawn(seed, r.subject_id))
    heads = [replace(head, brain_mask=None) for head in heads]
    masks = {head.subject_id: data / "ixi/derivatives/reference" / head.key / "anat" for head in heads}
    shapes = _lesion_shapes(data / "lesion_masks")
    records = [replace(head, split="train", site="IXI") for head in heads[:TRAIN]]
    records += [replace(head, split="held_out", site="IXI") for head in heads[TRAIN : TRAIN + HELD_OUT]]
    for number, head in enumerate(heads[TRAIN + HELD_OUT : TRAIN + HELD_OUT + PAINTED]):
        print(f"painting {number + 1} of {PAINTED}", flush=True)
        brain_mask = read_mask(masks[head.subject_id] / f"{head.key}_desc-brain_mask.nii.gz")
        records.append(_painted(head, brain_mask, shapes, path.parent, number, seed))
    for patient in read_manifest(data / "ms"):
        records.append(replace(patient, group="patient", site="Ljubljana"))
    write_manifest(path, Manifest(tuple(records)))


def _painted(
    head: SubjectRecord, brain_mask: Volume, shapes: Sequence[Volume], folder: Path, number: int, seed: int
) -> SubjectRecord:
    """One head with lesions: shapes of the template space brought to the head's own space by an affine."""
    from voxout.preprocessing.registration import register_to_template
    from voxout.preprocessing.settings import RegistrationSettings
    from voxout.preprocessing.template import load_template

    scan = read_volume(head.images["t1w"])
    settings = RegistrationSettings(transform="affine")
    transform = register_to_template(scan, brain_mask, load_template(2.0), settings, seed=seed)
    contrast = white_grey_contrast(scan, brain_mask)
    # Lesions lie in tissue: what is as dark as CSF already cannot be darkened visibly.
    tissue = brain_mask.voxels & (scan.voxels > np.percentile(scan.voxels[brain_mask.voxels], 25))
    random = np.random.default_rng([seed, number])
    sizes_ml = np.array([shape.voxels.sum() * shape.grid.voxel_volume_mm3 / 1000 for shape in shapes])
    image, truth = scan, np.zeros(scan.voxels.shape, dtype=bool)
    for lesion in range(LESIONS_A_HEAD):
        # Sizes spread evenly on a log scale; the nearest shape whose place in this head is free tissue.
        wanted_ml = np.exp(random.uniform(np.log(SMALLEST_ML), np.log(LARGEST_ML)))
        for choice in np.argsort(np.abs(np.log(sizes_ml / wanted_ml)), kind="stable"):
            lesion_shape = shapes[choice].with_voxels(shapes[choice].voxels.astype(np.float32))
            shape = transform.to_native(lesion_shape, scan.grid, interpolation="linear")
            core = shape.voxels >= 0.5
            if not core.any() or tissue[core].mean() < 0.9 or (shape.voxels > 0)[_near(truth)].any():
                continue
            fraction = CONTRASTS[(number + lesion) % len(CONTRASTS)]
            result = paint_lesion(image, shape, Shift(-fraction * contrast), softness_mm=SOFTNESS_MM)
            pieces = lesion_components(result.lesion_mask, smallest_ml=0, largest_ml=np.inf)
            in_limits = lesion_components(result.lesion_mask, smallest_ml=SMALLEST_ML, largest_ml=LARGEST_ML)
            if len(pieces) == len(in_limits) == 1:
                image, truth = result.image, truth | result.lesion_mask.voxels
                break
    name = f"{head.subject_id}painted"
    anat = folder / f"sub-{name}" / "anat"
    return SubjectRecord(
        subject_id=name,
        group="patient",
        images={"t1w": write_volume(anat / f"sub-{name}_T1w.nii.gz", image)},
        lesion_mask=write_volume(anat / f"sub-{name}_label-lesion_mask.nii.gz", scan.with_voxels(truth)),
        site="painted",
        age=head.age,
        sex=head.sex,
    )


def _near(mask: np.ndarray) -> np.ndarray:
    """The mask and two voxels around it: lesions are painted apart."""
    return ndimage.binary_dilation(mask, iterations=2) if mask.any() else mask


def _lesion_shapes(folder: Path) -> list[Volume]:
    """Small connected lesions of the real masks, bool, in template space."""
    shapes = []
    for path in sorted(folder.rglob("*.nii.gz")):
        shapes += lesion_components(read_mask(path), smallest_ml=SMALLEST_ML, largest_ml=LARGEST_ML)
    return shapes


def _drawn(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


def results_table(manifest: Path, out: OutputFolder, painting_s: float, total_s: float) -> str:
    """Figures of each part of the cohort, and what each stage cost, as Markdown."""
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
        "| figure (all in native space, inside the brain) | painted lesions | MS patients, T1w alone |",
        "|---|---|---|",
    ]
    cohorts = {site: score_cohort([*healthy, *subjects], settings) for site, subjects in parts.items()}
    for name in cohorts["painted"].estimates:
        lines.append(f"| {name} | " + " | ".join(_estimate(cohort, name) for cohort in cohorts.values()) + " |")
    lesions = [len(s.lesions) for s in parts["painted"]]
    lines += [
        "",
        f"{len(healthy)} healthy scans held out, {len(lesions)} painted heads with {sum(lesions)} lesions, "
        f"{len(parts['Ljubljana'])} MS patients; intervals by bootstrap over subjects.",
        "",
        "| stage | wall time | peak memory |",
        "|---|---|---|",
        f"| painting (not part of voxout) | {painting_s:.0f} s | |",
    ]
    for name in STAGES:
        record = StageRecord.read(out.record(name))
        if record is not None:
            lines.append(f"| {name} | {record.wall_s:.0f} s | {record.peak_memory_mb / 1024:.1f} GB |")
    lines += [f"| this call in all | {total_s:.0f} s | |", ""]
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
