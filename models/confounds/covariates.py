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

from ...data_manifests.atomic_write import written_whole
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
    def learn(cls, names: Sequence[CovariateName], people: Sequence[SubjectRecord]) -> "Covariates":
        """Learn from the training controls.

        Raises
        ------
        UserError
            A covariate that is the same in all of them, or that none of them tells.
        """
        age, shares = None, {}
        for name in names:
            told = [getattr(person, name) for person in people if getattr(person, name) is not None]
            if len(set(told)) < 2:
                what = f"is {told[0]} in all of them" if told else "is not given for any of them"
                raise UserError(
                    f"models.fusion.covariates names {name}, and {name} {what} ({len(people)} training controls), "
                    f"expected values that differ. Fill in column {name} of the manifest, or leave the covariate out."
                )
            if name == "age":
                age = AgeRange(float(np.mean(told)), float(np.std(told)), float(min(told)), float(max(told)))
            else:
                shares[name] = {value: told.count(value) / len(told) for value in sorted(set(told))}
        return cls(age, shares)

    def of(self, person: SubjectRecord) -> np.ndarray:
        """Numbers of one person, (k,) float64: 0 for what is not known; an age is held to the controls' range."""
        numbers: list[float] = []
        if self.age is not None:
            known = self.age.mean if person.age is None else min(max(person.age, self.age.lowest), self.age.highest)
            numbers.append((known - self.age.mean) / self.age.sd)
        for name, shares in self.shares.items():
            own = getattr(person, name)
            numbers += [float(value == own) - share if own in shares else 0.0 for value, share in shares.items()]
        return np.array(numbers)

    def doubts(self, person: SubjectRecord) -> tuple[str, ...]:
        """A sentence for each covariate that the person's map cannot be adjusted for as it should."""
        told = []
        if self.age is not None:
            if person.age is None:
                told.append("age is not given, so the map is adjusted to the controls' mean age")
            elif not self.age.lowest <= person.age <= self.age.highest:
                end = self.age.lowest if person.age < self.age.lowest else self.age.highest
                told.append(
                    f"age {person.age:g} lies outside the controls' ({self.age.lowest:g} to {self.age.highest:g}), so "
                    f"the map is adjusted as for {end:g}"
                )
        for name, shares in self.shares.items():
            own = getattr(person, name)
            if own is None:
                told.append(f"{name} is not given, so the map is not adjusted for it")
            elif own not in shares:
                known = ", ".join(shares)
                told.append(f"{name} {own} is not among the controls' ({known}), so the map is not adjusted for it")
        return tuple(told)

    def save(self, folder: Path) -> None:
        """Write ``covariates.json``, whole or not at all; nothing where nothing is adjusted for."""
        if self.size:
            with written_whole(folder / _FILE) as temporary:
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
