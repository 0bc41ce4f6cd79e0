"""Who the method is judged on: the truth of painted heads, healthy heads and patients, on a grid of locations."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from method_cohort import LABELS, kinds_file
from scipy import ndimage
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.images.volume import Volume, read_mask, read_volume
from voxout.evaluation.metrics.components import find_lesions
from voxout.preprocessing.patches.voxel_mask import VoxelMask
from voxout.preprocessing.registration.template_transform import TemplateTransform

ALL = "all"
FURTHEST_VOX = 3.0
"""Between a voxel of a prepared lesion mask and the next that has a number."""
RIM_MM = 4.0
"""Maps of patches spill over a lesion's edge: around a lesion of another kind that is nobody's false alarm."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One subject's truth over P locations.

    Attributes
    ----------
    key : str
    grid : VoxelMask
    inside : ndarray of bool, (P,)
        Its own brain.
    lesions : ndarray of int32, (P,)
        0 where it is healthy, else the number of the lesion, from 1.
    kind_of : ndarray of uint8, (L,)
        The label of each lesion's kind.
    """

    key: str
    grid: VoxelMask
    inside: np.ndarray
    lesions: np.ndarray
    kind_of: np.ndarray

    @classmethod
    def read(cls, record: SubjectRecord, out: OutputFolder, grid: VoxelMask) -> "Subject":
        """Of a prepared subject; lesions outside its brain are no part of the truth.

        Real lesions, whose kind nobody knows, are of kind 0.
        """
        inside = read_mask(out.prepared_brain_mask(record)).voxels & grid.brain_mask
        labels, kind_of = np.zeros(grid.grid.size_vox, np.int32), np.zeros(0, np.uint8)
        if record.lesion_mask is not None:
            truth = read_mask(out.prepared_lesion_mask(record))
            if kinds_file(record).exists():
                labels, kind_of = _painted_lesions(record, out, truth)
            else:
                labels = find_lesions(truth).labels
                kind_of = np.zeros(labels.max(), np.uint8)
        return cls.of(record.key, grid, inside, labels, kind_of)

    @classmethod
    def read_in_own_space(cls, record: SubjectRecord, out: OutputFolder) -> "Subject":
        """Of a prepared subject with lesions, on the grid of its own T1w: the locations are the voxels of its brain."""
        brain = read_mask(out.native_brain_mask(record))
        if kinds_file(record).exists():
            labels, kind_of = _lesions_by_kind(read_volume(kinds_file(record)))
        else:
            labels = find_lesions(read_mask(out.native_lesion_mask(record))).labels
            kind_of = np.zeros(labels.max(), np.uint8)
        return cls.of(record.key, VoxelMask(brain.grid, brain.voxels), brain.voxels, labels, kind_of)

    @classmethod
    def of(cls, key: str, grid: VoxelMask, inside: np.ndarray, labels: np.ndarray, kind_of: np.ndarray) -> "Subject":
        """From a brain and numbered lesions, both (X, Y, Z); lesions that are not in the brain lose their number."""
        there, labels = np.unique(np.where(inside, labels, 0), return_inverse=True)
        labels = labels.reshape(inside.shape).astype(np.int32)
        return cls(key, grid, grid.transform(inside), grid.transform(labels), kind_of[there[there > 0] - 1])

    @property
    def kinds(self) -> np.ndarray:
        """The label of the kind at every location, (P,) uint8; 0 where it is healthy (or the kind is not known)."""
        return np.append(np.uint8(0), self.kind_of)[self.lesions]

    @cached_property
    def judged(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For each kind that the brain holds, and for all: the locations that count, (P,) bool, and its truth there."""
        found = {ALL: (self.inside, self.lesions[self.inside] > 0)}
        kinds = self.kinds
        rim_vox = max(round(RIM_MM / float(self.grid.grid.spacing_mm.max())), 1)
        for name, label in LABELS.items():
            own = kinds == label
            others = self.grid.inverse_transform((self.lesions > 0) & ~own)
            if others.any():
                others = ndimage.binary_dilation(others, iterations=rim_vox)
            counts = self.inside & (own | ~self.grid.transform(others))
            found[name] = counts, own[counts]
        return found


def _lesions_by_kind(kinds: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Lesions painted on a head: the number of every voxel's, (X, Y, Z), and the kind of each, (L,)."""
    labels = find_lesions(kinds.with_voxels(kinds.voxels > 0)).labels
    kind_of = ndimage.maximum(kinds.voxels, labels, np.arange(1, labels.max() + 1))
    return labels, np.asarray(kind_of, dtype=np.uint8)


def _painted_lesions(record: SubjectRecord, out: OutputFolder, truth: Volume) -> tuple[np.ndarray, np.ndarray]:
    """The number of every voxel's lesion on the template grid, (X, Y, Z), and the kind of each lesion.

    Lesions are told apart in the head's own space, where each is one piece: a thin one may come apart on the way. The
    prepared mask keeps volumes and the numbers come over by nearest neighbours, so at an edge the next number serves.
    """
    kinds = read_volume(kinds_file(record))
    labels, kind_of = _lesions_by_kind(kinds)
    transform = TemplateTransform.load(out.transform_folder(record))
    warped = transform.to_template(kinds.with_voxels(labels), truth.grid, interpolation="nearest")
    warped = np.round(warped.voxels).astype(np.int32)
    away, nearest = ndimage.distance_transform_edt(warped == 0, return_indices=True)
    if (away[truth.voxels] > FURTHEST_VOX).any():
        raise ValueError(f"{record.key}: its lesions by kind do not lie on its prepared lesion mask. Prepare it again.")
    numbers = np.where(truth.voxels, warped[tuple(nearest)], 0)
    return numbers, kind_of


@dataclass(frozen=True, eq=False)
class TestSet:
    """Who a method is judged on.

    Attributes
    ----------
    painted : tuple of Subject
    healthy : tuple of Subject
        Unseen by the method.
    patients : tuple of Subject
        With real lesions.
    """

    painted: tuple[Subject, ...]
    healthy: tuple[Subject, ...]
    patients: tuple[Subject, ...]

    @classmethod
    def read(cls, manifest: Manifest, out: OutputFolder, grid: VoxelMask, site: str) -> "TestSet":
        """The painted heads of one site ("validate" or "test"), the held-out controls, the real patients."""
        painted = [r for r in manifest.patients if r.site == site]
        healthy = [r for r in manifest.controls if r.split == "held_out"]
        patients = [r for r in manifest.patients if r.site == "Ljubljana"]
        groups = (tuple(Subject.read(r, out, grid) for r in records) for records in (painted, healthy, patients))
        return cls(*groups)

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Those that pooled figures rest on."""
        return (*self.painted, *self.healthy)
