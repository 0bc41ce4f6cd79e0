"""Findings of the default in healthy heads and in heads with simulated lesions: their flags, and where they lie.

    python benchmarks/method.py --data ../shared/data --out /tmp/method --part test --methods ensemble
    python benchmarks/findings.py --out /tmp/method --part test [--threshold 3.5] [--limits] [--places 80]

Healthy heads are the training controls, by their cross-validated maps, and the held-out controls; lesions are those of
the painted scans of a part. The threshold is that of one false-positive cluster a control. The table shows what share
of the findings carries each flag of `voxout.evaluation.report.flags`: in healthy heads, at lesions (a voxel of the
finding lies in one), and for single voxels drawn at random in healthy brains, which shows how much of a brain is such a
place. ``--limits`` varies the limit of each flag; ``--places`` lists the peaks of the highest findings of the healthy
heads, with their regions.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from method import METHODS, Study
from voxout.data_manifests.images.volume import Volume, read_mask
from voxout.evaluation.metrics.cluster_parts import label_findings
from voxout.evaluation.metrics.clusters import Cluster
from voxout.evaluation.metrics.lesion_metrics import cluster_curve, operating_threshold
from voxout.evaluation.report import flags
from voxout.evaluation.report.anatomy import place_of
from voxout.evaluation.report.flags import FLAGS, Evidence, OnTemplate, evidence_of
from voxout.evaluation.settings import EvaluationSettings
from voxout.models.settings import ModelSettings
from voxout.preprocessing.registration.template import load_template
from voxout.preprocessing.registration.template_transform import TemplateTransform

LIMITS: Mapping[str, Sequence[float]] = {
    "MIRROR_MM": (0.0, 2.0, 4.0, 6.0),
    "_TOUCHING": (0.02, 0.1, 0.3),
    "BORDER_MM": (2.0, 3.0, 4.0, 6.0),
    "VENTRICLE_MM": (1.0, 3.0, 5.0),
    "MOST_JACOBIAN": (1.8, 2.5, 3.5),
    "LEAST_JACOBIAN": (0.3, 0.5, 0.65),
}
"""Constants of the module `flags`, and the values that are compared."""
GROUPS = ("in healthy heads", "at lesions", "random voxels")
_DRAWN = 100
"""Random voxels a head."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("method_benchmark"))
    parser.add_argument("--part", choices=("validate", "test"), default="test")
    parser.add_argument("--method", choices=METHODS, default="ensemble")
    parser.add_argument("--threshold", type=float, help="instead of that of one false-positive cluster a control")
    parser.add_argument("--limits", action="store_true")
    parser.add_argument("--places", type=int, default=0, metavar="N")
    options = parser.parse_args(arguments)
    study = Study(options.out, 1, options.part, jobs=2)
    measure(study, options.method, options.threshold, limits=options.limits, places=options.places)
    return 0


def measure(study: Study, method: str, threshold: float | None, *, limits: bool, places: int) -> None:
    """Print the tables."""
    null, z_maps = study.z_maps(METHODS[method], 0, ModelSettings().ensemble)
    threshold = threshold_of(study, null) if threshold is None else threshold
    heads = list(all_heads(study, null, z_maps, threshold))
    healthy = [head for head in heads if head.group == GROUPS[0]]
    print(f"threshold {threshold:.2f}; {len(healthy)} healthy heads, {sum(len(h.findings) for h in healthy)} findings")
    print(table(heads))
    for name, values in LIMITS.items() if limits else ():
        for value in values:
            with mock.patch.object(flags, name, value):
                print(f"{name} {value:g}:\n{table(heads)}")
    if places:
        print(places_table(study, healthy, places))


@dataclass(frozen=True, eq=False)
class Head:
    """Findings of a head, or random voxels, with what their flags depend on."""

    group: str
    findings: list[Cluster]
    evidence: list[Evidence]


def threshold_of(study: Study, null: np.ndarray) -> float:
    """Return the threshold of one false-positive cluster a control."""
    smallest = int(np.ceil(EvaluationSettings().smallest_cluster_mm3 / study.mask.grid.voxel_volume_mm3 - 1e-6))
    curves = []
    for z, brain in zip(null, study.inside, strict=True):
        volume = study.mask.inverse_transform(np.where(brain, z, -np.inf).astype(np.float32), -np.inf)
        nothing = np.zeros(volume.shape, np.int32)
        curves.append(cluster_curve(volume, nothing, smallest_voxels=smallest)[0].false_cluster_thresholds)
    return float(operating_threshold(curves, 1.0)[0])


def all_heads(study: Study, null: np.ndarray, z_maps: Mapping[str, np.ndarray], threshold: float) -> Iterator[Head]:
    """Yield the findings of all heads, and random voxels of the healthy ones."""
    generator = np.random.default_rng(0)
    healthy = [(key, z, brain) for key, z, brain in zip(study.train, null, study.inside, strict=True)]
    healthy += [(subject.key, z_maps[subject.key], subject.inside) for subject in study.test.healthy]
    for key, z, brain in healthy:
        found, on_template = _findings(study, key, z, brain, threshold)
        voxels = generator.choice(np.argwhere(study.mask.inverse_transform(brain)), _DRAWN, replace=False)
        affine = study.mask.grid.affine
        drawn = [voxel[None] @ affine[:3, :3].T + affine[:3, 3] for voxel in voxels]
        every = evidence_of([*(cluster.voxels_mm for cluster in found), *drawn], on_template, threshold)
        yield Head(GROUPS[0], found, every[: len(found)])
        yield Head(GROUPS[2], [], every[len(found) :])
    for subject in study.test.painted:
        lesions = study.mask.inverse_transform(subject.lesions > 0)
        found, on_template = _findings(study, subject.key, z_maps[subject.key], subject.inside, threshold, lesions)
        at_lesions = [cluster for cluster in found if cluster.in_lesion]
        evidence = evidence_of([cluster.voxels_mm for cluster in at_lesions], on_template, threshold)
        yield Head(GROUPS[1], at_lesions, evidence)


def _findings(
    study: Study, key: str, z: np.ndarray, brain: np.ndarray, threshold: float, lesions: np.ndarray | None = None
) -> tuple[list[Cluster], OnTemplate]:
    """Return the findings of a map, and what their flags depend on."""
    grid, record = study.mask.grid, study.manifest[key]
    template = load_template(float(grid.spacing_mm[0]))
    map = Volume(study.mask.inverse_transform(z.astype(np.float32)), grid)
    covered = Volume(study.mask.inverse_transform(brain), grid)
    jacobian = TemplateTransform.load(study.run.transform_folder(record)).jacobian()
    found, _ = label_findings(
        map,
        threshold,
        covered,
        smallest_mm3=EvaluationSettings().smallest_cluster_mm3,
        lesion_mask=None if lesions is None else Volume(lesions, grid),
    )
    brain_mask = read_mask(study.run.prepared_brain_mask(record))
    return list(found), OnTemplate(map, covered, brain_mask, template.grey, template.white, jacobian)


def table(heads: Sequence[Head]) -> str:
    """Return the share of the findings that carries each flag, by group."""
    carried = {group: [own.flags for head in heads if head.group == group for own in head.evidence] for group in GROUPS}
    lines = ["| | " + " | ".join(f"{len(carried[group])} {group}" for group in GROUPS) + " |", "|---" * 4 + "|"]
    for flag in FLAGS:
        shares = " | ".join(f"{100 * np.mean([flag in own for own in carried[group]]):.1f} %" for group in GROUPS)
        lines.append(f"| {flag.text} | {shares} |")
    without = " | ".join(f"{100 * np.mean([not own for own in carried[group]]):.1f} %" for group in GROUPS)
    return "\n".join([*lines, f"| none of them | {without} |"]) + "\n"


def places_table(study: Study, heads: Sequence[Head], most: int) -> str:
    """Return the peaks of the highest findings in MNI space, with side, region, lobe and tissue."""
    template = load_template(float(study.mask.grid.spacing_mm[0]))
    found = sorted((cluster for head in heads for cluster in head.findings), key=lambda one: -one.peak_score)
    lines = ["| x, y, z mm | z-score | mm³ | region at the peak | lobe | tissue | regions |", "|---" * 7 + "|"]
    for cluster in found[:most]:
        place = place_of(np.array(cluster.peak_mm), template.grey, template.white, cluster.voxels_mm)
        at = ", ".join(f"{mm:.0f}" for mm in cluster.peak_mm)
        lines.append(
            f"| {at} | {cluster.peak_score:.1f} | {cluster.volume_mm3:.0f} | {place.side} {place.region} | "
            f"{place.lobe} | {place.tissue} | {place.shares_text} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
