"""Sensitivity of the quality checks to known errors of preprocessing.

    python benchmarks/quality.py --cohort real_cohort/cohort/cohort.csv --run real_cohort/run --every 8

Takes subjects prepared by `voxout prepare`, corrupts the transform, the brain mask or the scan, and recomputes the
quality metrics. Prints the median of each metric and the fraction of subjects that warn or fail with the default
limits. The first row, without corruption, gives the false alarms.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.images.volume import Volume, read_mask, read_volume
from voxout.preprocessing.brain_extraction.extract import BrainExtraction
from voxout.preprocessing.intensity.bias_field import correct_bias_field
from voxout.preprocessing.quality.metrics import QualityNumbers
from voxout.preprocessing.quality.verdict import measure_quality
from voxout.preprocessing.registration.resampling import canonical
from voxout.preprocessing.registration.template import load_template
from voxout.preprocessing.registration.template_transform import TemplateTransform
from voxout.preprocessing.settings import PreprocessingSettings

SHOWN = tuple(f.name for f in fields(QualityNumbers) if not f.name.startswith("jacobian"))


@dataclass(frozen=True, eq=False)
class Preparation:
    t1w: Volume
    mask: Volume
    transform: TemplateTransform


Corruption = Callable[[Preparation], Preparation]


def shifted(mm: float) -> Corruption:
    return lambda p: _moved(p, np.eye(3), np.full(3, mm / np.sqrt(3)))


def rotated(degrees: float) -> Corruption:
    """Rotation about the left-right axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return lambda p: _moved(p, np.array([[1, 0, 0], [0, c, -s], [0, s, c]]), np.zeros(3))


def mirrored(axis: int) -> Corruption:
    sign = np.ones(3)
    sign[axis] = -1
    return lambda p: _moved(p, np.diag(sign), np.zeros(3))


def _moved(p: Preparation, matrix: np.ndarray, shift: np.ndarray) -> Preparation:
    """Apply a linear map about the centre of the template brain."""
    centre, change = np.array([0.0, -18.0, 8.0]), np.eye(4)
    change[:3, :3], change[:3, 3] = matrix, centre - matrix @ centre + shift
    return replace(p, transform=replace(p.transform, affine=p.transform.affine @ change))


def affine_only(p: Preparation) -> Preparation:
    return replace(p, transform=p.transform.affine_only())


def grown(mm: float) -> Corruption:
    """Dilate the mask by some millimetres, or erode it if negative."""

    def corrupt(p: Preparation) -> Preparation:
        spacing = p.mask.grid.spacing_mm
        outside = ndimage.distance_transform_edt(~p.mask.voxels, sampling=spacing)
        inside = ndimage.distance_transform_edt(p.mask.voxels, sampling=spacing)
        return replace(p, mask=p.mask.with_voxels(outside - inside <= mm))

    return corrupt


def cut_below(share: float) -> Corruption:
    """Remove the lowest part of the mask, beginning with the cerebellum."""

    def corrupt(p: Preparation) -> Preparation:
        heights = np.nonzero(p.mask.voxels.any((0, 1)))[0]
        mask = p.mask.voxels.copy()
        mask[:, :, : int(heights[0] + share * len(heights))] = False
        return replace(p, mask=p.mask.with_voxels(mask))

    return corrupt


def noisy(share: float) -> Corruption:
    def corrupt(p: Preparation) -> Preparation:
        level = share * np.percentile(p.t1w.voxels[p.mask.voxels], 75)
        noise = np.random.default_rng(0).normal(0, level, p.t1w.voxels.shape)
        return replace(p, t1w=p.t1w.with_voxels(np.maximum(p.t1w.voxels + noise, 0).astype(np.float32)))

    return corrupt


CORRUPTIONS: dict[str, Corruption] = {
    "none": lambda p: p,
    "affine only, no warp": affine_only,
    "shifted by 3 mm": shifted(3),
    "shifted by 6 mm": shifted(6),
    "shifted by 12 mm": shifted(12),
    "rotated by 5 degrees": rotated(5),
    "rotated by 10 degrees": rotated(10),
    "rotated by 20 degrees": rotated(20),
    "mirrored front to back": mirrored(1),
    "mirrored top to bottom": mirrored(2),
    "mask 3 mm larger": grown(3),
    "mask 6 mm larger": grown(6),
    "mask 3 mm smaller": grown(-3),
    "mask 6 mm smaller": grown(-6),
    "mask without the lowest tenth": cut_below(0.1),
    "mask without the lowest quarter": cut_below(0.25),
    "5 % additional noise": noisy(0.05),
    "10 % additional noise": noisy(0.10),
}


def _preparation(subject: SubjectRecord, out: OutputFolder, settings: PreprocessingSettings) -> Preparation:
    scan, mask = canonical(read_volume(subject.images["t1w"])), canonical(read_mask(out.native_brain_mask(subject)))
    scan = scan.with_voxels(np.maximum(scan.voxels, 0))
    transform = TemplateTransform.load(out.transform_folder(subject))
    return Preparation(correct_bias_field(scan, mask, settings.bias_field), mask, transform)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, default=Path("real_cohort/cohort/cohort.csv"))
    parser.add_argument("--run", type=Path, default=Path("real_cohort/run"))
    parser.add_argument("--every", type=int, default=8, help="use every n-th subject")
    options = parser.parse_args(arguments)
    if not options.cohort.exists():
        print(f"skipped: no cohort at {options.cohort}")
        return 0
    out, settings = OutputFolder(options.run), PreprocessingSettings()
    template = load_template(settings.registration.working_spacing_mm)
    subjects = [s for s in list(read_manifest(options.cohort))[:: options.every] if out.quality(s).exists()]
    prepared = [_preparation(subject, out, settings) for subject in subjects]
    print(f"{len(prepared)} subjects, medians\n")
    print("| corruption | warn or fail | fail | " + " | ".join(SHOWN) + " |")
    print("|---" * (len(SHOWN) + 3) + "|")
    for name, corrupt in CORRUPTIONS.items():
        found = []
        for good in prepared:
            p = corrupt(good)
            found.append(measure_quality(p.t1w, BrainExtraction(p.mask, ""), p.transform, template, settings))
        shares = [np.mean([q.verdict != "pass" for q in found]), np.mean([q.verdict == "fail" for q in found])]
        medians = [np.median([getattr(q, number) for q in found]) for number in SHOWN]
        cells = [f"{share:.0%}" for share in shares] + [f"{m:.0f}" if m > 10 else f"{m:.3f}" for m in medians]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
