"""Plots of a certificate: curves of all kinds, iso-detection curves of each kind, agreement with other heads."""

import numpy as np
from matplotlib.axes import Axes

from ...data_manifests.synthetic.lesion_kinds import KINDS
from ..figures.plot import Plot, Theme, plain_log_ticks
from ..metrics.bootstrap import percentile_interval
from .agreement import FEWEST, WITHIN
from .certificate import REFERENCE, Certificate
from .detection_curve import DetectionCurve

_SIZES = 80
_ISO = {0.2: (0, (1, 2)), 0.5: "-", 0.8: (0, (5, 2))}
"""Line style by share found."""


def overview_plot(certificate: Certificate) -> Plot:
    """Probability of every kind by size, at its usual strength, with the interval of one kind."""

    def draw(axes: Axes, theme: Theme) -> None:
        colours = (theme.blue, theme.orange, theme.green, theme.ink, theme.muted)
        for colour, (name, curve) in zip(colours, certificate.curves.items(), strict=False):
            sizes = _sizes(curve)
            drawn = curve.probability(sizes, np.full(len(sizes), KINDS[name].usual))
            if name == REFERENCE and certificate.n_participants >= 3:
                band = [percentile_interval(values) for values in drawn[1:].T]
                low, high = (np.array([pair[end] for pair in band], dtype=np.float64) for end in (0, 1))
                axes.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(sizes, drawn[0], color=colour, linewidth=2, label=KINDS[name].title)
        axes.axhline(0.5, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
        axes.set(xlabel="Size in the head (ml)", ylabel="Probability of being found", ylim=(0, 1.01))
        plain_log_ticks(axes)
        _legend_above(axes)

    limits = (certificate.limit_of(name) for name in certificate.curves)
    halves = "; ".join(f"{KINDS[li.kind].title}: half found from {li.text}" for li in limits if li is not None)
    alt = f"Probability of being found by size, at the usual strength of each kind. {halves}."
    return Plot("detection-by-size", "Found, by size", alt, draw)


def iso_plot(certificate: Certificate, name: str) -> Plot:
    """Size and strength of which 20, 50 and 80 % are found, over the lesions that were painted."""
    kind, curve = KINDS[name], certificate.curves[name]
    own = [lesion for lesion in certificate.lesions if lesion.kind == name]
    ml, strength = np.array([le.ml for le in own]), np.array([le.strength for le in own])
    found = np.array([le.found for le in own])
    strengths = np.geomspace(kind.weakest, kind.strongest, _SIZES)

    def draw(axes: Axes, theme: Theme) -> None:
        for chosen, colour, label in ((found, theme.blue, "found"), (~found, theme.orange, "missed")):
            axes.scatter(ml[chosen], strength[chosen], s=7, color=colour, alpha=0.45, linewidths=0, label=label)
        for share, style in _ISO.items():
            sizes = np.array([curve.limits_ml(share, float(at))[0] for at in strengths])
            shown = (sizes >= curve.smallest_ml) & (sizes <= curve.largest_ml)
            label = f"{share:.0%} found"
            axes.plot(sizes[shown], strengths[shown], color=theme.ink, linestyle=style, linewidth=1.6, label=label)
        axes.set(xlabel="Size in the head (ml)", ylabel=kind.strength[0].upper() + kind.strength[1:])
        axes.set(xlim=(curve.smallest_ml, curve.largest_ml), ylim=(kind.weakest, kind.strongest))
        plain_log_ticks(axes)
        _legend_above(axes)

    limit = certificate.limit_of(name)
    half = f"; half are found from {limit.text} at {kind.usual:g}" if limit is not None else ""
    alt = f"{len(own)} lesions by size and strength ({kind.strength}), {found.sum()} found{half}."
    return Plot(f"iso-detection-{name}", kind.title, alt, draw)


def agreement_plot(certificate: Certificate) -> Plot:
    """Share found in each head's own lesions against the share foretold by the other heads."""
    cells = [cell for cell in certificate.cells if cell.lesions >= FEWEST]

    def draw(axes: Axes, theme: Theme) -> None:
        line = np.array([0.0, 1.0])
        axes.fill_between(line, line - WITHIN, line + WITHIN, color=theme.blue, alpha=0.12, linewidth=0, label="±0.10")
        axes.plot(line, line, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
        foretold, observed = [cell.foretold for cell in cells], [cell.observed for cell in cells]
        errors = [cell.standard_error for cell in cells]
        axes.errorbar(foretold, observed, yerr=errors, fmt="o", color=theme.blue, markersize=4, linewidth=1)
        axes.set(xlabel="Foretold by the other heads", ylabel="Found", xlim=(0, 1), ylim=(-0.02, 1.02))
        axes.legend(loc="lower right")

    agree = sum(cell.agrees for cell in cells)
    alt = f"Share found against the share foretold, {len(cells)} cells of kind and size; {agree} within 0.10."
    return Plot("agreement", "In heads that were left out", alt, draw)


def _sizes(curve: DetectionCurve) -> np.ndarray:
    return np.geomspace(curve.smallest_ml, curve.largest_ml, _SIZES)


def _legend_above(axes: Axes) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, columnspacing=0.8, handlelength=1.4, borderaxespad=0.2
    )
