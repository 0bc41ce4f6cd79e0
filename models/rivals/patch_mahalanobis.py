"""Mahalanobis distance of the principal components of small patches.

    score(x) = sqrt((w - m)' C^-1 (w - m)),      w = components of the 3 x 3 x 3 voxels around a voxel,

with mean m and covariance C of the controls at that voxel; C is pooled over neighbouring voxels and shrunk
(`features.whitening`). Eight components of all modalities, learnt on the controls. This is voxout's scorer `patches`.
"""

import numpy as np

from ..anomaly.scorers import DistanceParts
from ..features.extractors import PatchFeatures
from .scans import Controls, Scan, require_controls
from .voxelwise_fit import fit_voxelwise, voxelwise_scores


class PatchMahalanobis:
    """Mahalanobis distance of patch components at each voxel."""

    fewest_controls = 3

    def fit(self, controls: Controls) -> None:
        """Learn components, means and covariances."""
        require_controls("patch-mahalanobis", len(controls), self.fewest_controls)
        self.controls = controls
        rows = range(len(controls.channels.modalities))
        brains = ((scan.channels, controls.mask.transform(scan.inside)) for scan in controls)
        self.features = PatchFeatures.learn(brains, controls.mask, rows, seed=controls.seed)
        self.scorer = fit_voxelwise(controls, self.features, DistanceParts())

    def score(self, subject: Scan) -> np.ndarray:
        """Return the distances."""
        return voxelwise_scores(self.controls, self.features, self.scorer, subject)
