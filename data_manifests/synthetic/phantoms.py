"""Synthetic cohorts on disk, with ground truth.

Heads are generated from a seed (`make_head`), without input data. A cohort is a BIDS-like folder with a manifest and is
read in the same way as real scans.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from ..atomic_write import atomic_write
from ..cohort.manifest import write_manifest
from ..cohort.subject import Manifest, SubjectRecord
from ..images.grid import Grid
from ..images.volume import Volume, write_volume
from ..terms import BIDS_SUFFIX, Group, Modality, Split
from .phantom_head import Phantom, PhantomLesion, make_head

__all__ = ["Phantom", "PhantomLesion", "make_cohort", "make_head", "small_asymmetric_phantom", "small_cohort"]

_ROLES: tuple[tuple[str, Group, Split | None], ...] = (
    ("control", "control", "train"),
    ("heldout", "control", "held_out"),
    ("patient", "patient", None),
)
_SMALL_SPACING_MM = 4.0


def make_cohort(
    folder: Path,
    *,
    controls: int,
    held_out: int,
    patients: int,
    spacing_mm: float,
    seed: int = 0,
    modalities: Sequence[Modality] = ("t1w",),
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Write a cohort of heads with skull, which need brain extraction.

    Scans are in ``sub-*/anat``, the ground truth is in ``derivatives/reference`` (brain masks of all subjects, lesion
    masks of patients, ``lesions.tsv``). The manifest lists scans and lesion masks, but no brain masks. The scan of a
    subject depends only on the seed, its role and its number: a larger cohort contains the smaller one.

    Parameters
    ----------
    folder : Path
        Created if missing; files of the same names are replaced.
    controls, held_out, patients : int
        Number of training controls, of held-out controls, and of patients (2 to 4 lesions each).
    spacing_mm : float
        Edge length of the voxels.
    seed : int
        Not negative.
    modalities : sequence of {"t1w", "flair"}
        Must contain ``"t1w"``.
    progress : callable, optional
        Called as (done, total, subject key) after each subject.

    Returns
    -------
    Path
        Path of ``cohort.csv``.
    """
    counts = (controls, held_out, patients)
    return _write_cohort(folder, counts, spacing_mm, seed, modalities, progress, skull=True)


def small_cohort(
    folder: Path,
    *,
    controls: int = 8,
    held_out: int = 0,
    patients: int = 2,
    seed: int = 0,
    modalities: Sequence[Modality] = ("t1w",),
) -> Path:
    """Write a cohort of coarse skull-stripped brains for quick tests; the manifest lists their brain masks.

    Parameters and return value are those of `make_cohort`.
    """
    return _write_cohort(folder, (controls, held_out, patients), _SMALL_SPACING_MM, seed, modalities, None, skull=False)


def small_asymmetric_phantom(size_vox: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Volume:
    """Return a volume in RAS order that no flip or swap of axes maps onto itself.

    Three smooth blobs of different size and brightness lie at different distances along +x, +y and +z from the centre.

    Parameters
    ----------
    size_vox : tuple of int, (X, Y, Z)
    spacing_mm : tuple of float, (x, y, z)

    Returns
    -------
    Volume
        float32, in [0, 1]; the centre of the grid is at 0 mm.
    """
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = [-0.5 * (n - 1) * mm for n, mm in zip(size_vox, spacing_mm, strict=True)]
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in size_vox], indexing="ij")
    voxels = np.zeros(size_vox)
    blobs = (
        ((0, 0, 0), 0.55, 0.35),
        ((0.5, 0.05, 0), 0.16, 1.0),
        ((-0.1, 0.6, 0.1), 0.2, 0.6),
        ((0, -0.15, 0.4), 0.26, 0.8),
    )
    for centre, radius, height in blobs:
        squared = sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True))
        voxels = np.maximum(voxels, height * np.exp(-0.5 * squared / radius**2))
    return Volume(voxels.astype(np.float32), Grid(size_vox, affine))


def _write_cohort(
    folder: Path,
    counts: tuple[int, int, int],
    spacing_mm: float,
    seed: int,
    modalities: Sequence[Modality],
    progress: Callable[[int, int, str], None] | None,
    *,
    skull: bool,
) -> Path:
    records: list[SubjectRecord] = []
    lesions: list[tuple[str, PhantomLesion]] = []
    for role, ((name, group, split), count) in enumerate(zip(_ROLES, counts, strict=True)):
        for number in range(1, count + 1):
            state = np.random.SeedSequence([seed, role, number]).generate_state(2, np.uint64)
            phantom = make_head(
                int(state[0]),
                spacing_mm=spacing_mm,
                lesions=2 + int(state[1] % 3) if group == "patient" else 0,
                modalities=modalities,
                skull=skull,
            )
            subject = SubjectRecord(f"{name}{number:03d}", group, {}, site="synthetic", age=phantom.age, split=split)
            record = _write_subject(folder, subject, phantom, list_brain_mask=not skull)
            records.append(record)
            lesions += [(record.key, lesion) for lesion in phantom.lesions]
            if progress:
                progress(len(records), sum(counts), record.key)
    _write_tables(folder, records, lesions)
    manifest = folder / "cohort.csv"
    write_manifest(manifest, Manifest(tuple(records)))
    return manifest


def _write_subject(folder: Path, subject: SubjectRecord, phantom: Phantom, *, list_brain_mask: bool) -> SubjectRecord:
    images: dict[Modality, Path] = {}
    for modality, image in phantom.images.items():
        path = folder / subject.key / "anat" / f"{subject.key}_{BIDS_SUFFIX[modality]}.nii.gz"
        # Integers, as stored by scanners; they also need only a third of the space.
        images[modality] = write_volume(path, image.with_voxels(image.voxels.astype(np.int16)))
    reference = folder / "derivatives" / "reference" / subject.key / "anat"
    brain_mask = write_volume(reference / f"{subject.key}_desc-brain_mask.nii.gz", phantom.brain_mask)
    lesion_mask = None
    if phantom.lesion_mask is not None:
        lesion_mask = write_volume(reference / f"{subject.key}_label-lesion_mask.nii.gz", phantom.lesion_mask)
    return SubjectRecord(
        subject.subject_id,
        subject.group,
        images,
        brain_mask=brain_mask if list_brain_mask else None,
        lesion_mask=lesion_mask,
        site=subject.site,
        age=subject.age,
        split=subject.split,
    )


def _write_tables(folder: Path, records: Sequence[SubjectRecord], lesions: Sequence[tuple[str, PhantomLesion]]) -> None:
    described = {"Name": "voxout synthetic cohort", "BIDSVersion": "1.10.0", "DatasetType": "raw", "License": "CC0"}
    _write_text(folder / "dataset_description.json", json.dumps(described, indent=2) + "\n")
    _write_table(
        folder / "participants.tsv",
        ("participant_id", "group", "age", "site"),
        ((r.key, r.group, r.age, r.site) for r in records),
    )
    _write_table(
        folder / "derivatives" / "reference" / "lesions.tsv",
        ("participant_id", "place", "x_mm", "y_mm", "z_mm", "volume_ml", "strength"),
        (
            (
                key,
                lesion.place,
                *(f"{mm:.1f}" for mm in lesion.centre_mm),
                f"{lesion.volume_ml:.3f}",
                f"{lesion.strength:.3f}",
            )
            for key, lesion in lesions
        ),
    )


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    _write_text(path, text.getvalue())


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
