"""Summary of results: means over digits and seeds with bootstrap intervals, and paired differences.

A bootstrap sample draws digits with replacement and seeds with replacement, and weights each (digit, seed) pair by the
product of both counts, as pairs with the same digit or seed are not independent.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from voxout.evaluation.metrics.bootstrap import Estimate, mean_over_subjects, resample_subjects

from .corruptions import CLEAN, CORRUPTIONS
from .methods import BEST_ON_VALIDATION, METHODS, READ_OUTS
from .results import Result

ALL = "mean"
"""Name for the mean over the conditions of a unit."""
DRAWS = 2000
METRICS = {"auroc": "AUROC", "average_precision": "Average precision"}
_WHY_NONE = "no result"


@dataclass(frozen=True)
class Line:
    """Read-out of a method; a row of the table."""

    method: str
    read_out: str

    @property
    def titles(self) -> tuple[str, str]:
        """Titles of the method and of the read-out."""
        return METHODS[self.method].title, READ_OUTS[self.read_out]

    @property
    def title(self) -> str:
        return ", ".join(self.titles)


@dataclass(frozen=True)
class Difference:
    """Difference first - second, paired by digit and seed.

    Attributes
    ----------
    protocol : str
    first, second : Line
    estimate : Estimate
        Of the mean AUROC over conditions.
    """

    protocol: str
    first: Line
    second: Line
    estimate: Estimate


OGAE = Line("ogae", "last-10")
OURS = (OGAE, *(Line(name, "last-10") for name in BEST_ON_VALIDATION))
_RIVALS = (
    Line("sae", "ocsvm"),
    Line("sae", "ocsvm-fixed"),
    Line("ae", "ocsvm"),
    Line("ae", "ocsvm-fixed"),
    Line("svdd-hard", "distance"),
    Line("svdd-soft", "distance"),
    Line("svdd-ae", "distance"),
    Line("svdd-vae", "distance"),
    Line("pixels-ocsvm", "pixels"),
)
_FACTORS = (
    Line("ogae-expander", "last-10"),
    Line("ogae-compactor", "last-10"),
    Line("ogae-full", "last-10"),
    Line("ogae-standardised", "last-10"),
    Line("ogae-fixed", "last-10"),
    Line("ogae-standardised-fixed", "last-10"),
    Line("ogae-standardised-compactor", "last-10"),
    Line("ogae-siamese", "last-10"),
    Line("ogae", "ocsvm"),
)

_GUIDANCE_ALONE = (
    (Line("ogae", "ocsvm"), Line("ae", "ocsvm")),
    (Line("ogae-compactor", "ocsvm"), Line("ae", "ocsvm")),
    (Line("ogae-fixed", "ocsvm"), Line("ae", "ocsvm-fixed")),
    (Line("ogae-siamese", "ocsvm"), Line("sae", "ocsvm")),
)


class Summary:
    """All metrics of a run.

    Parameters
    ----------
    results : iterable of Result

    Attributes
    ----------
    cells : DataFrame
        One row per (protocol, digit, seed, method, read_out, condition), with both metrics.
    lines : tuple of Line
        In the order of the table.
    """

    def __init__(self, results: Iterable[Result]):
        self.cells = pd.DataFrame(
            [
                (
                    r.unit.protocol,
                    r.unit.digit,
                    r.unit.seed,
                    r.method,
                    c.read_out,
                    c.condition,
                    c.auroc,
                    c.average_precision,
                )
                for r in results
                for c in r.cells
            ],
            columns=["protocol", "digit", "seed", "method", "read_out", "condition", *METRICS],
        )
        present = set(zip(self.cells["method"], self.cells["read_out"], strict=True))
        every = (Line(m.name, read_out) for m in METHODS.values() for read_out in m.read_outs)
        self.lines = tuple(line for line in every if (line.method, line.read_out) in present)
        self._digits = sorted(set(self.cells["digit"]))
        self._seeds = sorted(set(self.cells["seed"]))
        drawn_digits = resample_subjects(["digit"] * len(self._digits), DRAWS, seed=1)
        drawn_seeds = resample_subjects(["seed"] * len(self._seeds), DRAWS, seed=2)
        self._weights = (drawn_digits[:, :, None] * drawn_seeds[:, None, :]).reshape(1 + DRAWS, -1)
        self._tables = {
            metric: self.cells.pivot_table(
                index=["digit", "seed"], columns=["protocol", "method", "read_out", "condition"], values=metric
            ).reindex(pd.MultiIndex.from_product([self._digits, self._seeds]))
            for metric in METRICS
        }

    @property
    def protocols(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.cells["protocol"]))

    def conditions(self, protocol: str) -> tuple[str, ...]:
        there = set(self.cells["condition"][self.cells["protocol"] == protocol])
        return tuple(name for name in (CLEAN, *CORRUPTIONS) if name in there)

    def values(self, protocol: str, line: Line, condition: str = ALL, metric: str = "auroc") -> np.ndarray:
        """One value per (digit, seed), sorted by digit; NaN if missing."""
        table = self._tables[metric]
        key = (protocol, line.method, line.read_out)
        if key not in set(table.columns.droplevel(3)):
            return np.full(len(table), np.nan)
        own = table[key]
        if condition == ALL:
            return np.asarray(own.mean(axis=1))
        return np.asarray(own[condition]) if condition in own else np.full(len(own), np.nan)

    def estimate(self, protocol: str, line: Line, condition: str = ALL, metric: str = "auroc") -> Estimate:
        return self._mean(self.values(protocol, line, condition, metric))

    def difference(self, protocol: str, first: Line, second: Line) -> Difference:
        paired = self.values(protocol, first) - self.values(protocol, second)
        return Difference(protocol, first, second, self._mean(paired))

    def rivals(self) -> tuple[Difference, ...]:
        """Differences of OgAE and its best variants on validation digits to each of the other methods."""
        return self._computed_differences((own, rival) for own in OURS for rival in _RIVALS)

    def guidance_alone(self) -> tuple[Difference, ...]:
        """Differences of guided networks to the same networks without guidance, with the same read-out."""
        return self._computed_differences(_GUIDANCE_ALONE)

    def factors(self) -> tuple[Difference, ...]:
        """Differences of the variants of OgAE to OgAE."""
        return self._computed_differences((factor, OGAE) for factor in _FACTORS)

    def _computed_differences(self, pairs: Iterable[tuple[Line, Line]]) -> tuple[Difference, ...]:
        ran = [pair for pair in pairs if set(pair) <= set(self.lines)]
        return tuple(self.difference(protocol, *pair) for protocol in self.protocols for pair in ran)

    def _mean(self, values: np.ndarray) -> Estimate:
        known: Sequence[float | None] = [None if np.isnan(value) else float(value) for value in values]
        return mean_over_subjects(known, self._weights, why_none=_WHY_NONE).estimate()

    def figures(self) -> pd.DataFrame:
        """Table in long format: one row per (protocol, line, condition, metric)."""
        rows = [
            (protocol, line.method, line.read_out, condition, metric, *_numbers(estimate))
            for protocol in self.protocols
            for line in self.lines
            for condition in (ALL, *self.conditions(protocol))
            for metric in METRICS
            if (estimate := self.estimate(protocol, line, condition, metric)).value is not None
        ]
        columns = ["protocol", "method", "read_out", "condition", "metric", "mean", "ci_low", "ci_high", "n"]
        return pd.DataFrame(rows, columns=columns)

    def differences(self) -> pd.DataFrame:
        """Paired differences of the AUROC, one per row."""
        rows = [
            (d.protocol, d.first.method, d.first.read_out, d.second.method, d.second.read_out, *_numbers(d.estimate))
            for d in (*self.rivals(), *self.guidance_alone(), *self.factors())
        ]
        columns = ["protocol", "method", "read_out", "less_method", "less_read_out", "mean", "ci_low", "ci_high", "n"]
        return pd.DataFrame(rows, columns=columns)


def _numbers(estimate: Estimate) -> tuple[float | None, float | None, float | None, int]:
    return estimate.value, estimate.ci_low, estimate.ci_high, estimate.n
