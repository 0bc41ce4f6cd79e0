"""Results of one method in one unit, and their JSON files, which are written atomically."""

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
"""Increase it if a change invalidates earlier results."""


@dataclass(frozen=True)
class Cell:
    """Metrics of one read-out under one condition."""

    read_out: str
    condition: str
    auroc: float
    average_precision: float


@dataclass(frozen=True)
class Result:
    """Result of one method in one unit.

    Attributes
    ----------
    unit : Unit
    method : str
    cells : tuple of Cell
    watched : dict of str to float
        Metrics of `watch.LatentMetrics`; empty for raw pixels.
    collapsed : bool
    seconds : float
        CPU time without the warm-up.
    """

    unit: Unit
    method: str
    cells: tuple[Cell, ...]
    watched: dict[str, float]
    collapsed: bool
    seconds: float


@dataclass(frozen=True)
class Task:
    """Task for the engine.

    Attributes
    ----------
    unit : Unit
    part : str
        Name of the method or warm-up.
    out : Path
        File of the result.
    identity : str
        Hash of everything that determines the result; a file with another hash is ignored.
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
        """File of the latents during training: ``shares``, ``points`` (F, N, 2) and ``is_other`` (N,)."""
        return self.out.with_suffix(".latents.npz")


def method_task(out: Path, data: str, unit: Unit, method: str) -> Task:
    """Task for one method in one unit, for the run in folder `out` on digits with the fingerprint `data`."""
    recipe = METHODS[method].recipe
    identity = _identity(data, unit, method, described(recipe) if recipe else None)
    return Task(unit, method, _folder(out, unit) / f"{method}.json", identity)


def warm_up_task(out: Path, data: str, unit: Unit, *, variational: bool) -> Task:
    """Task for the warm-up of one unit; the file name contains a hash of its settings."""
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
    """Read a result; None if it does not exist or has other settings or digits."""
    try:
        content = json.loads(task.out.read_text(encoding="utf-8"))
        if content.pop("identity") != task.identity:
            return None
        content["cells"] = tuple(Cell(**cell) for cell in content["cells"])
        return Result(**{**content, "unit": Unit(**content["unit"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
