"""From the codes of a subject to its anomaly map. Here, and nowhere else, the sign turns over."""

import numpy as np

from ..data_manifests.volume import Volume
from ..preprocessing.patch_grid import PatchGrid
from .detector import DetectorField
from .whitening import Whitening


def score_subject(
    detectors: DetectorField,
    codes: np.ndarray,
    grid: PatchGrid,
    whitening: Whitening | None = None,
    *,
    jobs: int | None = None,
) -> Volume:
    """Score every location of one subject.

    Parameters
    ----------
    detectors : DetectorField
        One detector a location.
    codes : ndarray, (P, d)
    grid : PatchGrid
    whitening : Whitening, optional
        The one that the detectors were fitted through.
    jobs : int, optional
        Threads; one a core by default.

    Returns
    -------
    Volume
        Anomaly score on the template grid, float32: minus the decision function, so higher = more anomalous, and
        above 0 = outside the detector's boundary. 0 outside the mask.
    """
    if len(codes) != grid.size:
        raise ValueError(f"codes of {len(codes)} locations, expected {grid.size}")
    if whitening is not None:
        if whitening.mask_hash != grid.mask_hash:
            raise ValueError(f"whitening of mask {whitening.mask_hash}, expected {grid.mask_hash}")
        codes = whitening.apply(codes)
    anomaly_score = -np.asarray(detectors.decision_function(codes, jobs=jobs))
    return Volume(grid.scatter(anomaly_score.astype(np.float32)), grid.grid)
