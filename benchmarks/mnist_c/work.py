"""Tasks of the worker processes: a warm-up, or one method in one unit from training to metrics."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from voxout.data_manifests.atomic_write import atomic_write
from voxout.data_manifests.errors import UserError

from .conditions import Conditions
from .methods import METHODS, fit_pixels
from .networks import AutoEncoder
from .protocol import Split, Unit
from .read_outs import NetworkScorer
from .results import Cell, Result, Task, write_result
from .scores import both_metrics
from .training import Recipe, TrainingSettings, train, warm_up
from .watch import LatentFilm, LatentMetrics, flattened, monitor

SIMILAR_DIGITS = {0: 6, 1: 7, 2: 3, 3: 5, 4: 9, 5: 3, 6: 0, 7: 9, 8: 3, 9: 4}
"""A similar digit for each digit, for the figures of the latents."""
_FILMED = 60


@dataclass(frozen=True, eq=False)
class UnitImages:
    """Images of a unit, (N, 1, 28, 28) in [0, 1]; `test` contains all test conditions one after the other."""

    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor

    @classmethod
    def of(cls, given: Split, conditions: Conditions) -> "UnitImages":
        tests = [conditions.images(name, given.test) for name in given.test_conditions]
        return cls(
            _tensor(conditions.images_under(given.train_conditions, given.train)),
            _tensor(conditions.images_under(given.validation_conditions, given.validation)),
            _tensor(np.concatenate(tests)),
        )


def make_warm_up(task: Task, given: Split, conditions: Path) -> None:
    """Train the warm-up of a unit and write its weights."""
    images = UnitImages.of(given, Conditions.open(conditions)).train
    variational = task.part.startswith("variational")
    model = warm_up(images, TrainingSettings(), variational=variational, seed=_seed(task.unit))
    with atomic_write(task.out) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary)


def make_result(task: Task, warm: Task | None, given: Split, conditions: Path) -> None:
    """Fit one method on the normal digits of a unit, score the test digits, and write the metrics.

    Parameters
    ----------
    task : Task
    warm : Task or None
        Warm-up of the network.
    given : Split
    conditions : Path
        For `Conditions.open`.
    """
    began = time.process_time()
    method, opened = METHODS[task.part], Conditions.open(conditions)
    images = UnitImages.of(given, opened)
    metrics: LatentMetrics | None = None
    if method.recipe is None:
        scores = {"pixels": fit_pixels(method.name, images.train.numpy(), task.unit.seed)(images.test.numpy())}
    else:
        assert warm is not None
        film = _film(task.unit, given, images, opened)
        scorer, metrics = _fit_network(method.recipe, method.read_outs, warm, images, film)
        scores = scorer.score(images.test)
        if film is not None:
            _write_film(task.latents, film)
    cells = []
    for read_out, values in scores.items():
        by_condition = values.reshape(len(given.test_conditions), len(given.test))
        for condition, some in zip(given.test_conditions, by_condition, strict=True):
            cells.append(Cell(read_out, condition, *both_metrics(some, given.anomalous)))
    numbers, collapsed = (asdict(metrics), metrics.collapsed) if metrics else ({}, False)
    seconds = round(time.process_time() - began, 2)
    write_result(task, Result(task.unit, task.part, tuple(cells), numbers, collapsed, seconds))


def _fit_network(
    recipe: Recipe, read_outs: tuple[str, ...], warm: Task, images: UnitImages, film: LatentFilm | None
) -> tuple[NetworkScorer, LatentMetrics]:
    if not warm.out.is_file():
        raise UserError(
            f"its {warm.part} is missing, expected a file of weights. See the reason above, and run the command again."
        )
    model = AutoEncoder(variational=recipe.variational)
    try:
        model.load_state_dict(load_file(warm.out))
    except (OSError, RuntimeError, SafetensorError) as error:
        warm.out.unlink()
        raise UserError(
            f"its {warm.part} is damaged, expected a file of weights. It was deleted; run the command again."
        ) from error
    trained = train(recipe, model, images.train, TrainingSettings(), seed=_seed(warm.unit), watch=film)
    metrics = monitor(trained.model, images.train, images.validation)
    return NetworkScorer.fit(trained, recipe, read_outs, images.train), metrics


def _film(unit: Unit, given: Split, images: UnitImages, conditions: Conditions) -> LatentFilm | None:
    """Record the normal digit and its similar digit, for seed 0 of the clean protocol only."""
    if unit.seed != 0 or unit.protocol != "clean":
        return None
    is_other = conditions.labels_of(given.test) == SIMILAR_DIGITS[unit.digit]
    shown = np.concatenate([np.flatnonzero(~given.anomalous)[:_FILMED], np.flatnonzero(is_other)])
    # The first condition is clean.
    return LatentFilm(images.test[torch.from_numpy(shown)], is_other[shown])


def _write_film(path: Path, film: LatentFilm) -> None:
    points = flattened(film.frames).astype(np.float32)
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, shares=np.array(film.shares), points=points, is_other=film.is_other)


def _tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).float().div_(255).unsqueeze(1)


def _seed(unit: Unit) -> int:
    """Seed of the initial weights and batches, equal for all methods of a unit and for both protocols."""
    return 1000 * unit.seed + 10 * unit.digit
