"""Covariates of the manifest (age, sex, site), encoded as numbers.

All values are centred on the training controls: 0 is their mean, which is also used for missing values.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.errors import UserError, private
from ...data_manifests.typed_json import Content, read_json
from ..settings import CovariateName

_FILE = "covariates.json"


@dataclass(frozen=True)
class AgeRange:
    """Distribution of age among the training controls, in years."""

    mean: float
    sd: float
    lowest: float
    highest: float


class _Age(Content):
    mean: float
    sd: Annotated[float, Field(gt=0)]
    lowest: float
    highest: float


class _Content(Content):
    age: _Age | None
    shares: dict[CovariateName, dict[str, Annotated[float, Field(gt=0, le=1)]]]


@dataclass(frozen=True)
class Covariates:
    """Encoding of covariates, learnt on the training controls.

    Attributes
    ----------
    age : AgeRange or None
        None: age is not a covariate.
    shares : mapping from "sex" or "site" to a mapping from value to share
        Share of each value among the training controls for which it is given.
    """

    age: AgeRange | None = None
    shares: Mapping[CovariateName, Mapping[str, float]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of encoded values (k)."""
        return (self.age is not None) + sum(map(len, self.shares.values()))

    @classmethod
    def learn(cls, names: Sequence[CovariateName], participants: Sequence[SubjectRecord]) -> "Covariates":
        """Learn the encoding from the training controls.

        Raises
        ------
        UserError
            A covariate is the same in all training controls, or missing in all.
        """
        age, shares = None, {}
        for name in names:
            known = [
                getattr(participant, name) for participant in participants if getattr(participant, name) is not None
            ]
            if len(set(known)) < 2:
                found = f"is {known[0]} in all" if known else "is not given for any"
                raise UserError(
                    f"models.ensemble.covariates names {name}, and {name} {found} of the {len(participants)} training "
                    f"controls, expected values that differ. Fill in column {name} of the manifest, or remove the "
                    "covariate."
                )
            if name == "age":
                age = AgeRange(float(np.mean(known)), float(np.std(known)), float(min(known)), float(max(known)))
            else:
                shares[name] = {value: known.count(value) / len(known) for value in sorted(set(known))}
        return cls(age, shares)

    def values(self, participant: SubjectRecord) -> np.ndarray:
        """Encode one participant, (k,) float64; missing values are 0, age is clipped to the controls' range."""
        encoded: list[float] = []
        if self.age is not None:
            age = (
                self.age.mean
                if participant.age is None
                else min(max(participant.age, self.age.lowest), self.age.highest)
            )
            encoded.append((age - self.age.mean) / self.age.sd)
        for name, shares in self.shares.items():
            own = getattr(participant, name)
            encoded += [float(value == own) - share if own in shares else 0.0 for value, share in shares.items()]
        return np.array(encoded)

    def warnings(self, participant: SubjectRecord) -> tuple[str, ...]:
        """One message for each covariate of the participant that is missing or outside the controls' values."""
        messages = []
        if self.age is not None:
            if participant.age is None:
                messages.append("age is not given, so the map is adjusted to the controls' mean age")
            elif not self.age.lowest <= participant.age <= self.age.highest:
                end = self.age.lowest if participant.age < self.age.lowest else self.age.highest
                messages.append(
                    f"age {participant.age:g} lies outside the controls' range ({self.age.lowest:g} to "
                    f"{self.age.highest:g}), so the map is adjusted for age {end:g}"
                )
        for name, shares in self.shares.items():
            own = getattr(participant, name)
            if own is None:
                messages.append(f"{name} is not given, so the map is not adjusted for it")
            elif own not in shares:
                known = ", ".join(shares)
                messages.append(
                    f"{name} {own} does not occur among the controls ({known}), so the map is not adjusted for it"
                )
        return tuple(messages)

    def save(self, folder: Path) -> None:
        """Write ``covariates.json`` atomically; no file without covariates."""
        if self.size:
            with atomic_write(folder / _FILE) as temporary:
                temporary.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, folder: Path, names: Sequence[CovariateName]) -> "Covariates":
        """Load the saved encoding of a model with these covariates.

        Raises
        ------
        UserError
            The file is missing or damaged.
        """
        if not names:
            return cls()
        what, advice = "a description of the covariates that the model's settings name", "Run the stage fit again."
        content = read_json(folder / _FILE, _Content, what, advice)
        found = {*content.shares, *(["age"] if content.age else [])}
        if found != set(names):
            raise UserError(
                f"{private(folder / _FILE)}: describes {', '.join(sorted(found)) or 'nothing'}, expected "
                f"{', '.join(names)}, as in the model's settings. {advice}"
            )
        age = content.age and AgeRange(**content.age.model_dump())
        return cls(age, {name: content.shares[name] for name in content.shares})
