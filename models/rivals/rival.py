"""What a rival has to offer, and what its maps have to be."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ...data_manifests.errors import SubjectError, UserError
from .scans import Controls, Scan


class Rival(Protocol):
    """A method of anomaly detection: one object for each fit.

    Attributes
    ----------
    fewest_controls : int
        That `fit` needs.
    is_costly : bool
        Optional. A method that takes minutes to fit is cross-validated with the fewer folds of the preset.
    uses_encoder_weights : bool
        Optional. A method that depends on `Controls.encoder_weights` is fitted anew where they change.
    """

    fewest_controls: int

    def fit(self, controls: Controls) -> None:
        """Fit the method; a repeated call with the same controls goes on from what is in their folder.

        Raises
        ------
        UserError
            The method cannot be fitted, or its training diverged.
        """
        ...

    def score(self, subject: Scan) -> np.ndarray:
        """Score one subject, (X, Y, Z) float32; higher = more anomalous. Used only inside ``subject.inside``."""
        ...


def checked_scores(name: str, subject: Scan, volume: object) -> np.ndarray:
    """Return the scores inside the brain of a subject, (X, Y, Z) float32, 0 elsewhere.

    Raises
    ------
    SubjectError
        The map is no array of numbers, has another shape, or is not finite.
    """
    try:
        values = np.asarray(volume, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise SubjectError(
            f"{name}: returned a {type(volume).__name__} for {subject.key}, expected an array of numbers. Correct the "
            "method."
        ) from error
    if values.shape != subject.inside.shape:
        raise SubjectError(
            f"{name}: returned a map of shape {values.shape} for {subject.key}, expected {subject.inside.shape}, the "
            "grid of the scan. Correct the method."
        )
    bad = int((~np.isfinite(values[subject.inside])).sum())
    if bad:
        raise SubjectError(
            f"{name}: returned {bad} values for {subject.key} that are NaN or infinite, expected finite numbers. "
            "Correct the method, or leave it out."
        )
    return np.where(subject.inside, values, 0)


def require_varying(name: str, maps: Sequence[np.ndarray]) -> None:
    """Refuse a method whose maps (P,) hold a single value each, for all of several subjects.

    Raises
    ------
    UserError
    """
    if maps and all(np.ptp(values) == 0 for values in maps):
        raise UserError(
            f"{name}: returned a constant map for each of {len(maps)} controls, expected scores that differ between "
            "voxels. Correct the method, or leave it out."
        )
