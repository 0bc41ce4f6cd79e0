"""What the default gets wrong: pictures of its false positives and of missed lesions, and scores by age.

    python benchmarks/method.py --data ../shared/data --out /tmp/method --part validate --methods ensemble
    python benchmarks/method_errors.py --out /tmp/method --part validate

Draws OUT/errors-<part>-false-positives.png and OUT/errors-<part>-missed.png: each row has the mean of the controls, the
scan, and the scan with the map at z = 2.5 and 3.5. Prints the false positives, and how many voxels of the youngest and
the oldest training controls exceed the threshold, in and around the ventricles and in the whole brain; their maps are
cross-validated.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from method import METHODS, Study
from method_cohort import LABELS
from scipy import ndimage
from voxout.evaluation.report.atlas import load_atlas
from voxout.models.settings import ModelSettings
from voxout.preprocessing.prepared_images import PreparedImages

THRESHOLD = 3.5
"""About that of one false positive a brain."""
AROUND_VENTRICLES_MM = 6.0
AGE_GROUPS = {"youngest fifth": (0.0, 0.2), "middle": (0.2, 0.8), "oldest fifth": (0.8, 1.0)}
_DRAWN, _HALF_VOX = 20, 22
_LEVELS = (2.5, THRESHOLD)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("method_benchmark"))
    parser.add_argument("--part", choices=("validate", "test"), default="validate")
    parser.add_argument("--method", choices=METHODS, default="ensemble")
    options = parser.parse_args(arguments)
    study = Study(options.out, 1, options.part, jobs=2)
    null, z_maps = study.z_maps(METHODS[options.method], 0, ModelSettings().ensemble)
    found, missed = errors(study, z_maps)
    for name, items in (("false-positives", found), ("missed", missed)):
        draw(study, z_maps, items[:_DRAWN], options.out / f"errors-{options.part}-{name}.png")
    for error in found[:_DRAWN]:
        print(f"{error.key} {error.place_mm(study)} mm: z {error.z:.2f}, {error.voxels} voxels")
    print(table_by_age(study, null))
    return 0


@dataclass(frozen=True)
class Error:
    """A false positive, or a lesion that was missed.

    Attributes
    ----------
    key : str
    at : tuple of int
        Voxel with the highest score.
    z : float
    voxels : int
    kind : str
        Of the lesion; empty for a false positive.
    """

    key: str
    at: tuple[int, ...]
    z: float
    voxels: int
    kind: str = ""

    def place_mm(self, study: Study) -> list[int]:
        """Place in the template's space."""
        affine = study.mask.grid.affine
        return [round(float(value)) for value in affine[:3, :3] @ self.at + affine[:3, 3]]


def errors(study: Study, z_maps: dict[str, np.ndarray]) -> tuple[list[Error], list[Error]]:
    """False positives, the highest first, and lesions, the lowest first."""
    found, lesions = [], []
    for subject in study.test.subjects:
        z = study.mask.inverse_transform(np.where(subject.inside, z_maps[subject.key], -np.inf), -np.inf)
        truth = study.mask.inverse_transform(subject.lesions)
        clusters, n_clusters = ndimage.label(z > THRESHOLD)
        for number in range(1, n_clusters + 1):
            own = clusters == number
            if not truth[own].any():
                found.append(_error(subject.key, z, own))
        for number, label in enumerate(subject.kind_of, 1):
            if (own := truth == number).any():
                kind = next(name for name, value in LABELS.items() if value == label)
                lesions.append(_error(subject.key, z, own, kind))
    return sorted(found, key=lambda error: -error.z), sorted(lesions, key=lambda error: error.z)


def _error(key: str, z: np.ndarray, own: np.ndarray, kind: str = "") -> Error:
    at = np.unravel_index(np.argmax(np.where(own, z, -np.inf)), z.shape)
    return Error(key, tuple(int(n) for n in at), float(z[at]), int(own.sum()), kind)


def draw(study: Study, z_maps: dict[str, np.ndarray], items: Sequence[Error], path: Path) -> None:
    """Write a picture with two items a row, three panels each."""
    rows = study.store.index(study.train)
    mean = np.mean([study.store.volumes[row, 0].astype(np.float32) for row in rows], axis=0)
    figure = Figure(figsize=(13, 2.15 * -(-len(items) // 2)), layout="constrained")
    panels = figure.subplots(-(-len(items) // 2), 6, squeeze=False).reshape(-1, 3)
    for axes in panels.ravel():
        axes.axis("off")
    for error, (left, middle, right) in zip(items, panels, strict=False):
        prepared = PreparedImages.from_record(study.manifest[error.key], study.run, study.channels.modalities)
        scan = study.channels.read(prepared, study.mask.grid)[0]
        x, y, z = error.at
        part = slice(max(x - _HALF_VOX, 0), x + _HALF_VOX + 1), slice(max(y - _HALF_VOX, 0), y + _HALF_VOX + 1), z
        for axes, volume in ((left, mean), (middle, scan), (right, scan)):
            axes.imshow(volume[part].T, cmap="gray", origin="lower", vmin=0, vmax=1)
        volume = study.mask.inverse_transform(z_maps[error.key].astype(np.float32), -np.inf)[part]
        right.contour(np.maximum(volume.T, 0), levels=_LEVELS, colors=("gold", "red"), linewidths=0.8)
        middle.set_title(f"{error.key} {error.place_mm(study)} z {error.z:.1f} {error.kind}", fontsize=8)
    figure.savefig(path, dpi=75)


def table_by_age(study: Study, null: np.ndarray) -> str:
    """Voxels in a thousand above `THRESHOLD`, by age."""
    affine, voxels = study.mask.grid.affine, study.mask.locations
    distance = load_atlas().mm_to_ventricle(voxels @ affine[:3, :3].T + affine[:3, 3])
    age = np.array([study.manifest[key].age for key in study.train], float)
    lines = ["| training controls | ventricles | brain |", "|---|---|---|"]
    for name, (low, high) in AGE_GROUPS.items():
        chosen = np.flatnonzero((age >= np.quantile(age, low)) & (age <= np.quantile(age, high)))
        rows = [study.null_keys.index(study.train[n]) for n in chosen]
        cells = []
        for region in (distance <= AROUND_VENTRICLES_MM, np.ones(len(voxels), bool)):
            shares = [(null[n] > THRESHOLD)[region & study.inside[n]].mean() for n in rows]
            cells.append(f"{1000 * np.mean(shares):.2f}")
        lines.append(
            f"| {name} ({len(chosen)}, {age[chosen].min():.0f} to {age[chosen].max():.0f}) | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
