"""Inputs of the learned scorer: how far a voxel and its surroundings are from the controls, and where it is."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from ...preprocessing.patches.voxel_mask import VoxelMask
from ...preprocessing.registration.template import load_template
from ..features.whitening import Whitening

SCALES_MM = (2.0, 4.0, 8.0)
"""Standard deviations of the Gaussians that smooth the z-scores."""
_LARGEST_Z = 10.0
_DEEPEST_MM = 20.0
_SMALLEST_SHARE = 1e-3
"""Lower bound of the Gaussian's weight inside the brain, which avoids division by zero far from it."""


@dataclass(frozen=True, eq=False)
class Context:
    """Computes the inputs of the learned scorer from z-scores.

    For each channel: the z-score, the same smoothed at three scales, and its difference from the mirrored voxel,
    without and with the finest smoothing. For each voxel, in addition: mean and standard deviation of the controls,
    tissue probabilities of the template, and depth below the surface of the brain.

    Attributes
    ----------
    mask : VoxelMask
    mean : ndarray, (P, C), float32
        Mean of the controls' channels.
    sd : ndarray, (P, C), float32
        Standard deviation of the controls' channels.
    """

    mask: VoxelMask
    mean: np.ndarray
    sd: np.ndarray

    @classmethod
    def of(cls, whitening: Whitening, mask: VoxelMask) -> "Context":
        """Take mean and standard deviation from a diagonal whitening of the channels."""
        diagonal = np.cumsum(np.arange(1, whitening.mean.shape[1] + 1)) - 1
        inverse_sd = whitening.packed[:, diagonal].astype(np.float32) / np.float32(whitening.unit)
        return cls(mask, whitening.mean, 1 / np.maximum(inverse_sd, 1e-6))

    @property
    def size(self) -> int:
        """Number of inputs (d)."""
        return self.mean.shape[1] * (3 + len(SCALES_MM)) + self.place.shape[1]

    @cached_property
    def place(self) -> np.ndarray:
        """What is known of each voxel without looking at a subject, (P, 2 C + 3) float32."""
        template = load_template(float(self.mask.grid.spacing_mm[0]))
        tissue = [self.mask.transform(part.voxels) for part in (template.grey, template.white)]
        depth_mm = ndimage.distance_transform_edt(self.mask.brain_mask, sampling=self.mask.grid.spacing_mm)
        depth_mm = np.minimum(self.mask.transform(np.asarray(depth_mm)), _DEEPEST_MM)
        return np.column_stack([self.mean, np.log(self.sd), *tissue, depth_mm]).astype(np.float32)

    def compute(self, z: np.ndarray, inside: np.ndarray, *, at: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Compute the inputs of one subject.

        Parameters
        ----------
        z : ndarray, (P, C)
            Signed z-scores of the channels, without the effect of the confounds; not used outside the brain.
        inside : ndarray of bool, (P,)
            Brain mask of the subject.
        at : ndarray of int, optional
            Voxels of the mask for which the inputs are returned; all by default.

        Returns
        -------
        ndarray, (P or len(at), d), float32
        """
        z = np.where(inside[:, None], np.clip(z, -_LARGEST_Z, _LARGEST_Z), 0).astype(np.float32)
        weights = self.mask.inverse_transform(inside.astype(np.float32))
        sigmas_vox = [sigma_mm / self.mask.grid.spacing_mm for sigma_mm in SCALES_MM]
        shares = [np.maximum(_blurred(weights, sigma), _SMALLEST_SHARE) for sigma in sigmas_vox]
        columns = []
        for channel in z.T:
            volume = self.mask.inverse_transform(channel)
            smooth = [_blurred(volume, sigma) / share for sigma, share in zip(sigmas_vox, shares, strict=True)]
            differences = [part - self._mirrored(part) for part in (volume, smooth[0])]
            columns += [channel[at], *(self.mask.transform(part)[at] for part in (*smooth, *differences))]
        return np.column_stack([*columns, self.place[at]])

    def _mirrored(self, volume: np.ndarray) -> np.ndarray:
        """Mirror a volume about x = 0 mm, the plane of symmetry of the template; 0 beyond the grid."""
        affine = self.mask.grid.affine
        x = round(-2 * affine[0, 3] / affine[0, 0]) - np.arange(volume.shape[0])
        exists = (x >= 0) & (x < volume.shape[0])
        mirrored = np.zeros_like(volume)
        mirrored[exists] = volume[x[exists]]
        return mirrored


def _blurred(volume: np.ndarray, sigma_vox: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(volume, sigma_vox, mode="constant", truncate=3)
