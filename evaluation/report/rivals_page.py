"""HTML page that sets several methods side by side: table, lesion groups, FROC curves, maps of the same patients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from ..figures.plot import Plot, Theme, plain_log_ticks, thinned
from ..figures.slices import Head, Plane
from ..metrics.bootstrap import Estimate
from ..metrics.lesion_metrics import froc_curve
from ..scoring.metric_labels import is_oracle
from ..scoring.side_by_side import COLUMNS, LABELS, Row, SideBySide, differences_in_words
from .embedded_plots import embedded
from .html import picture_uri, write_page

_TILE_PX = 150
_PICTURE_BYTES = 14_000
_HIGHEST_RATE = 16.0
_LINES = "solid", "dashed", "dotted", "dashdot", (0, (5, 1, 1, 1, 1, 1))
_PLANES: tuple[Plane, ...] = ("axial", "coronal")
_SHOWN = (
    "average_precision",
    "average_precision_per_subject_mean",
    "auroc",
    "auroc_fpr30_normalised",
    "aupro_fpr30",
    "found_at_1",
    "found_at_4",
)
"""Columns of the table of differences."""


@dataclass(frozen=True, eq=False)
class PatientMaps:
    """Maps of one patient by several methods.

    Attributes
    ----------
    key, why : str
        Why this patient was chosen.
    heads : mapping from method to Head
        Scan and map; all on one grid.
    """

    key: str
    why: str
    heads: Mapping[str, Head]


@dataclass(frozen=True, eq=False)
class RivalsReport:
    """Content of the page.

    Attributes
    ----------
    created : datetime
    table : SideBySide
    patients : sequence of PatientMaps
    on_edits : mapping from method to mapping from form to number
        AUROC up to a false-positive rate of 0.3 on edited copies of controls, by which the forms were chosen.
    costs : mapping from method to str
    failures : sequence of str
        Sentences about methods and subjects that failed.
    settings : mapping from name to str
        Shown at the top.
    versions : mapping from package to version
    """

    created: datetime
    table: SideBySide
    patients: Sequence[PatientMaps]
    on_edits: Mapping[str, Mapping[str, float]]
    costs: Mapping[str, str]
    failures: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """Value in a table of the page; `side` is how a difference from the reference lies to 0."""

    estimate: Estimate | None
    side: str = ""


def write_rivals_page(path: Path, report: RivalsReport) -> Path:
    """Write the page atomically.

    Parameters
    ----------
    path : Path
        Path of the HTML file.
    report : RivalsReport

    Returns
    -------
    Path
        Path of the page.
    """
    table = report.table
    columns = [name for name in COLUMNS if any(_value(row, name) is not None for row in table.rows)]
    compared = [name for name in _SHOWN if name in columns]
    others = [row for row in table.rows if row.contender.name != table.reference]
    plot = froc_of_all(table)
    return write_page(
        path,
        "rivals.html",
        styles=("report.css", "rivals.css"),
        scripts=("report.js",),
        report=report,
        table=table,
        sentences=differences_in_words(table),
        columns=[(name, LABELS[name], is_oracle(name)) for name in columns],
        compared=[(name, LABELS[name]) for name in compared],
        values=[(row.contender, [Cell(row.estimates.get(name)) for name in columns]) for row in table.rows],
        differences=[(row.contender, [_difference(row, name) for name in compared]) for row in others],
        every_form=[(row.contender, [Cell(row.estimates.get(name)) for name in compared]) for row in table.every_form],
        groups=_group_tables(table),
        plots=[embedded(plot)] if plot else [],
        patients=[(patient.key, patient.why, _pictures(patient, table)) for patient in report.patients],
    )


def froc_of_all(table: SideBySide) -> Plot | None:
    """FROC curves of all methods in one plot; None without lesions."""
    curves = []
    for row in table.rows:
        known = [s for s in row.contender.subjects if s.truth_known and s.key in table.subjects]
        if not any(s.lesions for s in known):
            return None
        most = int(_HIGHEST_RATE * len(known)) + 1
        thresholds = [s.clusters.false_cluster_thresholds[:most] for s in known]
        rates, found = froc_curve(thresholds, [s.found_at for s in known])
        shown = rates <= _HIGHEST_RATE
        curves.append((row.contender.name, *thinned(rates[shown], found[shown])))

    def draw(axes: Axes, theme: Theme) -> None:
        colours = theme.orange, theme.green, theme.muted, theme.ink
        others = 0
        for name, rates, found in curves:
            if name == table.reference:
                axes.plot(rates, found, color=theme.blue, linewidth=2.6, label=name, zorder=3)
                continue
            line, colour = _LINES[others // len(colours) % len(_LINES)], colours[others % len(colours)]
            axes.plot(rates, found, color=colour, linewidth=1.2, linestyle=line, label=name)
            others += 1
        axes.set(xlabel="False clusters per subject", ylabel="Lesions found", xlim=(0.125, 16), ylim=(0, 1.01))
        plain_log_ticks(axes, base=2)
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)

    alt = f"Lesion sensitivity against false clusters per subject for {len(curves)} methods."
    return Plot("froc-of-all", "Lesions found (FROC)", alt, draw, size_inch=(8.2, 4.2))


def _value(row: Row, name: str) -> float | None:
    return row.estimates[name].value if name in row.measures else None


def _difference(row: Row, name: str) -> Cell:
    estimate = row.differences.get(name)
    if estimate is None or estimate.ci_low is None or estimate.ci_high is None:
        return Cell(estimate)
    return Cell(estimate, "higher" if estimate.ci_low > 0 else "lower" if estimate.ci_high < 0 else "")


def _group_tables(table: SideBySide) -> list[tuple[str, list[str], list[tuple[str, list[Estimate | None]]]]]:
    """For each column of the groups: its name, its groups with their number of lesions, and a line for each method."""
    tables = []
    for by in dict.fromkeys(row.by for row in table.groups):
        own = [row for row in table.groups if row.by == by]
        counts = {row.group: row.found.n for row in own}
        cells = {(row.method, row.group): row.found for row in own}
        lines = [
            (row.contender.name, [cells.get((row.contender.name, group)) for group in counts]) for row in table.rows
        ]
        tables.append((by, [f"{group} (n = {n})" for group, n in counts.items()], lines))
    return tables


def _pictures(patient: PatientMaps, table: SideBySide) -> list[tuple[str, str]]:
    """Name and picture of each method: the slices with most lesion, the map over the scan. First the scan alone."""
    pictures = []
    for row in table.rows:
        head = patient.heads.get(row.contender.name)
        if head is None:
            continue
        tiles = [head.tile(plane, most_lesion(head, plane), _TILE_PX) for plane in _PLANES]
        if not pictures:
            pictures.append(("scan", _joined([scan for scan, _ in tiles])))
        pictures.append((row.contender.name, _joined([map for _, map in tiles])))
    return pictures


def most_lesion(head: Head, plane: Plane) -> int:
    """Index of the slice with most lesion; without a lesion, the middle one."""
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    counts = head.lesion.sum(axis=tuple(other for other in range(3) if other != axis))
    return int(counts.argmax()) if counts.any() else head.lesion.shape[axis] // 2


def _joined(tiles: Sequence[np.ndarray]) -> str:
    picture = np.concatenate(tiles, axis=1)
    return picture_uri((np.clip(picture, 0, 1) * 255).round().astype(np.uint8), _PICTURE_BYTES)
