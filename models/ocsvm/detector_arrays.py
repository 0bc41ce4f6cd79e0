"""Arrays of the fitted detectors, in their storage types."""

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from ...data_manifests.errors import UserError
from .blocks import as_halves

Precision = Literal["float16", "float32"]

_COEF_STEPS = 65535


@dataclass(frozen=True, eq=False)
class DetectorArrays:
    """Arrays of the detectors of P voxels, with N support vectors in total.

    Attributes
    ----------
    support_vectors : ndarray, (N, d), float16 or float32
    dual_coef : ndarray, (N,)
        uint16 in steps of 1/65535 with float16 support vectors, if the largest weight of a subject is 1; else float32.
    n_support : ndarray, (P,), uint16
    centred_offset : ndarray, (P,), float64
        scikit-learn's offset minus nu*n_fitted: the offset for the kernel minus 1.
    gamma : ndarray, (P,), float64
    n_fitted : ndarray, (P,), uint16
        Number of subjects that the detector of each voxel was fitted on.
    total_weight : ndarray, (P,), float64, or None
        Sum of their weights; None: each has the weight 1.
    """

    support_vectors: np.ndarray
    dual_coef: np.ndarray
    n_support: np.ndarray
    centred_offset: np.ndarray
    gamma: np.ndarray
    n_fitted: np.ndarray
    total_weight: np.ndarray | None = None

    def part(self, voxels: slice, rows: slice) -> "DetectorArrays":
        """Return the arrays of a slice of voxels, whose support vectors are in `rows`."""
        return DetectorArrays(
            self.support_vectors[rows],
            self.dual_coef[rows],
            self.n_support[voxels],
            self.centred_offset[voxels],
            self.gamma[voxels],
            self.n_fitted[voxels],
            None if self.total_weight is None else self.total_weight[voxels],
        )

    def present(self) -> dict[str, np.ndarray]:
        """Return all arrays but those that are None, by name."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in arrays.items() if array is not None}


def stored(fitted: DetectorArrays, precision: Precision, largest_weight: float = 1.0) -> DetectorArrays:
    """Convert arrays from full precision to their storage types, given the largest weight of a subject.

    Raises
    ------
    UserError
        Latents are too large for the storage type.
    """
    coef = fitted.dual_coef
    with np.errstate(over="ignore"):
        vectors = fitted.support_vectors
        vectors = as_halves(vectors) if precision == "float16" else vectors.astype(np.float32)
    if not np.isfinite(vectors).all():
        wider = 'Set precision to "float32".' if precision == "float16" else "Divide all latents by a common number."
        raise UserError(
            f"latents reach {np.abs(fitted.support_vectors).max():g}, expected values in the range of "
            f"{precision}. {wider}"
        )
    quantised = precision == "float16" and largest_weight == 1
    if quantised:
        # At least 1 step: a coefficient of 0 would remove the support vector.
        coef = np.maximum(np.rint(coef * _COEF_STEPS), 1).astype(np.uint16)
    return DetectorArrays(
        vectors,
        coef if quantised else coef.astype(np.float32),
        fitted.n_support.astype(np.uint16),
        fitted.centred_offset,
        fitted.gamma,
        fitted.n_fitted.astype(np.uint16),
        fitted.total_weight,
    )


def coefficients(stored: np.ndarray) -> np.ndarray:
    """Convert stored dual coefficients (float32, or uint16 in steps of 1/65535) to float64."""
    return stored / _COEF_STEPS if stored.dtype == np.uint16 else stored.astype(np.float64)


class GrowingArrays:
    """Arrays that grow block by block; numpy's resize extends large arrays in place, without a copy."""

    def __init__(self):
        self._arrays: DetectorArrays | None = None

    def add(self, part: DetectorArrays) -> None:
        """Append the detectors of the next voxels."""
        if self._arrays is None:
            self._arrays = DetectorArrays(**{name: np.empty_like(array[:0]) for name, array in part.present().items()})
        for name, array in self._arrays.present().items():
            _append(array, getattr(part, name))

    def arrays(self) -> DetectorArrays:
        """Return the detectors of all voxels, without a copy."""
        if self._arrays is None:
            raise ValueError("no detectors were added")
        return self._arrays


def _append(array: np.ndarray, more: np.ndarray) -> None:
    before = len(array)
    array.resize((before + len(more), *array.shape[1:]), refcheck=False)
    array[before:] = more
