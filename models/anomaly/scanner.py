"""Calibration of a fitted model to another scanner, on healthy controls of that scanner.

Scans of another scanner score higher than the controls of the model, since contrast, sharpness and noise differ. The
map -log10 p of the model is therefore calibrated once more (`calibration`), with the same scale at all voxels: it is
-log10 of the share of the voxels of healthy scans of this scanner that score as high. A scale of each place, as in the
fit, was tried and was less reliable in scans that were not used: five brains tell more of these persons than of the
scanner.

What healthy brains look like is not learnt anew: means, covariances and detectors stay those of the model, and the
order of the voxels of a map does not change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data_manifests.errors import UserError, counted
from ...preprocessing.patches.voxel_mask import VoxelMask
from ..tensor_file import opened_tensors
from .calibration import Calibration, calibrate

FILE = "scanner.safetensors"
"""Name in the folder of a model; models that were not adapted have no such file."""
FEWEST_CONTROLS = 5
"""Participants of the scanner; with fewer, one unusual brain decides the calibration."""


@dataclass(frozen=True, eq=False)
class ScannerCalibration:
    """Calibration of the -log10 p of a model to a scanner.

    Attributes
    ----------
    calibration : Calibration
        Of the model's -log10 p.
    controls : int
        Number of scans of this scanner that it was fitted to.
    """

    calibration: Calibration
    controls: int

    def neg_log10_p(self, neg_log10_p: np.ndarray) -> np.ndarray:
        """Convert the model's -log10 p (..., P) to those of the scanner, (..., P) float32."""
        return self.calibration.neg_log10_p(neg_log10_p)

    @classmethod
    def fit(
        cls, neg_log10_p: np.ndarray, inside: np.ndarray, participants: Sequence[str], mask: VoxelMask
    ) -> tuple["ScannerCalibration", np.ndarray]:
        """Fit to healthy controls of the scanner.

        Parameters
        ----------
        neg_log10_p : ndarray, (S, P)
            The model's -log10 p of each control, 0 outside its brain.
        inside : ndarray of bool, (S, P)
            Brain mask of each control.
        participants : sequence of str
            Participant of each scan.
        mask : VoxelMask

        Returns
        -------
        ScannerCalibration
        ndarray, (S, P), float32
            -log10 p of each control by a calibration that was fitted without its participant.

        Raises
        ------
        UserError
            Fewer than `FEWEST_CONTROLS` participants.
        """
        require_enough_controls(participants)
        names = np.asarray(participants)
        left_out = np.empty(neg_log10_p.shape, np.float32)
        for name in np.unique(names):
            own = names == name
            calibration = _calibration(neg_log10_p[~own], inside[~own], mask)
            left_out[own] = calibration.neg_log10_p(neg_log10_p[own])
        return cls(_calibration(neg_log10_p, inside, mask), len(names)), left_out

    def save(self, path: Path) -> Path:
        """Write one safetensors file, atomically."""
        return self.calibration.save(path, controls=str(self.controls))

    @classmethod
    def load(cls, path: Path) -> "ScannerCalibration":
        """Load a saved calibration.

        Raises
        ------
        UserError
            The file is damaged.
        """
        return cls(Calibration.load(path), read_controls(path))


def read_controls(path: Path) -> int:
    """Read the number of controls from the file of a calibration.

    Raises
    ------
    UserError
        The file is damaged.
    """
    with opened_tensors(path, "calibration to a scanner") as file:
        return round(file.number("controls"))


def require_enough_controls(participants: Sequence[str]) -> None:
    """Check that there are enough participants.

    Raises
    ------
    UserError
        Fewer than `FEWEST_CONTROLS`.
    """
    if (count := len(set(participants))) < FEWEST_CONTROLS:
        raise UserError(
            f"adapt-scanner: found {counted(count, 'healthy control')} of this scanner, expected at least "
            f"{FEWEST_CONTROLS} different persons. Add healthy scans."
        )


def _calibration(neg_log10_p: np.ndarray, inside: np.ndarray, mask: VoxelMask) -> Calibration:
    # One fold: a scale of the whole brain hardly depends on a single scan.
    return calibrate(neg_log10_p, inside, [np.arange(len(neg_log10_p))], mask, shrinkage=1.0)[0]
