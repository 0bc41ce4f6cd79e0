"""What a manifest says of a person, as numbers that features can be adjusted for.

All numbers are centred on the training controls: 0 is their mean, and whoever's covariate is not known is read there.
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
    """Years, of the training controls."""

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
    """Learnt on the training controls.

    Attributes
    ----------
    age : AgeRange or None
        None: not adjusted for.
    shares : mapping from "sex" or "site" to a mapping from value to share
        How common each value is among the training controls that tell it.
    """

    age: AgeRange | None = None
    shares: Mapping[CovariateName, Mapping[str, float]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many numbers stand for a person (k)."""
        return (self.age is not None) + sum(map(len, self.shares.values()))

    @classmethod
    def learn(cls, names: Sequence[CovariateName], participants: Sequence[SubjectRecord]) -> "Covariates":
        """Learn from the training controls.

        Raises
        ------
        UserError
            A covariate that is the same in all of them, or that none of them tells.
        """
        age, shares = None, {}
        for name in names:
            known = [
                getattr(participant, name) for participant in participants if getattr(participant, name) is not None
            ]
            if len(set(known)) < 2:
                what = f"is {known[0]} in all of them" if known else "is not given for any of them"
                raise UserError(
                    f"models.ensemble.covariates names {name}, and {name} {what} ({len(participants)} training "
                    f"controls), expected values that differ. Fill in column {name} of the manifest, or leave the "
                    "covariate out."
                )
            if name == "age":
                age = AgeRange(float(np.mean(known)), float(np.std(known)), float(min(known)), float(max(known)))
            else:
                shares[name] = {value: known.count(value) / len(known) for value in sorted(set(known))}
        return cls(age, shares)

    def values(self, participant: SubjectRecord) -> np.ndarray:
        """Numbers of one person, (k,) float64: 0 for what is not known; an age is held to the controls' range."""
        numbers: list[float] = []
        if self.age is not None:
            known = (
                self.age.mean
                if participant.age is None
                else min(max(participant.age, self.age.lowest), self.age.highest)
            )
            numbers.append((known - self.age.mean) / self.age.sd)
        for name, shares in self.shares.items():
            own = getattr(participant, name)
            numbers += [float(value == own) - share if own in shares else 0.0 for value, share in shares.items()]
        return np.array(numbers)

    def warnings(self, participant: SubjectRecord) -> tuple[str, ...]:
        """A sentence for each covariate that the person's map cannot be adjusted for as it should."""
        messages = []
        if self.age is not None:
            if participant.age is None:
                messages.append("age is not given, so the map is adjusted to the controls' mean age")
            elif not self.age.lowest <= participant.age <= self.age.highest:
                end = self.age.lowest if participant.age < self.age.lowest else self.age.highest
                messages.append(
                    f"age {participant.age:g} lies outside the controls' ({self.age.lowest:g} to "
                    f"{self.age.highest:g}), so the map is adjusted as for {end:g}"
                )
        for name, shares in self.shares.items():
            own = getattr(participant, name)
            if own is None:
                messages.append(f"{name} is not given, so the map is not adjusted for it")
            elif own not in shares:
                known = ", ".join(shares)
                messages.append(f"{name} {own} is not among the controls' ({known}), so the map is not adjusted for it")
        return tuple(messages)

    def save(self, folder: Path) -> None:
        """Write ``covariates.json``, whole or not at all; nothing where nothing is adjusted for."""
        if self.size:
            with atomic_write(folder / _FILE) as temporary:
                temporary.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, folder: Path, names: Sequence[CovariateName]) -> "Covariates":
        """Read what `save` wrote for a model with these covariates.

        Raises
        ------
        UserError
            Missing or damaged.
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
