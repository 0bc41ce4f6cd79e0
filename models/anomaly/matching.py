"""Weights of the controls by their likeness to one patient, in age, sex and site.

A control of another age weighs less by a Gaussian of the distance in years, and one of another sex or site by a factor.
Where too few controls are of about the age of the patient, the Gaussian is widened: with a few effective controls,
single persons decide what is normal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.errors import UserError, some_of
from ..features.subsets import effective_number
from .ages import FEWEST_EFFECTIVE

_SMALLEST_WEIGHT = 1e-6
"""Share of the largest weight below which none falls: no voxel is then without controls. It is far below the share of
the null that makes up its tail, which controls of other ages would otherwise decide."""
_WIDENING, _WIDEST_YEARS = 1.1, 200.0


@dataclass(frozen=True)
class Matching:
    """How controls that are unlike a patient weigh less.

    Attributes
    ----------
    years : float
        Standard deviation of the Gaussian of the distance in age.
    other_sex, other_site : float in (0, 1]
        Factor of the controls of another sex or site.

    Raises
    ------
    UserError
        Years that are no standard deviation.
    """

    years: float = 10.0
    other_sex: float = 0.5
    other_site: float = 0.5

    def __post_init__(self):
        if not 0 < self.years < _WIDEST_YEARS:
            raise UserError(
                f"matched controls: found a standard deviation of {self.years:g} years in age, expected one above 0 "
                f"and below {_WIDEST_YEARS:g}. Choose 10, for example."
            )


@dataclass(frozen=True)
class Match:
    """Weights of the controls for one patient.

    Attributes
    ----------
    weights : tuple of float, (S,)
        The largest is 1.
    years : float or None
        Standard deviation of the Gaussian that was used; None if the age of the patient is not known.
    warnings : tuple of str
        Without the age of the patient.
    """

    weights: tuple[float, ...]
    years: float | None
    warnings: tuple[str, ...] = ()

    @property
    def effective(self) -> float:
        """Effective number of controls, see `effective_number`."""
        return effective_number(np.array(self.weights))

    @property
    def is_equal(self) -> bool:
        """Whether all controls weigh the same, so that the model itself is the matched one."""
        return len(set(self.weights)) == 1


def match(controls: Sequence[SubjectRecord], patient: SubjectRecord, matching: Matching) -> Match:
    """Weigh the controls by their likeness to a patient; what is not known of the patient counts for nothing.

    Raises
    ------
    UserError
        See `require_ages`.
    """
    require_ages(controls)
    ages = np.array([np.nan if control.age is None else control.age for control in controls])
    factor = np.ones(len(controls))
    for name, other in (("sex", matching.other_sex), ("site", matching.other_site)):
        own = getattr(patient, name)
        if own is not None:
            factor *= [1.0 if getattr(control, name) == own else other for control in controls]
    if patient.age is None:
        weights, warnings = _scaled(factor), ["age is not given, so controls of all ages weigh the same"]
        return Match(weights, None, (*warnings, *_few(weights)))
    years, weights = matching.years, _weights(ages, factor, patient.age, matching.years)
    first = effective_number(np.array(weights))
    while effective_number(np.array(weights)) < FEWEST_EFFECTIVE and years < _WIDEST_YEARS:
        years *= _WIDENING
        weights = _weights(ages, factor, patient.age, years)
    warnings = []
    if not np.nanmin(ages) <= patient.age <= np.nanmax(ages):
        side, end = ("younger", "youngest") if patient.age < np.nanmin(ages) else ("older", "oldest")
        warnings.append(f"{side} than all controls, so that what is normal at this age is extrapolated from the {end}")
    if years > matching.years:
        warnings.append(
            f"{first:.1f} effective controls with {matching.years:g} years of standard deviation, fewer than "
            f"{FEWEST_EFFECTIVE}, so that controls of more other ages count: {years:.0f} years"
        )
    return Match(weights, years, (*warnings, *_few(weights)))


def require_ages(controls: Sequence[SubjectRecord]) -> None:
    """Refuse controls without an age.

    Raises
    ------
    UserError
        Names them.
    """
    missing = [control.key for control in controls if control.age is None]
    if missing:
        raise UserError(
            f"matched controls: {len(missing)} of {len(controls)} training controls have no age ({some_of(missing)}), "
            "expected the age of each. Add the ages to the column age of their table."
        )


def _weights(ages: np.ndarray, factor: np.ndarray, age: float, years: float) -> tuple[float, ...]:
    # Relative to the nearest age, since all would be 0 for a patient who is far from every control.
    exponent = np.square(ages - age) / (2 * years**2)
    return _scaled(factor * np.exp(exponent.min() - exponent))


def _scaled(weights: np.ndarray) -> tuple[float, ...]:
    return tuple(float(weight) for weight in np.maximum(weights / weights.max(), _SMALLEST_WEIGHT))


def _few(weights: tuple[float, ...]) -> tuple[str, ...]:
    number = effective_number(np.array(weights))
    if number >= FEWEST_EFFECTIVE:
        return ()
    return (f"{number:.1f} effective controls, fewer than {FEWEST_EFFECTIVE}: single controls decide the map",)
