"""Scorer by prototypes: how far a patch is from those that healthy people have in this part of the brain.

A scorer that compares a voxel with the same voxel of the controls takes wide ventricles, or a sulcus a few millimetres
further in, for anomalies. Here, the patch at a voxel is compared with patches at any voxel nearby: a healthy tissue at
an unusual place scores low, an unusual tissue scores high.

For blocks of 4 mm, k-means divides the patches (`PatchFeatures`) of all controls within 7 mm into 16 clusters. The
score is the smallest Mahalanobis distance to a cluster's mean, the *prototype*, with the covariance within the
clusters. A cluster of fewer than five participants is dropped, so that no prototype is the patch of a single person; it
may be one of fewer where fewer have brain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...preprocessing.patches.voxel_mask import VoxelMask
from ..features.feature_store import ReadFeatures
from ..features.subsets import evenly_spaced
from ..ocsvm.blocks import in_order
from ..ocsvm.dual import in_threads, thread_count
from ..tensor_file import another_mask_error, opened_tensors, write_tensors
from . import kernels
from .blocks import Blocks

N_PROTOTYPES = 16
FEWEST_PARTICIPANTS = 5
"""Participants whose patches a prototype is the mean of, at least."""
_PATCHES = 600
"""Patches of all controls together that are sampled around a block, and the most controls that are sampled."""
_ROUNDS = 6
_SHRINKAGE, _SMALLEST_VARIANCE = 0.05, 1e-3
"""Share of the covariance that is replaced by its mean variance, and of the features' mean variance that is added."""
_FILE = "prototypes.safetensors"
_BLOCKS_AT_ONCE, _VOXELS_A_THREAD = 256, 16_384


@dataclass(frozen=True, eq=False)
class Samples:
    """Patches of the controls around each block.

    Attributes
    ----------
    blocks : Blocks
    controls, participants : ndarray of int, (n,)
        Indices of the controls that were sampled, and whose scans they are, in ascending order.
    patches : ndarray, (n, B, m, d), float16
        NaN: none.
    variances : ndarray, (n,)
        Mean variance of the features of each of these controls.
    """

    blocks: Blocks
    controls: np.ndarray
    participants: np.ndarray
    patches: np.ndarray
    variances: np.ndarray

    @classmethod
    def draw(
        cls,
        features: ReadFeatures,
        participants: np.ndarray,
        folds: Sequence[np.ndarray],
        mask: VoxelMask,
        *,
        seed: int,
        jobs: int | None,
    ) -> "Samples":
        """Sample patches of the controls.

        Parameters
        ----------
        features : callable
            Opens the features (n, P, d) of the n controls with the given indices.
        participants : ndarray of int, (S,)
            Whose scan each control is.
        folds : sequence of ndarray of int
            Controls that fits will leave out.
        mask : VoxelMask
        seed : int
        jobs : int or None
            Number of threads; one per core if None.
        """
        blocks = Blocks(mask)
        controls = evenly_spaced(len(participants), _PATCHES)
        controls = controls[np.argsort(participants[controls], kind="stable")]
        fewest = len(controls) - max((np.isin(controls, fold).sum() for fold in folds), default=0)
        size = len(controls), len(blocks.corners), _per_control(int(fewest)), features([0]).shape[2]
        patches, variances = np.empty(size, np.float16), np.zeros(len(controls))

        def draw(part: slice) -> None:
            for place in range(part.start, part.stop):
                own = features(controls[[place]])[:, :][0]
                drawn = np.empty(size[1:], np.float32)
                kernels.sample(blocks.index, own, blocks.corners, blocks.offsets, seed + place, drawn)
                patches[place] = drawn
                variances[place] = np.nanvar(own, axis=0).mean()

        in_threads(draw, len(controls), step=1, jobs=thread_count(jobs))
        return cls(blocks, controls, participants[controls], patches, variances)

    def fit(self, controls: Sequence[int] | np.ndarray, *, jobs: int | None = None) -> "Prototypes":
        """Fit the prototypes of the controls with these indices."""
        n_blocks, d = len(self.blocks.corners), self.patches.shape[3]
        places = np.flatnonzero(np.isin(self.controls, controls))
        prototypes = np.zeros((n_blocks, N_PROTOTYPES, d), np.float32)
        factors = np.zeros((n_blocks, d, d), np.float32)
        # As many patches whatever the number of controls: more of them would be closer to any patch.
        each = _per_control(len(places))
        places = places[evenly_spaced(len(places), -(-_PATCHES // each))]
        own_participants = self.participants[places]
        floor = _SMALLEST_VARIANCE * float(self.variances[places].mean())
        fewest = min(FEWEST_PARTICIPANTS, len(np.unique(own_participants)))

        def fit(start: int, stop: int) -> None:
            part = slice(start, stop)
            own = self.patches[places, part, :each].astype(np.float32)
            kernels.fit_blocks(
                own,
                own_participants,
                _ROUNDS,
                fewest,
                _SHRINKAGE,
                floor,
                start,
                prototypes[part],
                factors[part],
            )

        for _ in in_order(fit, n_blocks, _BLOCKS_AT_ONCE, thread_count(jobs)):
            pass
        return Prototypes(self.blocks, prototypes, factors)


def _per_control(n_controls: int) -> int:
    """Patches of each control that are sampled around a block."""
    return -(-_PATCHES // n_controls)


@dataclass(frozen=True, eq=False)
class Prototypes:
    """Prototypes of each block, and how patches vary about them.

    Attributes
    ----------
    blocks : Blocks
    prototypes : ndarray, (B, K, d), float32
    factors : ndarray, (B, d, d), float32
        Inverse of the Cholesky factor of the covariance within clusters; 0 where there were no patches.
    """

    blocks: Blocks
    prototypes: np.ndarray
    factors: np.ndarray

    def score(self, features: np.ndarray, *, inside: np.ndarray, jobs: int | None = None) -> np.ndarray:
        """Distance of features (P, d) of one subject to the nearest prototype, (P,) float32; 0 outside the brain."""
        brain = np.flatnonzero(inside)
        scores = np.zeros(len(inside), np.float32)

        def score(part: slice) -> None:
            voxels, out = brain[part], np.empty(part.stop - part.start, np.float32)
            own = np.ascontiguousarray(features[voxels], np.float32)
            kernels.distances(own, self.blocks.number[voxels], self.prototypes, self.factors, out)
            scores[voxels] = out

        in_threads(score, len(brain), step=_VOXELS_A_THREAD, jobs=thread_count(jobs))
        return scores

    def save(self, folder: Path) -> None:
        """Write the prototypes to a folder."""
        rows, columns = np.tril_indices(self.factors.shape[1])
        write_tensors(
            folder / _FILE,
            {"prototypes": self.prototypes, "factors": np.ascontiguousarray(self.factors[:, rows, columns])},
        )

    @classmethod
    def load(cls, folder: Path, mask: VoxelMask, size: int) -> "Prototypes":
        """Load a saved scorer of features of this size.

        Raises
        ------
        UserError
            The file is missing, damaged, or was fitted on another brain mask.
        """
        blocks = Blocks(mask)
        with opened_tensors(folder / _FILE, "prototypes of healthy patches") as file:
            prototypes, packed = file.array("prototypes", "float32", 3), file.array("factors", "float32", 2)
            n_blocks, _, d = prototypes.shape
            if d != size or packed.shape != (n_blocks, d * (d + 1) // 2):
                raise ValueError(
                    f"prototypes {prototypes.shape} and factors {packed.shape} do not match features of size {size}"
                )
        if n_blocks != len(blocks.corners):
            raise another_mask_error(folder, "prototypes were")
        rows, columns = np.tril_indices(d)
        factors = np.zeros((n_blocks, d, d), np.float32)
        factors[:, rows, columns] = packed
        return cls(blocks, prototypes, factors)
