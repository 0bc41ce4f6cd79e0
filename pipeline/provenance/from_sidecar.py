"""Description of a map that lies outside of an output folder, from the JSON file beside it."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...data_manifests.cohort.output_paths import beside
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.volume import read_description
from ...data_manifests.open_file import file_hash
from ...data_manifests.typed_json import load_json
from ..tools.result_file import MARK
from .description import Description, Input, no_record_of


class _Model(BaseModel):
    Fit: str = ""
    AdaptedTo: str = ""
    LearntFrom: str = ""


class _Matched(BaseModel):
    Controls: int
    EffectiveNumber: float


class _Software(BaseModel):
    Name: str = ""
    Commit: str = ""


class _Sidecar(BaseModel):
    """What the JSON file of a map says; those of earlier versions say less."""

    model_config = ConfigDict(strict=True)

    GeneratedBy: list[_Software]
    Description: str
    Model: _Model
    Command: str | None = None
    Created: str = ""
    Machine: str = ""
    Seed: int | None = None
    InputHashes: dict[str, str] = Field(default_factory=dict)
    Versions: dict[str, str] = Field(default_factory=dict)
    ThresholdSetOn: str = ""
    Threshold: float | None = None
    MatchedControls: _Matched | None = None


def what_it_holds(path: Path) -> str:
    """Return what the JSON file beside a file says that it holds; empty if there is none."""
    try:
        return _read(_sidecar_of(path)).Description
    except (OSError, ValueError):
        return ""


def of_lone_map(path: Path) -> Description:
    """Describe a map, the files beside it, or a folder with maps.

    Raises
    ------
    UserError
        voxout did not make it, or the JSON file is damaged.
    """
    if path.is_dir():
        found = [each for each in sorted(path.glob("*_desc-anomaly_zmap.json")) if _is_ours(each)]
        if not found:
            raise no_record_of(path)
        return Description(name=path.name, holds="anomaly maps", parts=[_described(each, each) for each in found])
    sidecar = _sidecar_of(path)
    if not sidecar.is_file():
        if path.name.endswith((".nii", ".nii.gz")) and _description(path) == MARK:
            return Description(path.name, command=MARK, notes=["its header keeps no more than the name of the command"])
        raise no_record_of(path)
    return _described(path, sidecar)


def _described(path: Path, sidecar: Path) -> Description:
    try:
        values = load_json(sidecar)
    except (OSError, ValueError) as error:
        raise _damaged(sidecar) from error
    if not _names_voxout(values):
        raise no_record_of(path)
    try:
        found = _Sidecar.model_validate(values)
    except ValidationError as error:
        raise _damaged(sidecar) from error
    threshold = "none" if found.Threshold is None else f"{found.Threshold:.3g}"
    inputs = [Input(name, f"hash {value}") for name, value in found.InputHashes.items()]
    notes = [f"threshold {threshold}, set on {found.ThresholdSetOn}"] if found.ThresholdSetOn else []
    if found.Model.AdaptedTo:
        notes.append(f"the model was adapted to {found.Model.AdaptedTo}")
    if found.Model.LearntFrom:
        notes.append(f"how its scorers are combined was learnt from {found.Model.LearntFrom}")
    if (matched := found.MatchedControls) is not None:
        notes.append(
            f"the model was fitted for this subject: {matched.Controls} controls count as {matched.EffectiveNumber:g}"
        )
    notes.append("settings and duration are in the records of the output folder that it was copied from, if any")
    return Description(
        name=path.name,
        holds=found.Description,
        command=found.Command or "",
        began=found.Created,
        machine=found.Machine,
        seed=found.Seed,
        inputs=[*inputs, Input("the detectors", f"hash {found.Model.Fit}")],
        versions=found.Versions,
        commit=found.GeneratedBy[0].Commit,
        size=path.stat().st_size,
        sha256=file_hash(path),
        notes=notes,
    )


def _read(path: Path) -> _Sidecar:
    return _Sidecar.model_validate(load_json(path))


def _is_ours(path: Path) -> bool:
    try:
        return _names_voxout(load_json(path))
    except (OSError, ValueError):
        return False


def _names_voxout(values: Any) -> bool:
    made_by = values.get("GeneratedBy") if isinstance(values, dict) else None
    first = made_by[0] if isinstance(made_by, list) and made_by else None
    return isinstance(first, dict) and first.get("Name") == "voxout"


def _sidecar_of(path: Path) -> Path:
    """Return the JSON file of a map, of its table of clusters (.tsv), or of the table of a subject (.csv)."""
    if path.name.endswith("_clusters.csv"):
        key = path.name.removesuffix("_clusters.csv")
        return next(iter(sorted(path.parent.glob(f"{key}_*_desc-anomaly_zmap.json"))), path.with_suffix(".json"))
    return beside(path, ".json") if path.name.endswith(".nii.gz") else path.with_suffix(".json")


def _description(path: Path) -> str:
    try:
        return read_description(path)
    except UserError:
        return ""


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{private(path)}: is damaged, expected what voxout wrote beside a map. Copy the map again, with its JSON file."
    )
