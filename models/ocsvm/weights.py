"""Weights of the subjects in a one-class SVM: upper bounds of their dual coefficients, as in LIBSVM and scikit-learn.

With weights w, the dual is: minimise ``1/2 a'Ka`` subject to ``sum(a) = nu*sum(w)`` and ``0 <= a_i <= w_i``. A subject
with the weight 2 counts as two equal ones, and one with the weight 0 is left out. Only gamma = "scale" is computed from
all subjects alike, as in scikit-learn. A factor of all weights is one of the solution. Weights below 1e-9 of the
largest one count as 0.
"""

import numpy as np

from ...data_manifests.errors import UserError

# Larger and smaller numbers would overflow.
_SMALLEST, _LARGEST = 1e-100, 1e100


def checked_weights(weights, subjects: int, voxels: int | None = None) -> np.ndarray | None:
    """Weights as an array in float64; None if they are None.

    Parameters
    ----------
    weights : (subjects,) or, with `voxels`, also (voxels, subjects); or None
    subjects : int
    voxels : int, optional

    Raises
    ------
    UserError
        Another shape, weights that are negative or not finite, or no weight above 0, or only extreme ones.
    """
    if weights is None:
        return None
    values = np.ascontiguousarray(weights, dtype=np.float64)
    if values.shape not in [(subjects,)] + ([(voxels, subjects)] if voxels is not None else []):
        raise UserError(
            f"weights have the shape {values.shape}, expected ({subjects},), one weight for each subject. Reshape them."
        )
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise UserError("weights are negative or not finite, expected numbers of at least 0. Check how they are made.")
    if values.size and not values.any(axis=-1).all():
        raise UserError("all weights are 0, expected at least one above 0. Check how they are made.")
    largest = np.atleast_1d(values.max(axis=-1))
    extreme = largest[(largest < _SMALLEST) | (largest > _LARGEST)]
    if len(extreme):
        raise UserError(
            f"the largest weight is {extreme[0]:g}, expected one from {_SMALLEST:g} to {_LARGEST:g}. Divide all "
            "weights by the largest."
        )
    return values
