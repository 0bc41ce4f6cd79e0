"""Report of the benchmark: one self-contained page, and tables as CSV."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
from voxout.data_manifests.atomic_write import atomic_write
from voxout.data_manifests.errors import Failure
from voxout.evaluation.report.embedded_plots import embedded
from voxout.evaluation.report.html import write_page
from voxout.pipeline.workflow.records import versions

from . import protocol as protocol_module
from .digits import Digits
from .methods import BEST_ON_VALIDATION, KAPPA, METHODS
from .pictures import contact_sheet, heat_map, latents_plot
from .protocol import BATCH, PROTOCOLS, Unit, conditions_of
from .read_outs import FIXED_GAMMA, NU
from .runs import BenchmarkRun
from .summary import METRICS, Summary
from .training import LAST, TrainingSettings
from .work import SIMILAR_DIGITS

FILMED = ("ae", "sae", "svdd-hard", "ogae", "ogae-compactor", "ogae-standardised", "ogae-fixed")
"""Methods whose latents are shown in the report; if none of them ran, all methods are shown."""


@dataclass(frozen=True)
class TrainingLine:
    """Metrics of the latents of one method, averaged over its units."""

    title: str
    choice: str
    mse_validation: float
    kernel_mean: float
    latent_scale: float
    effective_rank: float
    collapsed: int
    units: int
    seconds: float


def write_benchmark(out: Path, digits: Digits, run: BenchmarkRun, failures: Sequence[Failure]) -> Summary:
    """Write ``index.html``, ``figures.csv``, ``differences.csv`` and ``cells.csv`` into `out`."""
    summary = Summary(run.results)
    for name, table in (
        ("cells", summary.cells),
        ("figures", summary.figures()),
        ("differences", summary.differences()),
    ):
        _write_table(out / f"{name}.csv", table)
    heat_maps = [heat_map(summary, protocol) for protocol in summary.protocols]
    latents = _latents_plots(run)
    for plot in (*heat_maps, *latents):
        plot.save(out / "figures")
    units = sorted({(r.unit.digit, r.unit.seed) for r in run.results})
    write_page(
        out / "index.html",
        f"{__package__}:page.html",
        styles=("report.css", f"{__package__}:page.css"),
        scripts=("report.js",),
        created=datetime.now(),
        digits=digits,
        summary=summary,
        metrics=METRICS,
        best_titles=[METHODS[name].title for name in BEST_ON_VALIDATION],
        heat_maps=[embedded(plot) for plot in heat_maps],
        latents=[embedded(plot) for plot in latents],
        sheet=contact_sheet(run.conditions, digits.conditions),
        trainings=_training_lines(run),
        failures=failures,
        n_digits=len({digit for digit, _ in units}),
        n_seeds=len({seed for _, seed in units}),
        trained_on={
            s: conditions_of(Unit(PROTOCOLS[1], 0, s), digits.conditions)[0] for s in sorted({s for _, s in units})
        },
        protocol_parts=_parts_of((protocol_module.__doc__ or "").split("\n\n", 1)[1]),
        settings=TrainingSettings(),
        constants={"nu": NU, "batch": BATCH, "last": LAST, "fixed_gamma": FIXED_GAMMA, "kappa": KAPPA},
        cpu_seconds=sum(r.seconds for r in run.results),
        versions=versions(),
    )
    return summary


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Write ``failures.csv`` with the failures and their reasons; no file without failures."""
    path.unlink(missing_ok=True)
    if failures:
        _write_table(path, pd.DataFrame([vars(failure) for failure in failures]))


def _parts_of(text: str) -> list[str | list[str]]:
    """Paragraphs and lists of a docstring, without markup."""
    parts: list[str | list[str]] = []
    for block in text.replace("``", "").strip().split("\n\n"):
        items = [" ".join(item.split()) for item in block.removeprefix("- ").split("\n- ")]
        parts.append(items if block.startswith("- ") else items[0])
    return parts


def _write_table(path: Path, table: pd.DataFrame) -> None:
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")


def _latents_plots(run: BenchmarkRun) -> list:
    plots = []
    for digit in sorted({digit for digit, _ in run.latents}):
        there = [name for name in METHODS if (digit, name) in run.latents]
        chosen = [name for name in there if name in FILMED] or there
        films = [(METHODS[name].title, run.latents[digit, name]) for name in chosen]
        plots.append(latents_plot(digit, SIMILAR_DIGITS[digit], films))
    return plots


def _training_lines(run: BenchmarkRun) -> list[TrainingLine]:
    lines = []
    for method in METHODS.values():
        results = [r for r in run.results if r.method == method.name]
        if not results or method.choice is None:
            continue
        choice = method.choice
        tried = ", ".join(f"{value:g}" for value in choice.tried)
        means = {name: float(np.mean([r.watched[name] for r in results])) for name in results[0].watched}
        lines.append(
            TrainingLine(
                title=method.title,
                choice=f"{choice.name} {choice.value:g} (of {tried})",
                collapsed=sum(r.collapsed for r in results),
                units=len(results),
                seconds=float(np.mean([r.seconds for r in results])),
                **means,
            )
        )
    return lines
