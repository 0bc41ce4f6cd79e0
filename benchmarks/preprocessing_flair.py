"""FLAIR part of `benchmarks/preprocessing.py`: alignment of FLAIR to T1w after known rigid transforms."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from preprocessing_measures import (
    SEED,
    Numbers,
    about,
    heads,
    moved,
    output_folder,
    reference_mask,
)
from scipy import ndimage
from scipy.spatial.transform import Rotation
from voxout.data_manifests.images.volume import Grid, Volume, read_mask, read_volume
from voxout.preprocessing.registration.coregistration import Alignment, align_to_t1w
from voxout.preprocessing.registration.resampling import LPS, canonical, itk_affine, resample


def flair_moved(data: Path, out: Path, name: str) -> Numbers:
    """Align a FLAIR moved by its header or by resampling, and compare with the alignment of the unmoved FLAIR.

    The headers are no ground truth: the heads moved by a millimetre between the two scans, as shown by the edges, which
    the alignment does not use.
    """
    cohort, key = name.rsplit("_", 1)
    record = heads(data, cohort)[key]
    t1w, flair = (canonical(read_volume(record.images[m])) for m in ("t1w", "flair"))
    brain = canonical(reference_mask(data, cohort, key))
    random = np.random.default_rng(sum(key.encode()))
    by_header, by_resampling = (_random_move(brain, random) for _ in range(2))
    images = {
        "left in place": (flair, np.eye(4)),
        "moved by its header": (Volume(flair.voxels, Grid(flair.grid.size_vox, by_header @ flair.affine)), by_header),
        "moved by resampling": (
            resample(flair, flair.grid, itk_affine(np.linalg.inv(by_resampling)), "bspline"),
            by_resampling,
        ),
    }
    began = time.process_time()
    points = _brain_points(brain)
    alignments = {kind: align_to_t1w(image, t1w, brain, seed=SEED) for kind, (image, _) in images.items()}
    unmoved = alignments["left in place"]
    in_place = reached(unmoved, points)
    found: dict[str, Any] = {
        "cpu_s": (time.process_time() - began) / len(alignments),
        "header_off_mm": _apart(in_place, points),
        "edges_by_header": _edges_agree(t1w, flair, brain),
        "edges_aligned": _edges_agree(t1w, resample(flair, t1w.grid, unmoved.transform, "bspline"), brain),
    }
    for kind, (_, move) in images.items():
        found[kind] = {
            "moved_mm": _apart(moved(points, move), points),
            "error_mm": _apart(reached(alignments[kind], points), moved(in_place, move)),
            "information": alignments[kind].information,
        }
    return found


def _edges_agree(t1w: Volume, flair: Volume, brain: Volume) -> float:
    """Correlation of the gradient magnitudes of the two images in the brain."""
    one, other = (ndimage.gaussian_gradient_magnitude(v.voxels, 0.7)[brain.voxels] for v in (t1w, flair))
    return float(np.corrcoef(one, other)[0, 1])


def flair_unaligned(data: Path, out: Path, name: str) -> Numbers:
    """Align from seven headers (the original and six moved ones); distances of the results to their median."""
    cohort, key = name.rsplit("_", 1)
    record = heads(data, cohort)[key]
    t1w, flair = (canonical(read_volume(record.images[m])) for m in ("t1w", "flair"))
    brain = canonical(read_mask(output_folder(out, cohort).native_brain_mask(record)))
    random = np.random.default_rng(sum(key.encode()))
    points, ends, information = _brain_points(brain), [], []
    for move in [np.eye(4), *(_random_move(brain, random) for _ in range(6))]:
        image = Volume(flair.voxels, Grid(flair.grid.size_vox, move @ flair.affine))
        alignment = align_to_t1w(image, t1w, brain, seed=SEED)
        ends.append(moved(reached(alignment, points), np.linalg.inv(move)))
        information.append(alignment.information)
    middle = np.median(ends, axis=0)
    return {
        "header_wrong_mm": _apart(middle, points),
        "spread_mm": [_apart(end, middle) for end in ends],
        "information": information,
    }


def _random_move(brain: Volume, random: np.random.Generator) -> np.ndarray:
    """Rigid transform of 5 to 20 mm and 4 to 15 degrees about the centre of the brain."""
    axis, towards = (vector / np.linalg.norm(vector) for vector in random.normal(size=(2, 3)))
    middle = brain.affine[:3, :3] @ ndimage.center_of_mass(brain.voxels) + brain.affine[:3, 3]
    return about(
        middle, Rotation.from_rotvec(axis * np.radians(random.uniform(4, 15))), towards * random.uniform(5, 20)
    )


def reached(alignment: Alignment, points: np.ndarray) -> np.ndarray:
    return np.array([alignment.transform.TransformPoint(point.tolist()) for point in points @ LPS]) @ LPS


def _brain_points(brain: Volume) -> np.ndarray:
    indices = np.argwhere(brain.voxels)
    return moved(indices[:: max(1, len(indices) // 2000)], brain.affine)


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other, axis=1).mean())
