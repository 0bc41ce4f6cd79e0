"""Choice of the settings of `python -m benchmarks.mnist_c` on normal validation digits only. Prints the tables.

    python -m benchmarks.mnist_c.choose_settings --data mnist10k.npz [--digits 1,3,4,8] [--seed 100] [--explore]

Metrics of each candidate value, on validation digits (10 % of the normal ones):

- made: AUROC of normal validation digits against synthetic anomalies made of them: a piece of one pasted into another
  (cut-paste), two superimposed, quadrants exchanged. Mean over the three kinds, the one-class read-outs (with gamma
  "scale", if there are two) and the digits. The value with the highest AUROC is chosen. Other classes are not used.
- outside: fraction of the validation digits that are outliers of the one-class SVM on the latents of the training
  digits; the target is nu.
- mse, k, rank, scale: reconstruction error; mean kernel value (gamma "scale") between latents; effective rank of the
  latents; root mean square of the latents about their mean.

The seed differs from those of the benchmark. `--explore` varies nu, gamma, batch size and schedule of OgAE.
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from voxout.models.ocsvm.voxelwise import fit_detectors

from . import read_outs
from .digits import Digits, read_digits
from .methods import METHODS
from .objectives import Guidance, expander_only, full, schedule
from .protocol import Unit, split
from .scores import area_under_roc
from .training import Recipe, TrainingSettings, train, warm_up
from .watch import monitor


def made_anomalies(images: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Three kinds of synthetic anomalies from normal digits (N, 28, 28)."""
    random = np.random.default_rng((seed, 28))
    others = images[np.roll(random.permutation(len(images)), 1)]
    pasted = images.copy()
    for number in range(len(images)):
        (from_row, from_column), (row, column) = random.integers(4, 15, (2, 2))
        piece = others[number, from_row : from_row + 10, from_column : from_column + 10]
        pasted[number, row : row + 10, column : column + 10] = piece
    return {
        "cut-paste": pasted,
        "superimposed": np.maximum(images, np.roll(images, 1, axis=0)),
        "quadrants": np.roll(images, (14, 14), axis=(1, 2)),
    }


@dataclass(frozen=True)
class Row:
    made: float
    outside: float
    mse: float
    kernel: float
    rank: float
    scale: float


class Bench:
    """Normal digits of several classes, with cached warm-ups."""

    def __init__(self, digits: Digits, chosen: list[int], seed: int):
        self._seed, self._warm = seed, {}
        self._images = []
        for digit in chosen:
            part = split(digits, Unit("clean", digit, seed))
            train_images, validation = (digits.images[rows] / np.float32(255) for rows in (part.train, part.validation))
            made = {name: _tensor(a) for name, a in made_anomalies(validation, seed).items()}
            self._images.append((_tensor(train_images), _tensor(validation), made))

    def row(self, recipe: Recipe, outs: tuple[str, ...], settings: TrainingSettings) -> Row:
        rows = [self._one(number, recipe, outs, settings) for number in range(len(self._images))]
        return Row(*np.mean([list(vars(row).values()) for row in rows], axis=0))

    def _one(self, number: int, recipe: Recipe, outs: tuple[str, ...], settings: TrainingSettings) -> Row:
        images, validation, made = self._images[number]
        key = number, recipe.variational, settings
        if key not in self._warm:
            self._warm[key] = warm_up(images, settings, variational=recipe.variational, seed=self._seed)
        trained = train(recipe, self._warm[key], images, settings, seed=self._seed)
        scorer = read_outs.NetworkScorer.fit(trained, recipe, outs, images)
        normal = scorer.score(validation)
        areas = []
        for anomalies in made.values():
            scores = scorer.score(anomalies)
            areas += [area_under_roc(np.concatenate([normal[o], scores[o]]), len(normal[o])) for o in outs]
        monitored = monitor(trained.model, images, validation)
        latents = read_outs.encode(trained.model, images).numpy()[:, None]
        field = fit_detectors(latents, nu=read_outs.NU, gamma="scale", jobs=1)
        decisions = field.decision_function(read_outs.encode(trained.model, validation).numpy()[:, None], jobs=1)
        return Row(
            float(np.mean(areas)), float((decisions < 0).mean()), monitored.mse_validation, monitored.kernel_mean,
            monitored.effective_rank, monitored.latent_scale,
        )  # fmt: skip


def _tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images, np.float32)).unsqueeze(1)


def explored() -> Iterator[tuple[str, Recipe, TrainingSettings]]:
    """OgAE with one setting changed at a time."""
    base, settings = METHODS["ogae"].recipe, TrainingSettings()
    assert base is not None
    (guidance,) = base.terms
    assert isinstance(guidance, Guidance)
    changes = [("as chosen", {})]
    changes += [(f"nu {nu:g}", {"nu": nu}) for nu in (0.03, 0.3, 0.5)]
    changes += [(f"gamma {gamma:g}", {"gamma": gamma}) for gamma in (0.001, 0.01, 0.1)]
    changes += [(f"routes {r.__name__}", {"routes": r}) for r in (expander_only, full, schedule)]
    changes += [("standardised", {"standardised": True})]
    for name, change in changes:
        yield name, replace(base, terms=(replace(guidance, **change),)), settings
    for batch in (32, 128, 256):
        yield f"batch {batch}", base, replace(settings, batch=batch)
    yield "twice the steps", base, replace(settings, steps=2 * settings.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="as for python -m benchmarks.mnist_c")
    parser.add_argument("--digits", default="1,3,4,8")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--methods", help="methods to include, separated by commas")
    parser.add_argument("--explore", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(read_digits(options.data), [int(d) for d in options.digits.split(",")], options.seed)
    head = f"{'':29}{'':34}{'made':>7}{'outside':>9}{'mse':>9}{'k':>8}{'rank':>7}{'scale':>9}"

    def show(name: str, tried: str, row: Row, mark: str = "") -> None:
        print(
            f"{name:29}{tried:34}{row.made:7.3f}{row.outside:9.3f}{row.mse:9.4f}{row.kernel:8.3f}{row.rank:7.1f}"
            f"{row.scale:9.3g} {mark}",
            flush=True,
        )

    print(head, flush=True)
    if options.explore:
        for name, recipe, settings in explored():
            show("ogae", name, bench.row(recipe, ("last-10", "ocsvm"), settings))
        return
    for method in METHODS.values():
        if method.choice is None or (options.methods and method.name not in options.methods.split(",")):
            continue
        one_class = tuple(name for name in method.read_outs if name not in ("reconstruction", "ocsvm-fixed"))
        rows = [bench.row(method.choice.recipe(v), one_class, TrainingSettings()) for v in method.choice.tried]
        best = max(rows, key=lambda row: row.made)
        for value, row in zip(method.choice.tried, rows, strict=True):
            show(method.name, f"{method.choice.name} {value:g}", row, "<- best" if row is best else "")


if __name__ == "__main__":
    main()
