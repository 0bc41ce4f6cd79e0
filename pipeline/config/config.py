"""The configuration of a run: one section a folder, read from YAML, frozen.

The resolved configuration is saved with the run and is the run. Paths, devices and numbers of jobs are arguments of
the command line, never configuration: the same configuration gives the same result elsewhere.
"""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from yaml.composer import ComposerError

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.errors import UserError, private
from ...data_manifests.settings import DataSettings, Section, with_current_names
from ...evaluation.settings import EvaluationSettings
from ...models.settings import ModelSettings
from ...preprocessing.settings import PreprocessingSettings
from . import presets
from .diff import changes, flat_settings

_LONGEST_BYTES = 1_000_000
_DEEPEST = 20
"""Far beyond any settings there are."""


class Config(Section):
    """Everything that decides the result of a run."""

    seed: Annotated[int, Field(ge=0)] = 0
    data_manifests: DataSettings = DataSettings()
    preprocessing: PreprocessingSettings = PreprocessingSettings()
    models: ModelSettings = ModelSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _scorers_have_their_features(self) -> Self:
        """Told now, and not after the hour that preparation takes."""
        ensemble, prepared = self.models.ensemble, self.preprocessing
        if missing := [name for name in ensemble.derived_maps if name not in prepared.derived_maps]:
            raise ValueError(
                f"models.ensemble.scorers names {', '.join(missing)}, and the derived maps are "
                f"{', '.join(prepared.derived_maps) or 'none'}. Add {', '.join(missing)} to "
                "preprocessing.derived_maps, or leave the reader out"
            )
        numbers = 27 * len(prepared.modalities)
        if "patches" in ensemble.scorers and ensemble.patch_components > numbers:
            raise ValueError(
                f"models.ensemble.patch_components is {ensemble.patch_components}, and a patch of 3x3x3 voxels of "
                f"{', '.join(prepared.modalities)} holds {numbers} numbers. Lower it to {numbers} at most"
            )
        return self


def preset_names() -> tuple[str, ...]:
    """Names that ``--preset`` knows."""
    files = resources.files(presets).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def load_config(
    path: Path | None = None,
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    seeds: int | None = None,
) -> Config:
    """Resolve a configuration: defaults, then the preset, then the file, then ``--set name=value``, then the seed and
    the number of seeds.

    Raises
    ------
    UserError
        All problems at once, misspelt names with the nearest valid one.
    """
    values: dict[str, Any] = {}
    if preset is not None:
        _merge(values, _read_preset(preset))
    for given in [*([_read_yaml(path)] if path is not None else []), *map(_parsed_override, overrides)]:
        _merge(values, with_current_names(Config, given)[0])
    if seed is not None:
        values["seed"] = seed
    if seeds is not None:
        _merge(values, {"models": {"ensemble": {"members": seeds}}})
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError([_sentence(problem) for problem in error.errors()]) from error


def named_settings(path: Path | None, overrides: Sequence[str]) -> frozenset[str]:
    """Names of the settings that a configuration file and ``--set`` name, as "models.detector.nu"."""
    values = _read_yaml(path) if path is not None else {}
    for override in overrides:
        _merge(values, _parsed_override(override))
    return frozenset(name.removeprefix("settings.") for name in flat_settings(values))


def notes_on_names(path: Path | None, overrides: Sequence[str]) -> tuple[str, ...]:
    """A sentence for each setting that a configuration file or ``--set`` calls by an old name."""
    values = [_read_yaml(path)] if path is not None else []
    values += [_parsed_override(override) for override in overrides]
    return tuple(dict.fromkeys(note for each in values for note in with_current_names(Config, each)[1]))


def save_config(path: Path, config: Config) -> None:
    """Write the resolved configuration, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _read_preset(name: str) -> dict[str, Any]:
    if name not in preset_names():
        raise UserError(f'Preset "{name}" is not known. Choose one of: {", ".join(preset_names())}.')
    return yaml.safe_load(resources.files(presets).joinpath(f"{name}.yaml").read_text()) or {}


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        what = "is no file" if path.exists() else "no such configuration file"
        raise UserError(f"{private(path)}: {what}, expected a file of settings. Check the path after --config.")
    if (size := path.stat().st_size) > _LONGEST_BYTES:
        raise UserError(
            f"{private(path)}: holds {size:,} bytes, expected a file of settings. Check the path after --config."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{private(path)}: not readable as UTF-8. Save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{private(path)}: not readable ({error.strerror}). Check its permissions.") from error
    values = _parsed_yaml(text, private(path), "Mend it there.")
    if values is not None and not isinstance(values, dict):
        raise UserError(
            f"{private(path)}: holds a {type(values).__name__}, expected sections: {', '.join(Config.model_fields)}."
        )
    return values or {}


class _Loader(yaml.SafeLoader):
    """Plain values alone: settings need no references, with which a short text may stand for an endless one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ComposerError(None, None, "it holds a reference (*name)", self.peek_event().start_mark)
        return super().compose_node(parent, index)


def _parsed_yaml(text: str, where: str, advice: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply, expected settings. {advice}") from error
    except (yaml.YAMLError, ValueError) as error:
        words = " ".join(str(error).split())
        raise UserError(f"{where}: not readable as YAML ({words[:300]}). {advice}") from error


def _parsed_override(override: str) -> dict[str, Any]:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f'--set {override}: expected NAME=VALUE, as in "--set models.detector.nu=0.05".')
    parts = name.strip().split(".")
    if len(parts) > _DEEPEST or len(override) > _LONGEST_BYTES:
        raise UserError(f'--set {name[:60]}...: is too long, expected NAME=VALUE, as in "models.detector.nu=0.05".')
    value = _parsed_yaml(text, f"--set {override[:100]}", "Mend the value; a list is written [t1w, flair].")
    for part in reversed(parts):
        value = {part: value}
    return value


def _merge(values: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            _merge(values[name], value)
        else:
            values[name] = value


def _sentence(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    name = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _field_names(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        if near:
            return f"Setting {name} is not known. Did you mean {'.'.join([*location[:-1], near[0]])}?"
        return f"Setting {name} is not known. Known there are {', '.join(known)}."
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "value_error" and isinstance(problem["input"], dict):
        # Settings that do not go together: the sentence names them.
        return f"{name}: {message}." if name else f"{message}."
    return f"Setting {name} is {problem['input']!r}, expected {message.removeprefix('a valid ')}."


def _field_names(location: Sequence[str]) -> list[str]:
    section: Any = Config
    for part in location:
        section = section.model_fields[part].annotation
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []


def require_settings_of_model(config: Config, fitted: Config) -> None:
    """Refuse to apply a model with other settings than it was made with; only the evaluation is free.

    Raises
    ------
    UserError
        A setting of preprocessing or models differs.
    """
    for section in ("preprocessing", "models"):
        ours, theirs = (
            getattr(config, section).model_dump(mode="json"),
            getattr(fitted, section).model_dump(mode="json"),
        )
        different = changes(flat_settings(theirs, f"settings.{section}"), flat_settings(ours, f"settings.{section}"))
        if different:
            raise UserError(
                f"apply: settings of {section} differ from those the model was made with ({'; '.join(different[:3])}), "
                "expected the same. Leave them out: apply takes them from the model."
            )
