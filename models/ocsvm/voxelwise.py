"""One-class SVM at every voxel of the mask, and its decision function.

``F_v(z) = sum_i a_i k(z_i, z) - offset``, positive for inliers, in the scale of scikit-learn. The sum runs over the
support vectors of voxel v, the only latents of the controls that are stored. Voxels are processed in blocks
(`detector_blocks`): several blocks in parallel on the CPU, larger ones on a GPU.

A control whose latents are all NaN at a voxel is missing there: the detector is fitted on the others. Any other
non-finite value is an error.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data_manifests.errors import UserError
from .blocks import as_array, in_order, read_block, release_latents
from .detector_arrays import DetectorArrays, GrowingArrays, Precision, coefficients, stored
from .detector_blocks import fit_block, score_block
from .detector_file import DetectorWriter, read_detectors
from .dual import check_nu, dual_mass, named, thread_count
from .kernel import checked_gamma
from .weights import checked_weights

_BLOCK_NUMBERS = 500_000
_CUDA_BLOCK_NUMBERS = 8_000_000
_MOST_SUBJECTS = 65535


@dataclass(frozen=True, eq=False)
class DetectorField:
    """Detectors of P voxels.

    Attributes
    ----------
    arrays : DetectorArrays
        Support vectors of all voxels, one voxel after the other, and their parameters; may be memory-mapped.
    nu : float
    gamma : float or "scale"
        As given; the value of each voxel is in ``arrays.gamma``.
    start : ndarray, (P + 1,)
        The support vectors of voxel v are the rows ``start[v]`` to ``start[v + 1]``.
    """

    arrays: DetectorArrays
    nu: float
    gamma: float | str
    start: np.ndarray = field(init=False)

    def __post_init__(self):
        start = np.zeros(len(self.arrays.n_support) + 1, dtype=np.int64)
        np.cumsum(self.arrays.n_support, out=start[1:])
        object.__setattr__(self, "start", start)

    def __len__(self) -> int:
        """Return the number of voxels."""
        return len(self.arrays.n_support)

    @property
    def dimension(self) -> int:
        """Number of coordinates of a support vector (d)."""
        return self.arrays.support_vectors.shape[1]

    @property
    def n_support(self) -> np.ndarray:
        """Number of support vectors of each voxel, (P,)."""
        return np.asarray(self.arrays.n_support, dtype=np.int64)

    @property
    def total_dual(self) -> np.ndarray:
        """Sum of the dual coefficients of each voxel, (P,): nu times the weight of the subjects of the fit."""
        weight = self.arrays.total_weight
        return dual_mass(self.nu, self.arrays.n_fitted if weight is None else weight)

    @property
    def offset(self) -> np.ndarray:
        """Offset of each voxel, (P,), in the scale of scikit-learn."""
        return self.arrays.centred_offset + self.total_dual

    @property
    def precision(self) -> Precision:
        """Float type of the stored support vectors."""
        return "float16" if self.arrays.support_vectors.dtype == np.float16 else "float32"

    def support(self, voxel: int) -> tuple[np.ndarray, np.ndarray]:
        """Support vectors (n, d) and dual coefficients (n,) of one voxel, in float64."""
        rows = slice(self.start[voxel], self.start[voxel + 1])
        return self.arrays.support_vectors[rows].astype(np.float64), coefficients(self.arrays.dual_coef[rows])

    def decision_function(self, latents, *, jobs: int | None = None):
        """Decision function F at every voxel, positive for inliers.

        Parameters
        ----------
        latents : (P, d) or (N, P, d)
            Latents of one subject or of N: an array or tensor of any float type, or for (N, P, d) any input of
            `fit_detectors`.
        jobs : int, optional
            Number of threads; default: all cores available to the process.

        Returns
        -------
        ndarray or tensor, (P,) or (N, P), float64
            A tensor on the same device for a tensor. NaN where the latents of a subject are missing (all NaN).

        Raises
        ------
        UserError
            Shapes do not match, or latents are not finite (names the voxels).
        """
        dimension = self.dimension
        if tuple(latents.shape[-2:]) != (len(self), dimension) or len(latents.shape) not in (2, 3):
            raise UserError(
                f"latents have the shape {tuple(latents.shape)}, expected ({len(self)}, {dimension}) for one subject "
                f"or (N, {len(self)}, {dimension}) for N. Compute them with the encoder and mask of the detectors."
            )
        if len(latents.shape) == 2:
            return self.decision_function(latents[None], jobs=jobs)[0]
        if isinstance(latents, torch.Tensor) and not latents.is_cuda:
            return torch.from_numpy(self.decision_function(as_array(latents), jobs=jobs))
        subjects = latents.shape[0]
        scores: Any = np.empty((subjects, len(self)))
        if isinstance(latents, torch.Tensor):
            scores = torch.empty((subjects, len(self)), dtype=torch.float64, device=latents.device)
        broken = np.zeros(len(self), dtype=bool)

        def score(start: int, stop: int) -> None:
            part = self.arrays.part(slice(start, stop), slice(self.start[start], self.start[stop]))
            scores[:, start:stop], broken[start:stop] = score_block(read_block(latents, start, stop), part)

        support = int(self.start[-1] / max(len(self), 1))
        per_block = _numbers_at_once(latents) // (dimension * (subjects + support + 1))
        for _ in in_order(score, len(self), per_block, _threads(latents, jobs)):
            pass
        if broken.any():
            raise _not_finite(np.flatnonzero(broken))
        return scores

    def save(self, path: Path) -> Path:
        """Write to the folder `path` (or, if it ends in .safetensors, to that file) atomically, without pickle."""
        with DetectorWriter(Path(path), self.arrays.support_vectors.shape[1], self.precision) as writer:
            writer.add_support_vectors(self.arrays.support_vectors)
            writer.finish(self.arrays, nu=self.nu, gamma=self.gamma)
        return Path(path)

    @classmethod
    def load(cls, path: Path) -> "DetectorField":
        """Open saved detectors, memory-mapped.

        Raises
        ------
        UserError
            The files are missing, damaged or not detectors.
        """
        arrays, nu, gamma = read_detectors(Path(path))
        return cls(arrays, nu, gamma)


def fit_detectors(
    latents,
    *,
    nu: float,
    gamma: float | str,
    weights=None,
    jobs: int | None = None,
    precision: Precision | None = None,
    out: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DetectorField:
    """Fit a one-class SVM at every voxel.

    Parameters
    ----------
    latents : (S, P, d)
        Latents of S controls: an array, a memory map, a tensor, or any object with `.shape` whose ``[:, a:b]`` returns
        a block as an array and is thread-safe. Read once, in blocks of some megabytes.
    nu : float
        In (0, 1].
    gamma : float or str
        As in `kernel.kernel_gamma`; "scale" does not depend on the weights.
    weights : ndarray, (S,), optional
        Weight of each control, as scikit-learn's `sample_weight`; by default 1. At a voxel, those of the controls that
        are not missing are used.
    jobs : int, optional
        Number of threads; default: all cores available to the process.
    precision : {"float16", "float32"}, optional
        Storage type of the support vectors; default: float16 for latents in float16, else float32. The fit itself is
        in float64.
    out : Path, optional
        Write the support vectors to this path during the fit, and return the saved detectors memory-mapped. Use it to
        limit memory.
    progress : callable, optional
        Called with (voxels done, total number of voxels).

    Raises
    ------
    UserError
        A shape is wrong, nu, gamma or a weight is out of range, latents are not finite, or all subjects with a weight
        are missing at a voxel (the last two name the voxels).
    """
    check_nu(nu)
    shape = tuple(latents.shape)
    if len(shape) != 3 or 0 in shape:
        raise UserError(f"latents have the shape {shape}, expected (subjects, voxels, dimensions), none of them 0.")
    subjects, voxels, dimension = shape
    if subjects > _MOST_SUBJECTS:
        raise UserError(f"found {subjects} subjects, expected at most {_MOST_SUBJECTS}. Fit on a sample of them.")
    if precision not in (None, "float16", "float32"):
        raise UserError(f'precision is {precision}, expected "float16" or "float32". Omit it for the default.')
    width = checked_gamma(gamma, dimension)
    own = checked_weights(weights, subjects)
    if isinstance(latents, torch.Tensor) and not latents.is_cuda:
        latents = as_array(latents)
    half = getattr(latents, "dtype", None) in (np.float16, torch.float16)
    kept: Precision = precision or ("float16" if half else "float32")

    def fit(start: int, stop: int) -> DetectorArrays:
        return fit_detector_block(read_block(latents, start, stop), nu, width, kept, start, own)

    def parts() -> Iterator[DetectorArrays]:
        per_block = _numbers_at_once(latents) // (subjects * dimension)
        for stop, part in in_order(fit, voxels, per_block, _threads(latents, jobs)):
            release_latents(latents)
            yield part
            if progress is not None:
                progress(stop, voxels)

    growing = GrowingArrays()
    if out is None:
        for part in parts():
            growing.add(part)
        return DetectorField(growing.arrays(), float(nu), width)
    with DetectorWriter(Path(out), dimension, kept) as writer:
        for part in parts():
            writer.add_support_vectors(part.support_vectors)
            growing.add(replace(part, support_vectors=part.support_vectors[:0]))
        writer.finish(growing.arrays(), nu=float(nu), gamma=width)
    return DetectorField.load(Path(out))


def fit_detector_block(
    block, nu: float, gamma: float | str, precision: Precision, first: int, weights: np.ndarray | None = None
) -> DetectorArrays:
    """Fit a one-class SVM at each of n voxels, the first of which has the index `first`.

    Parameters
    ----------
    block : (S, n, d)
        An array in float32 or float64, or a tensor of any float type. All NaN where a subject is missing.
    nu : float
    gamma : float or "scale"
    precision : {"float16", "float32"}
    first : int
    weights : ndarray, (S,), float64, optional
        Weight of each subject; by default 1.

    Raises
    ------
    UserError
        Latents are not finite, or all subjects with a weight are missing at a voxel (names the voxels).
    """
    fitted = fit_block(block, nu, gamma, weights)
    if (fitted.n_fitted < 0).any():
        raise _not_finite(first + np.flatnonzero(fitted.n_fitted < 0))
    if (fitted.n_fitted == 0).any():
        raise UserError(
            f"no subject has latents at {named(first + np.flatnonzero(fitted.n_fitted == 0))}, expected at least one. "
            "Remove these voxels from the mask."
        )
    return stored(fitted, precision, 1.0 if weights is None else float(weights.max()))


def _numbers_at_once(latents) -> int:
    """Values per block: as many as fit into the cache of a core, or fill a GPU."""
    return _CUDA_BLOCK_NUMBERS if getattr(latents, "is_cuda", False) else _BLOCK_NUMBERS


def _threads(latents, jobs: int | None) -> int:
    return 1 if getattr(latents, "is_cuda", False) else thread_count(jobs)


def _not_finite(voxels: np.ndarray) -> UserError:
    return UserError(
        f"latents are NaN or infinite at {named(voxels)}, expected finite numbers, or only NaN where a subject is "
        "missing. Check the encoder."
    )
