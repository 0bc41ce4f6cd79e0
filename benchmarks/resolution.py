"""Comparison of analyses at 2 mm and at 1 mm on the same scans of 1 mm: detection metrics and cost.

    python benchmarks/resolution.py --data ../shared/data --out /tmp/resolution

24 skull-stripped scans of 0.87 x 0.87 x 1 mm: 16 for training, 8 with ten simulated lesions each (five kinds, as in
`method_cohort`, painted in native space); in addition two patients with multiple sclerosis, also 1 mm, T1w only. The
pipeline runs through the command line, once with each preset, and the maps are evaluated in native space. A second call
resumes an interrupted benchmark. The tables are printed and saved as OUT/table.md.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from method_cohort import painted, write_with_kinds
from method_measures import evaluate, overview, table
from method_subjects import Subject, TestSet
from painted_cohort import Head, drawn, lesion_shapes
from voxout.data_manifests.cohort.manifest import read_manifest, write_manifest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import Manifest
from voxout.data_manifests.images.volume import read_volume, write_volume
from voxout.pipeline.stages.order import STAGES
from voxout.pipeline.workflow.records import StageRecord

TRAIN = 16
PRESETS = {"2 mm (default)": "default", "1 mm (fine-1mm)": "fine-1mm"}
SEED = 0
_FIGURES = ("average_precision", "auroc", "auroc_fpr30", "found_at_1", "found_at_4")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("resolution_benchmark"))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    if not (options.data / "mdd1mm").is_dir():
        print(f"skipped: no real scans at {options.data} (expected the folders mdd1mm, ms and lesion_masks there)")
        return 0
    manifest = make_cohort(options.data, options.out / "cohort")
    stages = list(STAGES)[: list(STAGES).index("map") + 1]
    for preset in PRESETS.values():
        for stage in stages:
            command = [sys.executable, "-m", "voxout.pipeline.cli", stage, str(manifest), str(options.out / preset)]
            command += ["--preset", preset, "--seed", str(SEED), "--jobs", str(options.jobs)]
            code = subprocess.run(command, check=False).returncode
            if code not in (0, 3):
                return code
    text = "\n".join([metrics(manifest, options.out), costs(options.out)])
    print(text)
    (options.out / "table.md").write_text(text)
    return 0


def make_cohort(data: Path, folder: Path) -> Path:
    """Split the scans, paint lesions into those not used for training, and write the manifest; return its path."""
    path = folder / "cohort.csv"
    if path.exists():
        return path
    heads = sorted(read_manifest(data / "mdd1mm").records, key=lambda record: drawn(SEED, record.subject_id))
    records = [replace(head, group="control", split="train", site="mdd1mm") for head in heads[:TRAIN]]
    shapes = lesion_shapes(data / "lesion_masks")
    for number, record in enumerate(heads[TRAIN:]):
        print(f"painting {record.key}", flush=True)
        scan = read_volume(record.images["t1w"])
        # The scans are skull-stripped: voxels above 0 are brain.
        brain = folder / f"{record.key}_desc-brain_mask.nii.gz"
        write_volume(brain, scan.with_voxels(scan.voxels > 0))
        canvas, lesions = painted(Head.read(record, brain, seed=SEED), shapes, number, SEED)
        records.append(write_with_kinds(folder, record, canvas, lesions, site="painted", seed=SEED))
    records += [replace(patient, group="patient", site="Ljubljana") for patient in read_manifest(data / "ms")]
    return write_manifest(path, Manifest(tuple(records)))


def metrics(manifest: Path, root: Path) -> str:
    """Markdown tables of the metrics of each preset and of their paired differences."""
    records, figures = read_manifest(manifest).patients, []
    truth = OutputFolder(root / PRESETS["1 mm (fine-1mm)"])
    subjects = {record.key: Subject.read_native(record, truth) for record in records}
    of_site = {site: tuple(subjects[r.key] for r in records if r.site == site) for site in ("painted", "Ljubljana")}
    test = TestSet(of_site["painted"], (), of_site["Ljubljana"])
    for name, preset in PRESETS.items():
        out = OutputFolder(root / preset)
        maps = {r.key: subjects[r.key].mask.transform(read_volume(out.native_map(r)).voxels) for r in records}
        figures.append(evaluate(name, maps, test))
    coarse, fine = figures
    text = [table(figures, "all"), table(figures, "dark"), *(overview(figures, figure) for figure in _FIGURES)]
    return "\n".join([*text, *(overview([fine.minus(coarse)], figure) for figure in _FIGURES)])


def costs(root: Path) -> str:
    """Markdown table of the wall time and peak memory of every stage."""
    lines = ["| stage | " + " | ".join(PRESETS) + " |", "|---|" + "---|" * len(PRESETS)]
    for stage in STAGES:
        found = [StageRecord.read(OutputFolder(root / preset).record(stage)) for preset in PRESETS.values()]
        if all(found):
            cells = [f"{r.wall_s:.0f} s, {r.peak_memory_mb / 1024:.1f} GB" for r in found]
            lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
