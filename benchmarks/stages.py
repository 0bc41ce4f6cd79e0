"""CPU time and peak memory of the parts of a fit and of a map, alone or against another checkout.

    python benchmarks/stages.py --run OUT [--against CHECKOUT] [--controls 20]
    python benchmarks/stages.py --controls 60 200 600 [--spacing 2] [--against CHECKOUT]

The first form fits the prepared controls of a run with its settings and encoders. The second fits synthetic controls:
the template plus smooth noise in every channel, brains with ragged edges, and an untrained encoder. Each fit is a
process of its own; with ``--against CHECKOUT``, a folder with another version of the source, the two versions take
turns, and the ratio is that of this version to the other one. CPU seconds are those of all threads, the smallest of the
rounds; memory is the largest resident set during a part, the largest of the rounds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module, util
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
PARTS: Mapping[str, Sequence[str]] = {
    "features": ("fit._StoredControls.write_features",),
    "whole-brain components": ("fit._StoredControls.learn_confounds",),
    "regression, whitening, detectors, null": (
        "cross_fit.CrossFit.one_pass",
        # Of a version that fits every fold on its own.
        "fit.CrossFit.cross_fitted_scores",
        "fit.CrossFit.fit_scorer",
    ),
    "learned": ("cross_fit.CrossFit.learned", "fit.CrossFit.learned"),
    "calibration, combination": (
        *(
            f"{module}.CrossFit.{method}"
            for module in ("cross_fit", "fit")
            for method in ("calibrated_scorer", "combine", "compare_with_surroundings")
        ),
        "fit._StoredControls.write_null",
    ),
}
"""Methods of `voxout.models.anomaly` that make up a part; one that a version does not have is skipped."""
REST, MAP = "rest of the fit", "map of a scan"
_MAPPED = 2
_FEW = 20
"""Controls of an uncounted fit."""
_LATENT_CHANNELS = ("t1w", "t1w_extension", "t1w_junction")


@dataclass
class Meter:
    """CPU seconds and peak memory of nested parts; the time within an inner part does not count for the outer one."""

    cpu_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    peak_mb: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _open: list[str] = field(default_factory=list)
    _began: float = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._close()
        self._open.append(name)
        try:
            yield
        finally:
            self._close()
            self._open.pop()

    def _close(self) -> None:
        """Count what has been used since the last call for the innermost part."""
        now, peak_mb = time.process_time(), _peak_mb()
        if self._open:
            self.cpu_s[self._open[-1]] += now - self._began
            self.peak_mb[self._open[-1]] = max(self.peak_mb[self._open[-1]], peak_mb)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self._began = now

    def watch(self, methods: Mapping[str, Sequence[str]]) -> None:
        """Measure methods of `voxout.models.anomaly`, given as module.class.method."""
        for name, paths in methods.items():
            found = [path for path in paths if self._wrap(name, *path.split("."))]
            if not found:
                raise SystemExit(f"{name}: this version has none of {', '.join(paths)}. Add its method to PARTS.")

    def _wrap(self, name: str, module: str, owner: str, method: str) -> bool:
        where = f"voxout.models.anomaly.{module}"
        kind = getattr(import_module(where), owner, None) if util.find_spec(where) else None
        if kind is None or kind.__module__ != where or not hasattr(kind, method):
            return False
        inner: Callable = getattr(kind, method)

        def measured(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return inner(*arguments, **named)

        setattr(kind, method, measured)
        return True


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


# -- one fit, in a process of its own ---------------------------------------------------------------------------------
def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Fit and map; return {"cpu_s": ..., "peak_mb": ...} with a number for each part."""
    import numpy as np
    from voxout.models.anomaly.fit import fit_ensemble
    from voxout.preprocessing.patches.volume_store import VolumeStore

    store = VolumeStore.open(Path(task["patches"]))
    settings, source = _settings_and_source(task, store)
    keys = store.keys[: task["controls"]]
    meter = Meter()
    meter.watch({name: paths for name, paths in PARTS.items() if name != "learned" or "learned" in task["scorers"]})
    with tempfile.TemporaryDirectory(dir=task["scratch"]) as scratch:
        with meter.part(REST):
            ensemble = fit_ensemble(store, keys, source, settings, Path(scratch), seed=0, jobs=task["jobs"])
        for row in range(min(_MAPPED, len(keys))):
            with meter.part(MAP):
                inside = store.grid.transform(np.asarray(store.inside[row]))
                ensemble.predict(store.volumes[row].astype(np.float32), inside, jobs=task["jobs"])
    meter.cpu_s[MAP] /= min(_MAPPED, len(keys))
    return {"cpu_s": meter.cpu_s, "peak_mb": meter.peak_mb}


def _settings_and_source(task: Mapping[str, Any], store: Any) -> tuple[Any, Any]:
    from voxout.data_manifests.cohort.output_paths import OutputFolder
    from voxout.models.features.source import FeatureSource
    from voxout.models.settings import ModelSettings
    from voxout.pipeline.config.config import load_config
    from voxout.pipeline.model.anomaly_model import feature_source
    from voxout.preprocessing.intensity.channels import Channels

    channels = Channels.load(Path(task["patches"]))
    scorers = {"scorers": task["scorers"], "covariates": ()}
    if task["run"]:
        out = OutputFolder(Path(task["run"]))
        config = load_config(out.config)
        settings = config.models
        return (
            settings.model_copy(update={"ensemble": settings.ensemble.model_copy(update=scorers)}),
            feature_source(config, channels, out, "cpu"),
        )
    settings = ModelSettings.model_validate({"ensemble": scorers})
    return settings, FeatureSource(channels, (_untrained(settings, channels, store),))


def _untrained(settings: Any, channels: Any, store: Any) -> Any:
    """Encoder with random weights."""
    import torch
    from voxout.models.encoder.checkpoint import Checkpoint, Origin, build_autoencoder
    from voxout.models.encoder.patch_shape import PatchShape

    torch.manual_seed(0)
    origin = Origin(channels.names, (PatchShape("volume", 3),), 2.0, store.grid.mask_hash, "", 0)
    autoencoder = build_autoencoder(settings, origin)
    autoencoder((torch.rand(256, len(channels.names), 3, 3, 3),))  # updates the batch-norm statistics
    return Checkpoint(autoencoder.eval(), {}, settings, origin, 0, ())


# -- synthetic controls -----------------------------------------------------------------------------------------------
def write_controls(folder: Path, count: int, spacing_mm: float) -> Path:
    """Write a volume store of synthetic controls."""
    import numpy as np
    from scipy import ndimage
    from voxout.data_manifests.images.memory_map import new_mapped_array
    from voxout.preprocessing.intensity.channels import Channels
    from voxout.preprocessing.intensity.standardisation import IntensityScale
    from voxout.preprocessing.patches.voxel_mask import VoxelMask
    from voxout.preprocessing.registration.template import load_template

    folder.mkdir(parents=True, exist_ok=True)
    random, template = np.random.default_rng(0), load_template(spacing_mm)
    mask = VoxelMask(template.grid, template.brain_mask.voxels)
    size, image = template.grid.size_vox, template.t1w.voxels
    depth_vox = ndimage.distance_transform_edt(mask.brain_mask)
    trend = ndimage.gaussian_filter(random.normal(size=size), 10 / spacing_mm)
    volumes = new_mapped_array(folder / "volumes.npy", np.float16, (count, len(_LATENT_CHANNELS), *size))
    inside = new_mapped_array(folder / "inside.npy", np.bool_, (count, *size))
    for row in range(count):
        weight = random.normal()
        # Brains end up to 4 mm below the surface of the template's.
        inside[row] = depth_vox > 4 / spacing_mm * ndimage.zoom(random.random((6, 6, 6)), np.divide(size, 6), order=1)
        for channel in range(len(_LATENT_CHANNELS)):
            noise = ndimage.gaussian_filter(random.normal(size=size), 2 / spacing_mm)
            values = image + 0.04 * noise / noise.std() + 0.02 * weight * trend / trend.std()
            volumes[row, channel] = np.clip(values, 0, 1) * inside[row]
    Channels(IntensityScale("percentiles", {"t1w": (0.0, 1.0)}), ("extension", "junction")).save(folder)
    np.save(folder / "brain_mask.npy", mask.brain_mask)
    index = {
        "keys": [f"sub-{number:04}" for number in range(count)],
        "channels": list(_LATENT_CHANNELS),
        "affine": template.grid.affine.tolist(),
        "qform_code": template.grid.qform_code,
        "sform_code": template.grid.sform_code,
        "mask_hash": mask.mask_hash,
    }
    (folder / "store.json").write_text(json.dumps(index))
    return folder


# -- versions, taking turns -------------------------------------------------------------------------------------------
def in_process_of(checkout: Path, task: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """Measure a task with the source of a checkout."""
    package = scratch / f"package-{abs(hash(checkout))}" / "voxout"
    if not package.exists():
        # The package as setup.cfg maps it: five folders in the one that holds __init__.py.
        package.mkdir(parents=True)
        folders = (checkout / name for name in ("data_manifests", "preprocessing", "models", "evaluation", "pipeline"))
        for source in (*(checkout / "voxout").iterdir(), *folders):
            if source.name != "__pycache__":
                (package / source.name).symlink_to(source)
    threads = {f"{name}_NUM_THREADS": str(task["jobs"]) for name in ("OMP", "OPENBLAS", "MKL")}
    environment = os.environ | threads | {"PYTHONPATH": str(package.parent)}
    command = [sys.executable, str(HERE), "--measure", json.dumps(task)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compared(task: Mapping[str, Any], checkouts: Sequence[Path], rounds: int, scratch: Path) -> list[str]:
    """Measure a task with each checkout in turn; return the rows of a table."""
    results: list[list[dict]] = [[] for _ in checkouts]
    for checkout in checkouts:
        # Compiles what is not cached.
        in_process_of(checkout, task | {"controls": min(task["controls"] or _FEW, _FEW)}, scratch)
    for _ in range(rounds):
        for own, checkout in zip(results, checkouts, strict=True):
            own.append(in_process_of(checkout, task, scratch))
    best = [
        (
            {name: min(r["cpu_s"].get(name, 0.0) for r in own) for name in names(own)},
            {name: max(r["peak_mb"].get(name, 0.0) for r in own) for name in names(own)},
        )
        for own in results
    ]
    rows = []
    fit = [name for name in (*PARTS, REST) if any(name in cpu for cpu, _ in best)]
    for name, parts in [*((name, [name]) for name in fit), ("fit", fit), (MAP, [MAP])]:
        cpu = [sum(seconds.get(part, 0.0) for part in parts) for seconds, _ in best]
        peak = [max(memory.get(part, 0.0) for part in parts) for _, memory in best]
        ratios = [f"{a[0] / a[1]:.2f}" if len(a) > 1 and a[1] else "" for a in (cpu, peak)]
        rows.append(f"| {name} | {cpu[0]:.1f} | {ratios[0]} | {peak[0]:.0f} | {ratios[1]} |")
    return rows


def names(results: Sequence[Mapping[str, Mapping[str, float]]]) -> list[str]:
    return [*dict.fromkeys(name for result in results for name in result["cpu_s"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, metavar="OUT", help="output folder of a run, with patches and encoders")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--controls", type=int, nargs="+", metavar="N")
    parser.add_argument("--spacing", type=float, default=2.0, metavar="MM", help="of synthetic controls")
    parser.add_argument("--scorers", nargs="+", default=["ocsvm", "derived_features", "intensity", "extension"])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="folder for controls and features; a temporary one by default")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    if not options.run and not options.controls:
        parser.error("expected --run OUT, or --controls N for synthetic controls")
    checkouts = [HERE.parents[1], *([options.against.resolve()] if options.against else [])]
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        task = {"run": None, "scorers": options.scorers, "jobs": options.jobs, "scratch": folder}
        if options.run:
            run = options.run.resolve()
            task |= {"run": str(run), "patches": str(run / "patches")}
        else:
            patches = write_controls(scratch / "patches", max(options.controls), options.spacing)
            task |= {"patches": str(patches)}
        for count in options.controls or [None]:
            print(f"\n{count or 'all'} controls, {', '.join(options.scorers)}, {options.jobs} thread(s)\n")
            print("| part | CPU, s | ratio | peak memory, MB | ratio |\n|---|---|---|---|---|")
            print("\n".join(compared(task | {"controls": count}, checkouts, options.rounds, scratch)), flush=True)


if __name__ == "__main__":
    main()
