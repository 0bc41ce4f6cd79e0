"""Cohort for the evaluation of the method: 80 healthy IXI scans, 20 of them with simulated lesions of five kinds.

    python benchmarks/method_cohort.py --data ../shared/data --out /tmp/method/cohort

50 scans for training, 10 healthy scans held out (calibrate), 10 painted scans for the choice of settings (validate) and
10 painted scans for the reported results (test); in addition two patients with multiple sclerosis, T1w only. In
``cohort.csv``, these are split train, split held_out, site validate and site test.

A painted scan has ten lesions of 0.05-3 ml, two of each kind. The darker, brighter and textured lesions are at the
positions of the real lesions. The blurred and swollen ones are at the border of grey and white matter of the cerebrum,
where such changes are visible. In addition to the scan and the lesion mask, ``..._desc-kinds_dseg.nii.gz`` holds the
kind of each voxel, and a JSON file the names of the kinds and the effect and size of each lesion.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from painted_cohort import (
    SMALLEST_ML,
    Canvas,
    Head,
    drawn,
    lesion_shapes,
    moved_to,
    nearest_in_size,
    painted_record,
    random_ml,
    write_painted,
)
from scipy import ndimage
from voxout.data_manifests.atomic_write import atomic_write
from voxout.data_manifests.cohort.manifest import read_manifest, write_manifest
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.images.volume import Volume, write_volume
from voxout.data_manifests.synthetic.lesion_effects import Blur, Effect, Shift, Swelling, Texture
from voxout.data_manifests.synthetic.painted_lesions import tissue_thresholds

# Test before validate: the scans painted by `real_cohort.py` were inspected, and come last in this order.
PARTS = {"train": 50, "calibrate": 10, "test": 10, "validate": 10}
PAINTED = ("validate", "test")
LESIONS_A_KIND = 2
APART_VOX = 4
"""Minimum distance of lesions, so that the effect of one on a map seldom reaches the next."""
_PLACES_TRIED = 50


@dataclass(frozen=True)
class Kind:
    """Kind of lesion.

    Attributes
    ----------
    label : int
        Label in the label volume.
    effects : sequence of callables
        Functions of white-grey contrast and a seed that return an effect; used in turn.
    smallest_ml : float
        Minimum size; larger for kinds that change the structure, which is not visible in a few voxels.
    on_border : bool
        True: compact, at the border of grey and white matter. False: any shape, at the position of the real lesion.
    """

    label: int
    effects: Sequence[Callable[[float, int], Effect]]
    smallest_ml: float = SMALLEST_ML
    on_border: bool = False


KINDS = {
    "dark": Kind(1, [lambda c, _, f=f: Shift(-f * c) for f in (0.5, 1.0, 1.5)]),
    "bright": Kind(2, [lambda c, _, f=f: Shift(f * c) for f in (0.35, 0.7)]),
    "blur": Kind(3, [lambda _, __, s=s: Blur(s) for s in (2.5, 3.5)], smallest_ml=0.3, on_border=True),
    "texture": Kind(4, [lambda c, seed, f=f: Texture(f * c, 0.8, seed) for f in (0.35, 0.5)], smallest_ml=0.1),
    "swelling": Kind(5, [lambda _, __, g=g: Swelling(g) for g in (1.0, -0.45)], smallest_ml=0.3, on_border=True),
}
LABELS = {name: kind.label for name, kind in KINDS.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("method/cohort"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not (options.data / "ixi").is_dir():
        print(f"skipped: no real scans at {options.data} (expected the folders ixi, ms and lesion_masks there)")
        return 0
    print(make_cohort(options.data, options.out, options.seed))
    return 0


def make_cohort(data: Path, folder: Path, seed: int) -> Path:
    """Split the scans, paint lesions into those of `PAINTED` and write the manifest; return its path.

    Scans already painted with the same seed are kept.
    """
    heads = sorted(read_manifest(data / "ixi").records, key=lambda record: drawn(seed, record.subject_id))
    parts = iter([name for name, number in PARTS.items() for _ in range(number)])
    part_of = {head.subject_id: part for head, part in zip(heads, parts, strict=True)}
    shapes: list[Volume] = []
    records = []
    for number, head in enumerate(replace(head, brain_mask=None) for head in heads):
        part = part_of[head.subject_id]
        if part not in PAINTED:
            records.append(replace(head, split="train" if part == "train" else "held_out", site="IXI"))
            continue
        patient = painted_record(folder, head, site=part)
        if not _is_painted(patient, seed):
            print(f"painting {patient.key}", flush=True)
            shapes = shapes or lesion_shapes(data / "lesion_masks")
            mask = data / "ixi/derivatives/reference" / head.key / "anat" / f"{head.key}_desc-brain_mask.nii.gz"
            canvas, lesions = painted(Head.read(head, mask, seed=seed), shapes, number, seed)
            write_with_kinds(folder, head, canvas, lesions, site=part, seed=seed)
        records.append(patient)
    for patient in read_manifest(data / "ms"):
        records.append(replace(patient, group="patient", site="Ljubljana"))
    return write_manifest(folder / "cohort.csv", Manifest(tuple(records)))


def write_with_kinds(
    folder: Path, head: SubjectRecord, canvas: Canvas, lesions: Sequence[dict[str, object]], *, site: str, seed: int
) -> SubjectRecord:
    """Write a painted scan and the description of its lesions; return its record as a patient."""
    patient = write_painted(folder, head, canvas, site=site)
    write_volume(kinds_file(patient), canvas.image.with_voxels(canvas.labels))
    # Written last: marks the scan as complete.
    with atomic_write(_lesions_file(patient)) as temporary:
        temporary.write_text(json.dumps({"seed": seed, "kinds": LABELS, "lesions": lesions}, indent=1) + "\n")
    return patient


def kinds_file(patient: SubjectRecord) -> Path:
    """Label volume of a painted scan on the grid of its T1w: 0 or the label of a kind."""
    return patient.images["t1w"].with_name(f"{patient.key}_desc-kinds_dseg.nii.gz")


def _lesions_file(patient: SubjectRecord) -> Path:
    return patient.images["t1w"].with_name(f"{patient.key}_desc-kinds_dseg.json")


def _is_painted(patient: SubjectRecord, seed: int) -> bool:
    file = _lesions_file(patient)
    return file.exists() and json.loads(file.read_text())["seed"] == seed


# -- one head ----------------------------------------------------------------------------------------------------------
def painted(head: Head, shapes: Sequence[Volume], number: int, seed: int) -> tuple[Canvas, list[dict[str, object]]]:
    """Paint two lesions of each kind and return a row about each; the effects of a kind alternate between scans."""
    random = np.random.default_rng([seed, number])
    border = Border(head)
    canvas, lesions = Canvas.blank(head), []
    for name, kind in KINDS.items():
        for lesion in range(LESIONS_A_KIND):
            effect = kind.effects[(number * LESIONS_A_KIND + lesion) % len(kind.effects)]
            effect = effect(head.contrast, int(random.integers(2**31)))
            by_size = nearest_in_size(shapes, random_ml(random, kind.smallest_ml))
            candidates, suits = by_size, head.in_tissue
            if kind.on_border:
                compact = (shape for shape in by_size if compactness(shape) > 0.5)
                candidates, suits = border.candidates(compact, random), border.divides
            done = canvas.with_lesion(candidates, effect, suits, label=kind.label, apart_vox=APART_VOX)
            if done is None:
                print(f"found no position for a lesion of kind {name}", flush=True)
                continue
            ml = float((done.labels > 0).sum() - (canvas.labels > 0).sum()) * head.scan.grid.voxel_volume_mm3 / 1000
            lesions.append({"kind": name, "ml": round(ml, 3), "effect": repr(effect)})
            canvas = done
    return canvas, lesions


def compactness(shape: Volume) -> float:
    """Radius of the largest inscribed ball divided by that of a ball of the same volume; about 1 for a ball."""
    depth = np.asarray(ndimage.distance_transform_edt(shape.voxels)).max()
    return float(depth / np.cbrt(0.75 * shape.voxels.sum() / np.pi))


class Border:
    """Border of grey and white matter of a scan.

    Attributes
    ----------
    grey, white : ndarray of bool, (X, Y, Z)
        Tissue masks, from intensity thresholds.
    places_mm : ndarray, (N, 3)
        Voxels of the border in the cerebrum, in template space.
    """

    def __init__(self, head: Head):
        from voxout.preprocessing.intensity.bias_field import correct_bias_field
        from voxout.preprocessing.settings import BiasFieldSettings

        even = correct_bias_field(head.scan, head.brain_mask, BiasFieldSettings())
        low, high = tissue_thresholds(even, head.brain_mask)
        voxels, inside = even.voxels, head.brain_mask.voxels
        self.grey, self.white = inside & (voxels > low) & (voxels <= high), inside & (voxels > high)
        places = np.argwhere(self.white & ndimage.binary_dilation(self.grey))
        places = places @ head.scan.affine[:3, :3].T + head.scan.affine[:3, 3]
        x, y, z = head.transform.points_to_template(places).T
        # Cerebrum only: cerebellum and brainstem are below, and posterior to or between the temporal lobes.
        cerebrum = (z >= 0) | ((y >= -25) & (np.abs(x) >= 25))
        self.places_mm = np.stack([x, y, z], axis=1)[cerebrum]

    def divides(self, core: np.ndarray) -> bool:
        """Whether a lesion contains at least 33 % of each tissue, and 85 % of both together."""
        grey, white = self.grey[core].mean(), self.white[core].mean()
        return bool(min(grey, white) >= 0.33 and grey + white >= 0.85)

    def candidates(self, shapes: Iterator[Volume], random: np.random.Generator) -> Iterator[Volume]:
        """Yield each shape, moved to several random positions of the border."""
        for shape in shapes:
            for place in random.choice(self.places_mm, _PLACES_TRIED):
                yield moved_to(shape, place)


if __name__ == "__main__":
    sys.exit(main())
