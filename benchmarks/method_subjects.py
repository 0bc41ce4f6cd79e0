"""Test subjects of the method benchmark: truth of painted scans, healthy scans and patients, per voxel of a mask."""

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
"""Maximum distance of a voxel of a prepared lesion mask to the nearest voxel with a lesion number."""
RIM_MM = 4.0
"""Width of the excluded rim around lesions of another kind, as patch-based maps extend beyond lesions."""


@dataclass(frozen=True, eq=False)
class Subject:
    """Truth of one subject at the P voxels of a mask.

    Attributes
    ----------
    key : str
    mask : VoxelMask
    inside : ndarray of bool, (P,)
        Brain mask of the subject.
    lesions : ndarray of int32, (P,)
        0 in healthy tissue, else the number of the lesion, from 1.
    kind_of : ndarray of uint8, (L,)
        Label of the kind of each lesion.
    """

    key: str
    mask: VoxelMask
    inside: np.ndarray
    lesions: np.ndarray
    kind_of: np.ndarray

    @classmethod
    def read(cls, record: SubjectRecord, out: OutputFolder, mask: VoxelMask) -> "Subject":
        """Read a prepared subject; lesions outside its brain mask are ignored.

        Real lesions, whose kind is unknown, have the kind 0.
        """
        inside = read_mask(out.prepared_brain_mask(record)).voxels & mask.brain_mask
        labels, kind_of = np.zeros(mask.grid.size_vox, np.int32), np.zeros(0, np.uint8)
        if record.lesion_mask is not None:
            truth = read_mask(out.prepared_lesion_mask(record))
            if kinds_file(record).exists():
                labels, kind_of = _painted_lesions(record, out, truth)
            else:
                labels = find_lesions(truth).labels
                kind_of = np.zeros(labels.max(), np.uint8)
        return cls.from_labels(record.key, mask, inside, labels, kind_of)

    @classmethod
    def read_native(cls, record: SubjectRecord, out: OutputFolder) -> "Subject":
        """Read a prepared subject with lesions in native space, with the voxels of its brain mask."""
        brain = read_mask(out.native_brain_mask(record))
        if kinds_file(record).exists():
            labels, kind_of = _lesions_by_kind(read_volume(kinds_file(record)))
        else:
            labels = find_lesions(read_mask(out.native_lesion_mask(record))).labels
            kind_of = np.zeros(labels.max(), np.uint8)
        return cls.from_labels(record.key, VoxelMask(brain.grid, brain.voxels), brain.voxels, labels, kind_of)

    @classmethod
    def from_labels(
        cls, key: str, mask: VoxelMask, inside: np.ndarray, labels: np.ndarray, kind_of: np.ndarray
    ) -> "Subject":
        """Subject from a brain mask and numbered lesions, both (X, Y, Z); lesions outside the brain are removed."""
        present, labels = np.unique(np.where(inside, labels, 0), return_inverse=True)
        labels = labels.reshape(inside.shape).astype(np.int32)
        return cls(key, mask, mask.transform(inside), mask.transform(labels), kind_of[present[present > 0] - 1])

    @property
    def kinds(self) -> np.ndarray:
        """Label of the kind at every voxel, (P,) uint8; 0 in healthy tissue or if the kind is unknown."""
        return np.append(np.uint8(0), self.kind_of)[self.lesions]

    @cached_property
    def evaluated(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For each kind and for `ALL`: mask of the evaluated voxels, (P,) bool, and the truth at these voxels."""
        found = {ALL: (self.inside, self.lesions[self.inside] > 0)}
        kinds = self.kinds
        rim_vox = max(round(RIM_MM / float(self.mask.grid.spacing_mm.max())), 1)
        for name, label in LABELS.items():
            own = kinds == label
            others = self.mask.inverse_transform((self.lesions > 0) & ~own)
            if others.any():
                others = ndimage.binary_dilation(others, iterations=rim_vox)
            used = self.inside & (own | ~self.mask.transform(others))
            found[name] = used, own[used]
        return found


def _lesions_by_kind(kinds: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Lesion numbers of the voxels of a painted scan, (X, Y, Z), and the kind of each lesion, (L,)."""
    labels = find_lesions(kinds.with_voxels(kinds.voxels > 0)).labels
    kind_of = ndimage.maximum(kinds.voxels, labels, np.arange(1, labels.max() + 1))
    return labels, np.asarray(kind_of, dtype=np.uint8)


def _painted_lesions(record: SubjectRecord, out: OutputFolder, truth: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Lesion numbers of the voxels of the template grid, (X, Y, Z), and the kind of each lesion.

    Lesions are separated in native space, where each is one component; thin ones may break up during resampling. The
    prepared mask preserves volumes, while numbers are resampled by nearest neighbours, so voxels at an edge get the
    nearest number.
    """
    kinds = read_volume(kinds_file(record))
    labels, kind_of = _lesions_by_kind(kinds)
    transform = TemplateTransform.load(out.transform_folder(record))
    warped = transform.to_template(kinds.with_voxels(labels), truth.grid, interpolation="nearest")
    warped = np.round(warped.voxels).astype(np.int32)
    away, nearest = ndimage.distance_transform_edt(warped == 0, return_indices=True)
    if (away[truth.voxels] > FURTHEST_VOX).any():
        raise ValueError(f"{record.key}: lesions by kind do not match the prepared lesion mask. Run prepare again.")
    numbers = np.where(truth.voxels, warped[tuple(nearest)], 0)
    return numbers, kind_of


@dataclass(frozen=True, eq=False)
class TestSet:
    """Subjects that a method is evaluated on.

    Attributes
    ----------
    painted : tuple of Subject
    healthy : tuple of Subject
        Healthy subjects held out from training.
    patients : tuple of Subject
        Patients with real lesions.
    """

    painted: tuple[Subject, ...]
    healthy: tuple[Subject, ...]
    patients: tuple[Subject, ...]

    @classmethod
    def read(cls, manifest: Manifest, out: OutputFolder, mask: VoxelMask, site: str) -> "TestSet":
        """Read the painted scans of one site ("validate" or "test"), the held-out controls and the real patients."""
        painted = [r for r in manifest.patients if r.site == site]
        healthy = [r for r in manifest.controls if r.split == "held_out"]
        patients = [r for r in manifest.patients if r.site == "Ljubljana"]
        groups = (tuple(Subject.read(r, out, mask) for r in records) for records in (painted, healthy, patients))
        return cls(*groups)

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Subjects of the pooled metrics."""
        return (*self.painted, *self.healthy)
