"""Inputs of the learned scorer: how far a voxel and its surroundings are from the controls, and where it is."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from ...preprocessing.convolution import convolved, gaussian_kernel
from ...preprocessing.patches.voxel_mask import VoxelMask
from ...preprocessing.registration.template import load_template
from .norm import Norm

SCALES_MM = (2.0, 4.0, 8.0)
"""Standard deviations of the Gaussians that smooth the deviations."""
_ENERGIES = 2
"""Scales, from the finest, at which the root mean square is taken."""
_TRUNCATE = 3.0
"""Standard deviations at which the Gaussians are truncated."""
_LARGEST = 10.0
_DEEPEST_MM = 20.0
_SMALLEST_SHARE = 1e-3
"""Lower bound of the Gaussian's weight inside the brain, which avoids division by zero far from it."""


@dataclass(frozen=True, eq=False)
class Context:
    """Computes the inputs of the learned scorer from the deviations of the channels (see `Norm`).

    For each deviation: its value, the same smoothed at three scales, its root mean square at the two finer scales
    (texture has no mean), and the differences from the mirrored voxel of the value, the finest smoothing and the finest
    root mean square. For each voxel, in addition: mean and standard deviation of the controls, tissue probabilities of
    the template, and depth below the surface of the brain.

    Attributes
    ----------
    mask : VoxelMask
    norm : Norm
    """

    mask: VoxelMask
    norm: Norm

    @property
    def size(self) -> int:
        """Number of inputs (d)."""
        return (self.norm.mean.shape[1] + 1) * (4 + len(SCALES_MM) + _ENERGIES) + self.place.shape[1]

    @cached_property
    def place(self) -> np.ndarray:
        """What is known of each voxel without looking at a subject, (P, 2 C + 3) float32."""
        template = load_template(float(self.mask.grid.spacing_mm[0]))
        tissue = [self.mask.transform(part.voxels) for part in (template.grey, template.white)]
        depth_mm = ndimage.distance_transform_edt(self.mask.brain_mask, sampling=self.mask.grid.spacing_mm)
        depth_mm = np.minimum(self.mask.transform(np.asarray(depth_mm)), _DEEPEST_MM)
        return np.column_stack([self.norm.mean, np.log(self.norm.sd), *tissue, depth_mm]).astype(np.float32)

    def compute(
        self, deviations: np.ndarray, inside: np.ndarray, *, at: np.ndarray | slice = slice(None)
    ) -> np.ndarray:
        """Compute the inputs of one subject.

        Parameters
        ----------
        deviations : ndarray, (P, C + 1)
            See `Norm.deviations`; not used outside the brain.
        inside : ndarray of bool, (P,)
            Brain mask of the subject.
        at : ndarray of int, optional
            Voxels of the mask for which the inputs are returned; all by default.

        Returns
        -------
        ndarray, (P or len(at), d), float32
        """
        box = self.mask.cropped
        values = np.where(inside[:, None], np.clip(deviations, -_LARGEST, _LARGEST), 0).astype(np.float32)
        weights = box.inverse_transform(inside.astype(np.float32))
        kernels = [
            [gaussian_kernel(sigma_vox, _TRUNCATE) for sigma_vox in sigma_mm / box.grid.spacing_mm]
            for sigma_mm in SCALES_MM
        ]
        shares = [np.maximum(convolved(weights, kernel), _SMALLEST_SHARE) for kernel in kernels]
        index, place = box.flat_index[at], self.place[at]
        # Filled column by column, so that the columns are contiguous.
        inputs = np.empty((self.size, len(index)), np.float32).T
        column = 0
        for value in values.T:
            volume = box.inverse_transform(value)
            smooth = [convolved(volume, kernel) / share for kernel, share in zip(kernels, shares, strict=True)]
            squared = volume**2
            energies = [
                np.sqrt(np.maximum(convolved(squared, kernel) / share, 0))
                for kernel, share in zip(kernels[:_ENERGIES], shares, strict=False)
            ]
            differences = [part - self._mirrored(part) for part in (volume, smooth[0], energies[0])]
            for part in (volume, *smooth, *energies, *differences):
                np.take(part, index, out=inputs[:, column])
                column += 1
        inputs[:, column:] = place
        return inputs

    def _mirrored(self, volume: np.ndarray) -> np.ndarray:
        """Mirror a volume about x = 0 mm, the plane of symmetry of the template; 0 beyond the box."""
        affine = self.mask.cropped.grid.affine
        x = round(-2 * affine[0, 3] / affine[0, 0]) - np.arange(volume.shape[0])
        exists = (x >= 0) & (x < volume.shape[0])
        mirrored = np.zeros_like(volume)
        mirrored[exists] = volume[x[exists]]
        return mirrored
