"""Settings of the `data_manifests` section of a configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """Section of the configuration. It is frozen, and unknown setting names are errors.

    Old names of renamed settings are accepted through ``validation_alias`` (see `renamed`), old values through
    `OldValues`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


def renamed(name: str, *old: str) -> AliasChoices:
    """Alias under which a setting is also read by its old names, for ``Field(validation_alias=...)``."""
    return AliasChoices(name, *old)


@dataclass(frozen=True)
class OldValues:
    """Mapping of old to current values of a setting or of the items of a list, for `BeforeValidator`."""

    new: Mapping[str, str]

    def __call__(self, value: Any) -> Any:
        """Replace old values; anything else, also of another type, is returned unchanged."""
        if isinstance(value, (list, tuple)):
            return [self.new.get(one, one) if isinstance(one, str) else one for one in value]
        return self.new.get(value, value) if isinstance(value, str) else value


def with_current_names(section: type[Section], values: Any, prefix: str = "") -> tuple[Any, list[str]]:
    """Replace old setting names and values in the nested `values` of a section; also return a note per replacement."""
    if not isinstance(values, dict):
        return values, []
    current, notes = dict(values), []
    for name, field in section.model_fields.items():
        alias = field.validation_alias
        for old in alias.choices if isinstance(alias, AliasChoices) else ():
            if old != name and old in current and name not in current:
                current[name] = current.pop(old)
                notes.append(f"setting {prefix}{old} is now called {prefix}{name}")
        if name not in current:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            current[name], more = with_current_names(field.annotation, current[name], f"{prefix}{name}.")
            notes += more
        for rule in (m.func for m in field.metadata if isinstance(m, BeforeValidator)):
            if isinstance(rule, OldValues):
                given = current[name] if isinstance(current[name], (list, tuple)) else [current[name]]
                notes += [
                    f"{v} of {prefix}{name} is now called {rule.new[v]}"
                    for v in given
                    if isinstance(v, str) and v in rule.new
                ]
                current[name] = rule(current[name])
    return current, notes


class DataSettings(Section):
    """Settings of the split into training and held-out controls."""

    held_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the controls that are held out of training. Column `split` of a manifest takes precedence."""
