"""Base of all plots: light and dark themes, SVG for the page, SVG and PNG for publications.

Plots use matplotlib's object interface with the Agg and SVG canvases, without pyplot, global state or a display. The
colours follow Okabe and Ito and can be distinguished with any colour vision.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ...data_manifests.atomic_write import atomic_write

MOST_POINTS = 400
"""Maximum number of points of a line, about one per pixel."""
_WEB_FONTS = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Theme:
    """Colours of a plot, as hexadecimal codes."""

    ink: str
    muted: str
    grid: str
    blue: str
    orange: str
    green: str


LIGHT = Theme(ink="#1b2230", muted="#5b6575", grid="#dfe4ea", blue="#0072b2", orange="#d55e00", green="#008e68")
DARK = Theme(ink="#e8ecf2", muted="#9aa5b5", grid="#343d4b", blue="#56b4e9", orange="#f0913a", green="#2fc79a")


@dataclass(frozen=True)
class Plot:
    """Plot that can be drawn in either theme.

    Attributes
    ----------
    name : str
        File name without suffix.
    title, alt : str
        Title and alternative text.
    draw : callable
        Function that draws on an Axes in a Theme.
    """

    name: str
    title: str
    alt: str
    draw: Callable[[Axes, Theme], None]
    size_inch: tuple[float, float] = (4.3, 3.3)

    def svg(self, theme: Theme) -> bytes:
        """Return the SVG with a transparent background and system fonts."""
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            stream = io.BytesIO()
            self._figure(theme).savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        # Two decimals suffice for coordinates; text between tags is not shortened.
        short = re.sub(rb"<[^>]+>", lambda tag: re.sub(rb"(\d\.\d\d)\d+", rb"\1", tag[0]), stream.getvalue())
        return short.replace(b"'DejaVu Sans'", _WEB_FONTS.encode())

    def save(self, folder: Path) -> None:
        """Write ``<name>.svg`` and ``<name>.png`` for publication, with a white background."""
        folder.mkdir(parents=True, exist_ok=True)
        figure = self._figure(LIGHT)
        FigureCanvasAgg(figure)
        for suffix in ("svg", "png"):
            path = folder / f"{self.name}.{suffix}"
            with atomic_write(path) as temporary:
                figure.savefig(temporary, format=suffix, dpi=220, facecolor="white", metadata={_DATE[suffix]: None})

    def _figure(self, theme: Theme) -> Figure:
        figure = Figure(figsize=self.size_inch, layout="constrained")
        axes = figure.add_subplot()
        axes.set_facecolor("none")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(theme.muted)
        axes.tick_params(colors=theme.muted, labelsize=8.5, which="both")
        axes.grid(color=theme.grid, linewidth=0.7)
        axes.set_axisbelow(True)
        self.draw(axes, theme)
        axes.xaxis.label.set(color=theme.ink, fontsize=9.5)
        axes.yaxis.label.set(color=theme.ink, fontsize=9.5)
        legend = axes.get_legend()
        if legend is not None:
            legend.get_frame().set(alpha=0)
            for text in legend.get_texts():
                text.set(color=theme.ink, fontsize=8.5)
        return figure


_DATE = {"svg": "Date", "png": "Creation Time"}


def plain_log_ticks(axes: Axes, base: int = 10) -> None:
    """Logarithmic x axis with labels such as 0.1, 0.2, 0.5, 1 instead of powers of ten."""
    axes.set_xscale("log", base=base)
    low, high = axes.get_xlim()
    crowded = base != 10 or high > 200 * low
    axes.xaxis.set_major_locator(LogLocator(base, subs=(1.0,) if crowded else (1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a curve to at most `MOST_POINTS` points, evenly spaced along its length."""
    length = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    if len(x) <= MOST_POINTS or length[-1] == 0:
        return x, y
    kept = np.unique(np.searchsorted(length, np.linspace(0, length[-1], MOST_POINTS)))
    return x[kept], y[kept]


def averaged(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smooth a long noisy curve by averaging neighbouring points."""
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= MOST_POINTS // 2:
        return x, y
    starts = np.unique(np.linspace(0, len(x), MOST_POINTS // 2 + 1).astype(int)[:-1])
    sizes = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / sizes, np.add.reduceat(y, starts) / sizes
