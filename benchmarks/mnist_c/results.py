"""What one method came to on one digit, and the file that holds it: whole JSON, or not there."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from voxout.data_manifests.atomic_write import atomic_write
from voxout.pipeline.workflow.records import fingerprint

from .methods import METHODS
from .protocol import Unit
from .read_outs import NU
from .training import Recipe, TrainingSettings

_VERSION = 1
"""Goes up when a result of before would no longer be the result."""


@dataclass(frozen=True)
class Cell:
    """How well one read-out does under one condition."""

    read_out: str
    condition: str
    auroc: float
    average_precision: float


@dataclass(frozen=True)
class Result:
    """What one method came to in one unit.

    Attributes
    ----------
    unit : Unit
    method : str
    cells : tuple of Cell
    watched : dict of str to float
        Numbers of `watch.Watched`; empty for raw pixels.
    collapsed : bool
    seconds : float
        CPU time, without the warm-up.
    """

    unit: Unit
    method: str
    cells: tuple[Cell, ...]
    watched: dict[str, float]
    collapsed: bool
    seconds: float


@dataclass(frozen=True)
class Task:
    """One call of the engine.

    Attributes
    ----------
    unit : Unit
    part : str
        A method's name, or that of a warm-up.
    out : Path
        The file that will hold the result.
    identity : str
        Of all that decides the result: a file of another one is not it.
    """

    unit: Unit
    part: str
    out: Path
    identity: str

    @property
    def key(self) -> str:
        return f"{self.unit}, {self.part}"

    @property
    def latents(self) -> Path:
        """Pictures of the codes over training: ``shares``, ``points`` (F, N, 2) and ``is_other`` (N,)."""
        return self.out.with_suffix(".latents.npz")


def method_task(out: Path, data: str, unit: Unit, method: str) -> Task:
    """One method in one unit of the run in folder `out`, on digits of fingerprint `data`."""
    recipe = METHODS[method].recipe
    identity = _identity(data, unit, method, described(recipe) if recipe else None)
    return Task(unit, method, _folder(out, unit) / f"{method}.json", identity)


def warm_up_task(out: Path, data: str, unit: Unit, *, variational: bool) -> Task:
    """The warm-up of one unit; its settings are in the name of its file."""
    part = "variational-warm-up" if variational else "warm-up"
    identity = _identity(data, unit, part, None)
    return Task(unit, part, _folder(out, unit) / f"{part}-{identity}.safetensors", identity)


def _folder(out: Path, unit: Unit) -> Path:
    return out / "results" / unit.protocol / f"digit-{unit.digit}" / f"seed-{unit.seed}"


def described(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON values."""
    terms = [{"term": type(term).__name__} | {k: _name(v) for k, v in vars(term).items()} for term in recipe.terms]
    return {k: v for k, v in vars(recipe).items() if k != "terms"} | {"terms": terms}


def _name(value: Any) -> Any:
    return value.__name__ if callable(value) else value


def _identity(data: str, unit: Unit, part: str, recipe: dict[str, Any] | None) -> str:
    return fingerprint([_VERSION, data, asdict(unit), part, recipe, NU, asdict(TrainingSettings())])


def write_result(task: Task, result: Result) -> None:
    content = asdict(result) | {"identity": task.identity}
    with atomic_write(task.out) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_result(task: Task) -> Result | None:
    """None where there is none, or one of other settings or other digits."""
    try:
        content = json.loads(task.out.read_text(encoding="utf-8"))
        if content.pop("identity") != task.identity:
            return None
        content["cells"] = tuple(Cell(**cell) for cell in content["cells"])
        return Result(**{**content, "unit": Unit(**content["unit"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
