"""Foretold against measured time, memory and disk space of runs.

    python benchmarks/plan.py OUT [OUT ...] [--jobs 2] [--slowness 1]
    python benchmarks/plan.py --fit OUT [--controls 20] [--scorers learned]
    python benchmarks/plan.py --table

The first form compares `voxout plan` with the records of finished runs, each with the jobs that it had; wall times of
a machine that did other work at the same time are too long. The second measures the CPU seconds of each scorer's fit
on the prepared controls of a run, for `FIT_US` of `pipeline/tools/plan_figures.py`; run it with OMP_NUM_THREADS=1. The
third prints the table of docs/before-you-start.md.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.models.anomaly.fit import fit_ensemble
from voxout.models.encoder.training import train_encoder
from voxout.models.features.source import FeatureSource
from voxout.models.settings import FEWEST_TO_LEARN_FROM
from voxout.pipeline.config.config import Config, load_config
from voxout.pipeline.tools.plan import Heads, disk_bytes, peak_gb, plan_run, size_text, total_s
from voxout.pipeline.workflow.console import duration
from voxout.pipeline.workflow.records import StageRecord
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.patches.volume_store import VolumeStore

SCORERS = ("intensity", "derived_features", "extension", "patches", "prototypes", "learned", "ocsvm")
TOGETHER = ("ocsvm", "prototypes")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table per run, or the time of each scorer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--slowness", type=float, default=1.0)
    parser.add_argument("--voxel-mm3", type=float, default=8.0, help="voxel volume of the scans")
    parser.add_argument("--fit", type=Path)
    parser.add_argument("--controls", type=int, default=20)
    parser.add_argument("--scorers", nargs="+", choices=SCORERS, help="measure these only, with --fit")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(arguments)
    for run in options.runs:
        print(compared(OutputFolder(run), options.jobs, options.slowness, options.voxel_mm3))
    if options.table:
        print(by_heads())
    if options.fit:
        sets = [(name,) for name in options.scorers or SCORERS] + ([] if options.scorers else [TOGETHER])
        measure_fit(OutputFolder(options.fit), options.controls, sets)


def compared(out: OutputFolder, jobs: int, slowness: float, voxel_mm3: float) -> str:
    """Return the table of a run: foretold, measured and their ratio."""
    config = load_config(out.config)
    records = {path.stem: StageRecord.read(path) for path in sorted((out.root / "records").glob("*.json"))}
    heads = _heads(records, config, voxel_mm3)
    lines = [
        f"{out.root.name}: {heads.train} training controls, {heads.held_out} held out, {heads.patients} patients, "
        f"{config.preprocessing.spacing_mm:g} mm",
        "",
        "| stage | time: foretold, measured, ratio | memory, GB | disk |",
        "|---|---|---|---|",
    ]
    stages = [s for s in plan_run(heads, config, jobs=jobs, cores=jobs, slowness=slowness) if records.get(s.stage)]
    found = {stage.stage: record for stage in stages if (record := records[stage.stage])}
    sizes = {name: sum(record.outputs.values()) for name, record in found.items()}
    for s in stages:
        record = found[s.stage]
        lines.append(
            f"| {s.stage} | {_three(s.wall_s, record.wall_s, 's')} | {s.memory_gb:.1f}, "
            f"{record.peak_memory_mb / 1024:.1f} | {_sizes(s.disk_bytes, sizes[s.stage])} |"
        )
    wall, peak = sum(r.wall_s for r in found.values()), max(r.peak_memory_mb for r in found.values()) / 1024
    lines.append(
        f"| all | {_three(total_s(stages), wall, 's')} | {peak_gb(stages):.1f}, {peak:.1f} | "
        f"{_sizes(disk_bytes(stages), sum(sizes.values()))} |"
    )
    return "\n".join([*lines, ""])


def by_heads() -> str:
    """Return foretold runs by preset, number of heads and jobs, on a machine as fast as that of the measurements."""
    lines = ["| preset | controls, patients | 2 jobs | 8 jobs | memory, 2 / 8 jobs | disk |", "|---" * 6 + "|"]
    for preset in ("fast", "default", "fine-1mm"):
        config = load_config(preset=preset)
        for controls, patients in ((20, 5), (60, 20), (100, 50)):
            heads = Heads.counted(controls, patients, 0.2)
            two, eight = (plan_run(heads, config, jobs=n, cores=n) for n in (2, 8))
            times = " | ".join(duration(total_s(stages)) for stages in (two, eight))
            lines.append(
                f"| `{preset}` | {controls}, {patients} | {times} | {peak_gb(two):.1f} / {peak_gb(eight):.1f} GB | "
                f"{size_text(disk_bytes(two))} |"
            )
    return "\n".join(lines)


def _heads(records: dict[str, StageRecord | None], config: Config, voxel_mm3: float) -> Heads:
    prepared, extracted, mapped = (records.get(name) for name in ("prepare", "extract", "map"))
    heads, controls = (len(record.done) if record else 0 for record in (prepared, extracted))
    if mapped is not None:
        return Heads(heads - len(mapped.done), controls + len(mapped.done) - heads, heads - controls, voxel_mm3)
    share = config.data_manifests.held_out_share
    counted = Heads.counted(controls, heads - controls, share)
    return Heads(counted.train, counted.held_out, counted.patients, voxel_mm3)


def _three(foretold: float, measured: float, unit: str) -> str:
    ratio = f", {foretold / measured:.2f}" if measured else ""
    return f"{foretold:.0f}, {measured:.0f} {unit}{ratio}"


def _sizes(foretold: int, measured: int) -> str:
    return f"{size_text(foretold)}, {size_text(measured)}, {foretold / measured:.2f}" if measured else ""


def measure_fit(out: OutputFolder, controls: int, sets: Sequence[tuple[str, ...]]) -> None:
    """Print the CPU time of fitting each set of scorers on the first controls of a volume store."""
    store = VolumeStore.open(out.patches)
    keys = store.keys[:controls]
    few_steps = ["models.training.pretraining_steps=60", "models.training.guided_steps=0"]
    channels = Channels.load(out.patches)
    with tempfile.TemporaryDirectory() as folder:
        for scorers in sets:
            if "learned" in scorers and len(keys) < FEWEST_TO_LEARN_FROM:
                continue
            named = ",".join(scorers)
            models = load_config(out.config, overrides=[f"models.ensemble.scorers=[{named}]", *few_steps]).models
            encoders = ()
            if "ocsvm" in scorers:
                began = time.process_time()
                encoder = train_encoder(store, models, Path(folder) / "encoder", train=keys, held_out=[], seed=0)
                print(f"train, 60 steps: {time.process_time() - began:.1f} s")
                encoders = (encoder,)
            source = FeatureSource(channels, encoders)
            began = time.process_time()
            fit_ensemble(store, keys, source, models, Path(folder) / named, seed=0, jobs=1)
            seconds = time.process_time() - began
            each = seconds / len(keys) / store.grid.size * 1e6
            print(f"{named}: {seconds:.1f} s, {each:.2f} µs per control and voxel", flush=True)


if __name__ == "__main__":
    main()
