"""Settings of the `data_manifests` section of a configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from .decimal_text import decimal


class Section(BaseModel):
    """Section of the configuration. It is frozen; unknown setting names and numbers that are not finite are errors.

    Old names of renamed settings are accepted through ``validation_alias`` (see `renamed`), old values through
    `OldValues`, and settings that have become constants through `removed`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    removed: ClassVar[Mapping[str, Any]] = {}
    """Names that are no longer settings, and the constant that is used; no other value is accepted for them."""
    added: ClassVar[Mapping[str, Any]] = {}
    """Settings that records of before do not name, and the value by which all is as it was before."""

    @classmethod
    def without_removed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Drop names that are no longer settings from the values of a section, where they have the constant's value."""
        return {name: v for name, v in values.items() if name not in cls.removed or not _equal(v, cls.removed[name])}

    @model_validator(mode="before")
    @classmethod
    def _drop_removed(cls, values: Any) -> Any:
        return cls.without_removed(values) if isinstance(values, dict) else values

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what pydantic converts to a number although a person would not read it as one."""
        is_switch = cls.model_fields[str(info.field_name)].annotation is bool
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, bool) and not is_switch:
                raise ValueError("no truth value (YAML reads yes, no, on and off as true and false)")
            if isinstance(item, str) and "_" in item and decimal(item.replace("_", "")) is not None:
                raise ValueError("a number without underscores")
        return value


def _equal(value: Any, constant: Any) -> bool:
    if value == constant:
        return True
    try:  # YAML reads 1e-3 as text, which is valid as a number
        return TypeAdapter(type(constant)).validate_python(value) == constant
    except ValidationError:
        return False


def renamed(name: str, *old: str) -> AliasChoices:
    """Alias under which a setting is also read by its old names, for ``Field(validation_alias=...)``."""
    return AliasChoices(name, *old)


@dataclass(frozen=True)
class OldValues:
    """Mapping of old to current values of a setting or of the items of a list, for `BeforeValidator`."""

    new: Mapping[str, str]

    def __call__(self, value: Any) -> Any:
        """Return the current value."""
        if isinstance(value, (list, tuple)):
            return [self.new.get(one, one) if isinstance(one, str) else one for one in value]
        return self.new.get(value, value) if isinstance(value, str) else value


class CurrentNames(NamedTuple):
    """Values of a section under current names, with what was replaced.

    Attributes
    ----------
    values : Any
        A nested dict, or whatever else was given.
    notes : list of str
        A note per old name or value.
    removed : list of str
        Names that were dropped, since they are no longer settings and had the constant's value.
    """

    values: Any
    notes: list[str]
    removed: list[str]


def with_current_names(section: type[Section], values: Any, prefix: str = "") -> CurrentNames:
    """Replace old setting names and values in the nested `values` of a section, and drop names in `Section.removed`."""
    if not isinstance(values, dict):
        return CurrentNames(values, [], [])
    current: dict[Any, Any] = section.without_removed(values)
    notes, removed = [], [f"{prefix}{name}" for name in values if name not in current]
    for name, field in section.model_fields.items():
        alias = field.validation_alias
        for old in alias.choices if isinstance(alias, AliasChoices) else ():
            if old != name and old in current and name not in current:
                current[name] = current.pop(old)
                notes.append(f"setting {prefix}{old} is now called {prefix}{name}")
        if name not in current:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            inner = with_current_names(field.annotation, current[name], f"{prefix}{name}.")
            current[name], notes, removed = inner.values, notes + inner.notes, removed + inner.removed
        for rule in (m.func for m in field.metadata if isinstance(m, BeforeValidator)):
            if isinstance(rule, OldValues):
                given = current[name] if isinstance(current[name], (list, tuple)) else [current[name]]
                notes += [
                    f"{v} of {prefix}{name} is now called {rule.new[v]}"
                    for v in given
                    if isinstance(v, str) and v in rule.new
                ]
                current[name] = rule(current[name])
    return CurrentNames(current, notes, removed)


def without_other_values(section: type[Section], values: Any, prefix: str = "") -> tuple[Any, dict[str, Any]]:
    """Drop the names in `Section.removed` that are left in nested values; also return their values, by full name."""
    if not isinstance(values, dict):
        return values, {}
    left = {name: value for name, value in values.items() if name not in section.removed}
    dropped = {f"{prefix}{name}": value for name, value in values.items() if name in section.removed}
    for name, field in section.model_fields.items():
        if name in left and isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            left[name], more = without_other_values(field.annotation, left[name], f"{prefix}{name}.")
            dropped |= more
    return left, dropped


def with_values_of_before(section: type[Section], values: Any) -> Any:
    """Name the settings in `Section.added` that are missing in nested values, by which all is as it was before.

    Only of sections that name all their other settings, as those of a saved file do.
    """
    if not isinstance(values, dict):
        return values
    complete = section.model_fields.keys() - section.added.keys() <= values.keys()
    filled = {**section.added, **values} if complete else dict(values)
    for name, field in section.model_fields.items():
        if name in values and isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            filled[name] = with_values_of_before(field.annotation, values[name])
    return filled


class DataSettings(Section):
    """Settings of the split into training and held-out controls."""

    held_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the controls that are held out of training. Where column `split` of a
    manifest marks held-out controls, none is drawn: all others are for training."""
