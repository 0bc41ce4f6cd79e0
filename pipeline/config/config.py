"""Configuration of a run: one section per folder, read from YAML, frozen.

The resolved configuration is saved with the run. Paths, devices and the number of jobs are command-line arguments and
never part of the configuration, so that the same configuration gives the same result on another machine.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.decimal_text import decimal
from ...data_manifests.errors import UserError, private, some_of
from ...data_manifests.settings import (
    DataSettings,
    Section,
    with_current_names,
    with_values_of_before,
    without_other_values,
)
from ...evaluation.settings import EvaluationSettings
from ...models.settings import ModelSettings
from ...preprocessing.settings import PreprocessingSettings
from . import presets
from .cluster_settings import ClusterSettings
from .diff import changes, flat_settings
from .unknown_names import section_at, sentence_of

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 20
"""Limits of a settings file, far above any valid settings."""


class Config(Section):
    """All settings that determine the result of a run."""

    seed: Annotated[int, Field(ge=0, le=10**18)] = 0
    """Random seed of split, training and intervals; the same seed gives the same result. A change does not repeat the
    preparation."""
    data_manifests: DataSettings = DataSettings()
    preprocessing: PreprocessingSettings = PreprocessingSettings()
    models: ModelSettings = ModelSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _scorers_have_their_features(self) -> Self:
        """Check the features of the scorers before the hour that preparation takes."""
        ensemble, prepared = self.models.ensemble, self.preprocessing
        if missing := [name for name in ensemble.derived_maps if name not in prepared.derived_maps]:
            raise ValueError(
                f"models.ensemble.scorers names {', '.join(missing)}, but preprocessing.derived_maps is "
                f"{', '.join(prepared.derived_maps) or 'empty'}. Add {', '.join(missing)} to "
                "preprocessing.derived_maps, or remove the scorer"
            )
        return self


class AllSettings(Config):
    """Everything that a settings file may name: what determines the result, and where the work is done."""

    cluster: ClusterSettings = ClusterSettings()

    def config(self) -> Config:
        """Return the part that determines the result."""
        return Config(**{name: getattr(self, name) for name in Config.model_fields})


def preset_names() -> tuple[str, ...]:
    """Return the names that ``--preset`` accepts."""
    files = resources.files(presets).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


@dataclass(frozen=True)
class GivenSettings:
    """A configuration, and how it was given.

    Attributes
    ----------
    config : Config
    named : frozenset of str
        Settings that the user's file or ``--set`` names, as "models.detector.nu".
    notes : tuple of str
        A note for each old name or value, and one for names that are no longer settings.
    dropped : mapping from name to value
        What a saved file holds of settings that no longer exist, where it is not the constant that is used now.
    cluster : ClusterSettings
        Jobs of a cluster. They are never saved: a program, such as that of a job's prologue, is run only if the user
        names it.
    """

    config: Config
    named: frozenset[str]
    notes: tuple[str, ...]
    dropped: Mapping[str, Any] = field(default_factory=dict)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)


def read_settings(
    path: Path | None = None,
    *,
    saved: GivenSettings | None = None,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    seeds: int | None = None,
    saved_file: bool = False,
) -> GivenSettings:
    """Resolve a configuration from defaults, preset, file, ``--set name=value``, seed and number of seeds.

    Later sources take precedence. With `saved`, the settings of an earlier run take the place of the defaults. A user's
    file must not name a setting that no longer exists with another value than the constant; with `saved_file`, for a
    file that voxout wrote, such values are dropped with a note, and settings that were added since have the value by
    which all is as it was before.

    Raises
    ------
    UserError
        All problems at once; for a misspelt name, with the nearest valid one.
    """
    values = saved.config.model_dump(mode="json") if saved is not None else {}
    if preset is not None:
        _merge(values, _read_preset(preset))
    given = [_read_yaml(path)] if path is not None else []
    given += [_parsed_override(override) for override in overrides]
    current = [with_current_names(AllSettings, each) for each in given]
    dropped: dict[str, Any] = {}
    if saved_file:
        kept, dropped = without_other_values(AllSettings, current[0].values)
        current[0] = current[0]._replace(values=with_values_of_before(AllSettings, kept))
    own: dict[str, Any] = {}
    for each in current:
        _merge(own, each.values)
    named = frozenset(name.removeprefix("settings.") for name in flat_settings(own))
    _merge(values, own)
    if seed is not None:
        values["seed"] = seed
    if seeds is not None:
        _merge(values, {"models": {"ensemble": {"members": seeds}}})
    try:
        settings = AllSettings.model_validate(values)
    except ValidationError as error:
        of_file, others = (current[0].values, current[1:]) if path is not None else ({}, current)

        def where(problem: Any) -> str:
            """Return the settings file, if the setting is from there."""
            place = problem["loc"]
            from_file = _names(of_file, place) and not any(_names(each.values, place) for each in others)
            return f"{private(path)}: " if path is not None and from_file else ""

        raise UserError([where(problem) + sentence_of(AllSettings, problem) for problem in error.errors()]) from error
    notes = [*(saved.notes if saved is not None else ()), *(note for each in current for note in each.notes)]
    if removed := tuple(dict.fromkeys(name for each in current for name in each.removed)):
        are = "is no longer a setting" if len(removed) == 1 else "are no longer settings"
        notes.append(f"{some_of(removed)} {are}; the value given is always used")
    notes += [f"{name} was {value} and is no longer a setting; a constant is used" for name, value in dropped.items()]
    return GivenSettings(settings.config(), named, tuple(dict.fromkeys(notes)), dropped, settings.cluster)


def names_only_cluster(path: Path) -> bool:
    """Whether a settings file has no other section than `cluster`, so that it changes no setting of a run.

    Raises
    ------
    UserError
        The file cannot be read.
    """
    return _read_yaml(path).keys() <= {"cluster"}


def load_config(
    path: Path | None = None,
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    seeds: int | None = None,
) -> Config:
    """Return the configuration alone; see `read_settings`."""
    return read_settings(path, preset=preset, overrides=overrides, seed=seed, seeds=seeds).config


def config_text(config: Config) -> str:
    """Return the resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def save_config(path: Path, config: Config) -> None:
    """Write the resolved configuration atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(config_text(config))


def _read_preset(name: str) -> dict[str, Any]:
    if name not in preset_names():
        raise UserError(f'Preset "{name}" is not known. Choose one of: {", ".join(preset_names())}.')
    return yaml.load(resources.files(presets).joinpath(f"{name}.yaml").read_text(), _Loader) or {}


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        what = "is not a file" if path.exists() else "no such configuration file"
        raise UserError(f"{private(path)}: {what}, expected a settings file. Check the path after --config.")
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise UserError(
            f"{private(path)}: has {size:,} bytes, expected a settings file of at most {_MAX_BYTES:,}. Check the path "
            "after --config."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{private(path)}: not readable as UTF-8. Save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{private(path)}: not readable ({error.strerror}). Check its permissions.") from error
    values = _parsed_yaml(text, private(path), "Correct the file.")
    if values is not None and not isinstance(values, dict):
        raise UserError(
            f"{private(path)}: holds a {type(values).__name__}, expected sections: "
            f"{', '.join(AllSettings.model_fields)}. See docs/settings.md."
        )
    return values or {}


class _Loader(yaml.SafeLoader):
    """YAML loader that reads what a person reads.

    Numbers are decimal, as in YAML 1.2: 010 is ten, 1e-3 is a number, and 1:30, 0x10 and 1_000 are text. A name occurs
    once in its section. There are no references, by which a short text can expand to one of unlimited size.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ComposerError(None, None, "references (*name) are not supported", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[str, yaml.Node] = {}
        for name in (name for name, _ in node.value if isinstance(name, yaml.ScalarNode)):
            if first.setdefault(name.value, name) is not name:
                lines = first[name.value].start_mark.line + 1, name.start_mark.line + 1
                raise ConstructorError(None, None, f"{name.value} is in line {lines[0]} and {lines[1]}, expected once")
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> float:
        text = str(self.construct_scalar(node))
        if re.fullmatch("[-+]?[0-9]+", text):
            return int(text)
        if (number := decimal(text)) is None and not text.lower().endswith((".inf", ".nan")):
            raise ConstructorError(None, None, f"{text} is no decimal number", node.start_mark)
        return float(text.lower().replace(".", "")) if number is None else number


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag not in (_INT, _FLOAT)]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile("[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"(?:[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+.0123456789"),
)
for tag in (_INT, _FLOAT):
    _Loader.add_constructor(tag, _Loader.construct_number)


def _parsed_yaml(text: str, where: str, advice: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise UserError(f"{where}: is nested too deeply, expected settings. {advice}") from error
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: not readable as YAML ({reason[:300]}). {advice}") from error


def _parsed_override(override: str) -> dict[str, Any]:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f'--set {override}: expected NAME=VALUE, as in "--set models.detector.nu=0.05".')
    parts = name.strip().split(".")
    if len(parts) > _MAX_DEPTH or len(override) > _MAX_BYTES:
        raise UserError(f'--set {name[:60]}...: is too long, expected NAME=VALUE, as in "models.detector.nu=0.05".')
    value = _parsed_yaml(text, f"--set {override[:100]}", "Correct the value; a list is written as [t1w, flair].")
    for part in reversed(parts):
        value = {part: value}
    return value


def _merge(values: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            _merge(values[name], value)
        else:
            values[name] = value


def _names(values: Any, place: Sequence[int | str]) -> bool:
    """Whether nested values name the setting, or a part of it."""
    for part in place:
        if not isinstance(values, dict):
            return True
        if part not in values:
            return False
        values = values[part]
    return bool(place)


def comparable(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded inputs of a stage as those of today, where nothing else than the names has changed.

    Names that are no longer settings and had the value now used are left out; settings that were added since get the
    value by which all is as it was before, if the record names all other settings of their section.
    """

    def is_removed(name: str, value: Any) -> bool:
        kind, _, setting = name.partition(".")
        *sections, last = setting.split(".")
        section = section_at(Config, sections) if kind == "settings" else None
        return section is not None and not section.without_removed({last: value})

    kept = {name: value for name, value in inputs.items() if not is_removed(name, value)}
    for place in {name.rpartition(".")[0] for name in kept if name.startswith("settings.")}:
        section = section_at(Config, place.split(".")[1:])
        added = {} if section is None else {f"{place}.{name}": value for name, value in section.added.items()}
        if section is not None and {f"{place}.{name}" for name in section.model_fields} - added.keys() <= kept.keys():
            kept = added | kept
    return kept


def require_settings_of_model(config: Config, fitted: Config) -> None:
    """Require the settings that a model was fitted with; only those of the evaluation may differ.

    Raises
    ------
    UserError
        A setting of preprocessing or models differs.
    """
    for section in ("preprocessing", "models"):
        current, expected = (
            getattr(config, section).model_dump(mode="json"),
            getattr(fitted, section).model_dump(mode="json"),
        )
        different = changes(
            flat_settings(expected, f"settings.{section}"), flat_settings(current, f"settings.{section}")
        )
        if different:
            raise UserError(
                f"apply: settings of {section} differ from those the model was fitted with "
                f"({'; '.join(different[:3])}), expected the same. Remove them: apply takes them from the model."
            )
