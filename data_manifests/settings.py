"""Settings of the `data_manifests` section of a configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A section of the configuration: frozen, and a misspelt name is an error.

    A setting that has been renamed keeps its old names as ``validation_alias``, and old values as `OldValues`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


def renamed(name: str, *old: str) -> AliasChoices:
    """Let a setting be read by its old names too; for ``Field(validation_alias=...)``."""
    return AliasChoices(name, *old)


@dataclass(frozen=True)
class OldValues:
    """Values of a setting, or of a member of a list, that have other names now; for `BeforeValidator`."""

    new: Mapping[str, str]

    def __call__(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self.new.get(one, one) if isinstance(one, str) else one for one in value]
        return self.new.get(value, value) if isinstance(value, str) else value


def with_current_names(section: type[Section], values: Any, prefix: str = "") -> tuple[Any, list[str]]:
    """Nested `values` of a section with current names in place of old ones, and a note for each that was replaced."""
    if not isinstance(values, dict):
        return values, []
    renamed, notes = dict(values), []
    for name, field in section.model_fields.items():
        alias = field.validation_alias
        for old in alias.choices if isinstance(alias, AliasChoices) else ():
            if old != name and old in renamed and name not in renamed:
                renamed[name] = renamed.pop(old)
                notes.append(f"setting {prefix}{old} is now called {prefix}{name}")
        if name not in renamed:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            renamed[name], more = with_current_names(field.annotation, renamed[name], f"{prefix}{name}.")
            notes += more
        for rule in (m.func for m in field.metadata if isinstance(m, BeforeValidator)):
            if isinstance(rule, OldValues):
                given = renamed[name] if isinstance(renamed[name], (list, tuple)) else [renamed[name]]
                notes += [f"{v} of {prefix}{name} is now called {rule.new[v]}" for v in given if v in rule.new]
                renamed[name] = rule(renamed[name])
    return renamed, notes


class DataSettings(Section):
    """Who trains and who is held out."""

    held_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the controls that no detector is fitted on. Column `split` of a manifest goes before it."""
