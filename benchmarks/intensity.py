"""Comparison of intensity standardisation methods on scans of other scanners.

    python benchmarks/intensity.py --run real_cohort --data ../shared/data --out /tmp/intensity

`--run` is the output folder of `benchmarks/real_cohort.py`; its prepared training controls give the mean and variance
of every voxel. The scans of `wmh` and `tumour` are prepared under `--out`. All methods use the same prepared images
(clipped at percentiles 0.5 and 99.5), as in the pipeline.

The detector is simple, so that only the intensities matter: z = |x - mean| / SD at every voxel, with the variance
pooled over the 3x3x3 neighbours. Healthy tissue is the brain outside the lesion mask, dilated by one voxel.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score
from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.errors import SubjectError
from voxout.data_manifests.images.volume import read_mask
from voxout.preprocessing.intensity.standardisation import IntensityScale
from voxout.preprocessing.prepare_subject import prepare_subject
from voxout.preprocessing.prepared_images import PreparedImages
from voxout.preprocessing.quality.verdict import Quality
from voxout.preprocessing.registration.template import Template, load_template
from voxout.preprocessing.settings import IntensityMethod, PreprocessingSettings

SPACING_MM = 2.0
ALARM_SHARE = 0.001
"""Fraction of the voxels of held-out controls above the threshold of an alarm."""


@dataclass(frozen=True)
class Group:
    """Named group of test scans: records and the output folders of their prepared images."""

    name: str
    members: Sequence[tuple[SubjectRecord, OutputFolder]]


@dataclass(frozen=True)
class ScanResult:
    """Result of one scan with one method.

    Attributes
    ----------
    grey, white : float
        Median z in the healthy part of each tissue; 0.67 for a scan that is distributed as the controls.
    shift_grey, shift_white : float
        Median of the signed z, which gives the direction of the deviation.
    alarms : float
        Fraction of the healthy brain above the threshold of the held-out controls.
    auroc, precision : float
        AUROC and average precision of the lesion voxels; NaN without lesions.
    scores, truth : ndarray, (N,)
        |z| and lesion mask in the brain.
    """

    grey: float
    white: float
    shift_grey: float
    shift_white: float
    alarms: float
    auroc: float
    precision: float
    scores: np.ndarray
    truth: np.ndarray


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("real_cohort"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("intensity"))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    if not (options.data / "wmh").is_dir() or not (options.run / "cohort" / "cohort.csv").is_file():
        print(f"skipped: no real scans at {options.data}, or no run of benchmarks/real_cohort.py at {options.run}")
        return 0
    controls, groups = _groups(options.run, options.data, options.out, options.jobs)
    template = load_template(SPACING_MM)
    lines = [
        f"{len(controls)} training controls, {time.strftime('%Y-%m-%d')}",
        "",
        "| scans | n | method | z grey | z white | shift grey | shift white | alarms, per mille | AUROC | AP |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    results = {method: evaluate(method, controls, groups, template) for method in get_args(IntensityMethod)}
    for group in groups:
        for method, found in results.items():
            lines.append(_line(group.name, method, found[group.name]))
    for method, found in results.items():
        lines.append(_pooled_line(method, [one for group in found.values() for one in group]))
    table = "\n".join(lines)
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(table + "\n")
    return 0


def evaluate(
    method: IntensityMethod, controls: Sequence[PreparedImages], groups: Sequence[Group], template: Template
) -> Mapping[str, list[ScanResult]]:
    """Fit on the controls and evaluate all scans of all groups; the first group sets the threshold of an alarm."""
    grid, inside = template.grid, template.brain_mask.voxels
    scale = IntensityScale.learn(method, ("t1w",), controls, grid)
    total, squares = np.zeros(inside.shape), np.zeros(inside.shape)
    for control in controls:
        image = scale.read(control, grid)[0].astype(np.float64)
        total, squares = total + image, squares + image**2
    mean = total / len(controls)
    variance = _pooled_variance(mean, squares / len(controls) - mean**2, inside)
    found: dict[str, list[ScanResult]] = {}
    threshold = np.nan
    for group in groups:
        maps = []
        for subject, out in group.members:
            prepared = PreparedImages.from_record(subject, out, ("t1w",))
            signed = (scale.read(prepared, grid)[0] - mean) / np.sqrt(variance)
            brain = inside & prepared.read_brain_mask(grid).voxels
            lesions = np.zeros(inside.shape, bool)
            if subject.group == "patient":
                lesions = read_mask(out.prepared_lesion_mask(subject)).voxels
            maps.append((signed, brain, lesions))
        if np.isnan(threshold):
            threshold = float(np.mean([np.quantile(np.abs(z[brain]), 1 - ALARM_SHARE) for z, brain, _ in maps]))
        found[group.name] = [_scan_result(*one, threshold, template) for one in maps]
    return found


def _scan_result(
    z: np.ndarray, brain: np.ndarray, lesions: np.ndarray, threshold: float, template: Template
) -> ScanResult:
    healthy = brain & ~ndimage.binary_dilation(lesions, np.ones((3, 3, 3)))
    grey, white = (z[healthy & (tissue.voxels > 0.7)] for tissue in (template.grey, template.white))
    scores, truth = np.abs(z[brain]), lesions[brain]
    return ScanResult(
        grey=float(np.median(np.abs(grey))),
        white=float(np.median(np.abs(white))),
        shift_grey=float(np.median(grey)),
        shift_white=float(np.median(white)),
        alarms=float((np.abs(z[healthy]) > threshold).mean()),
        auroc=float(roc_auc_score(truth, scores)) if truth.any() else np.nan,
        precision=float(average_precision_score(truth, scores)) if truth.any() else np.nan,
        scores=scores.astype(np.float32),
        truth=truth,
    )


def _pooled_variance(mean: np.ndarray, variance: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Mean over the 3x3x3 neighbours in the brain of their variance plus the squared difference of the means."""

    def around(values: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(np.where(inside, values, 0.0), 3, mode="constant")

    counted = np.maximum(around(np.ones(inside.shape)), 1e-9)
    first, second = around(mean) / counted, around(variance + mean**2) / counted
    pooled = second - 2 * mean * first + mean**2
    return np.maximum(pooled, 0.003 * np.median(pooled[inside]))


def _groups(run: Path, data: Path, out: Path, jobs: int) -> tuple[list[PreparedImages], list[Group]]:
    cohort, folder = read_manifest(run / "cohort" / "cohort.csv"), OutputFolder(run / "run")
    controls = [PreparedImages.from_record(r, folder, ("t1w",)) for r in cohort.controls if r.split == "train"]
    held_out = [r for r in cohort.controls if r.split == "held_out"]
    parts = {"IXI, held out": held_out}
    parts |= {
        name: [r for r in cohort.patients if r.site == site]
        for name, site in (("IXI, simulated lesions", "painted"), ("MS (expert masks)", "Ljubljana"))
    }
    groups = [Group(name, [(r, folder) for r in records]) for name, records in parts.items()]
    records = []
    for name in ("wmh", "tumour"):
        records += [replace(r, group="patient", site=name, brain_mask=None) for r in read_manifest(data / name)]
    others = OutputFolder(out)
    missing = [record for record in records if not others.quality(record).exists()]
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for reason in pool.map(partial(_prepare, out=others), missing):
            print(f"left out: {reason}" if reason else ".", flush=True)
    good = [record for record in records if Quality.load(others.quality(record)).verdict != "fail"]
    for name in ("wmh", "tumour"):
        groups.append(Group(f"{name} (automatic masks)", [(r, others) for r in good if r.site == name]))
    return controls, groups


def _prepare(record: SubjectRecord, out: OutputFolder) -> str | None:
    """Prepare one scan; return the reason if it failed, else None."""
    try:
        prepare_subject(record, PreprocessingSettings(), out, seed=0)
    except SubjectError as error:
        return str(error)
    return None


def _line(group: str, method: str, found: Sequence[ScanResult]) -> str:
    def mean(name: str) -> float:
        return float(np.mean([getattr(one, name) for one in found]))

    def size(name: str) -> float:
        return float(np.mean([abs(getattr(one, name)) for one in found]))

    cells = [f"{mean('grey'):.2f}", f"{mean('white'):.2f}", f"{size('shift_grey'):.2f}", f"{size('shift_white'):.2f}"]
    cells += [f"{1000 * mean('alarms'):.1f}"]
    cells += ["" if np.isnan(mean(name)) else f"{mean(name):.3f}" for name in ("auroc", "precision")]
    return f"| {group} | {len(found)} | {method} | " + " | ".join(cells) + " |"


def _pooled_line(method: str, found: Sequence[ScanResult]) -> str:
    """Metrics of the pooled voxels of all scans, with one threshold for all scanners."""
    scores, truth = (np.concatenate([getattr(one, name) for one in found]) for name in ("scores", "truth"))
    auroc, precision = roc_auc_score(truth, scores), average_precision_score(truth, scores)
    return f"| all, pooled | {len(found)} | {method} | | | | | | {auroc:.3f} | {precision:.3f} |"


if __name__ == "__main__":
    sys.exit(main())
