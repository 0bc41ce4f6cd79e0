"""Figures of the report: heat map, latents during training, contact sheet of the corruptions."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from PIL import Image
from voxout.evaluation.figures.plot import Plot, Theme
from voxout.evaluation.report.html import data_uri

from .conditions import Conditions
from .corruptions import CLEAN
from .summary import ALL, Summary

_LOW, _HIGH = 0.4, 1.0


def heat_map(summary: Summary, protocol: str) -> Plot:
    """Heat map of the AUROC of every read-out under every condition."""
    conditions = (ALL, *summary.conditions(protocol))
    table = np.array(
        [
            [np.nan if (value := summary.estimate(protocol, line, c).value) is None else value for c in conditions]
            for line in summary.lines
        ]
    )

    def draw(axes: Axes, theme: Theme) -> None:
        axes.grid(False)
        colours = colormaps["cividis"]
        axes.imshow(table, cmap=colours, vmin=_LOW, vmax=_HIGH, aspect="auto")
        axes.axvline(0.5, color=theme.ink, linewidth=1.5)
        for (row, column), value in np.ndenumerate(table):
            if np.isfinite(value):
                dark = (value - _LOW) / (_HIGH - _LOW) < 0.55
                text = f"{value:.2f}".lstrip("0")
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
        axes.set_xticks(range(len(conditions)), [c.replace("_", " ") for c in conditions], rotation=45, ha="left")
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(summary.lines)), [line.title for line in summary.lines])
        axes.tick_params(length=0, labelsize=8)
        for side in axes.spines.values():
            side.set_visible(False)

    size = (3.2 + 0.47 * len(conditions), 1.0 + 0.24 * len(summary.lines))
    alt = f"AUROC of {len(summary.lines)} read-outs under {len(conditions) - 1} conditions; values in figures.csv."
    return Plot(f"heat-map-{protocol}", f"AUROC, {protocol}", alt, draw, size)


def latents_plot(digit: int, other: int, films: Sequence[tuple[str, Path]]) -> Plot:
    """Latents of two digits during training, one row per method, on the two principal axes at the end of training."""
    shown = []
    for title, path in films:
        with np.load(path, allow_pickle=False) as film:
            shown.append((title, film["shares"], film["points"], film["is_other"]))

    def draw(axes: Axes, theme: Theme) -> None:
        axes.grid(False)
        for row, (title, shares, points, is_other) in enumerate(shown):
            for column, (share, frame) in enumerate(zip(shares, points, strict=True)):
                place = np.clip(frame, -3.4, 3.4) / 8 + (column, -row)
                for chosen, colour, mark in ((~is_other, theme.blue, "o"), (is_other, theme.orange, "^")):
                    # Rasterised, as thousands of vector marks per figure would make the report very large.
                    dots = axes.scatter(*place[chosen].T, s=7, color=colour, marker=mark, alpha=0.75, linewidths=0)
                    dots.set_rasterized(True)
                if row == 0:
                    axes.text(column, 0.56, f"{share:.0%}", ha="center", fontsize=8.5, color=theme.muted)
            axes.text(-0.6, -row, title, ha="right", va="center", fontsize=8.5, color=theme.ink)
        columns = max(len(shares) for _, shares, _, _ in shown)
        for column in range(columns + 1):
            axes.axvline(column - 0.5, color=theme.grid, linewidth=0.7)
        for row in range(len(shown) + 1):
            axes.axhline(0.5 - row, color=theme.grid, linewidth=0.7)
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(0.5 - len(shown), 0.5), xticks=[], yticks=[])
        for side in axes.spines.values():
            side.set_visible(False)

    alt = f"Latents of the normal digit {digit} and the anomalous {other} at {len(shown[0][1])} times during training."
    title = f"normal digit {digit} (blue) and anomalous digit {other} (orange)"
    return Plot(f"latents-{digit}", title, alt, draw, (9.5, 0.5 + 1.25 * len(shown)))


@dataclass(frozen=True)
class Strip:
    """Digits under one condition, as a picture."""

    name: str
    picture: str


def contact_sheet(conditions: Conditions, names: Sequence[str]) -> list[Strip]:
    """First digit of each class under every condition."""
    rows = np.array([conditions.rows[np.flatnonzero(conditions.labels == c)[0]] for c in np.unique(conditions.labels)])
    strips = []
    for name in (CLEAN, *(n for n in names if n != CLEAN)):
        picture = np.concatenate([np.pad(image, 2) for image in conditions.images(name, rows)], axis=1)
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, format="PNG", optimize=True)
        strips.append(Strip(name.replace("_", " "), data_uri(stream.getvalue(), "image/png")))
    return strips
