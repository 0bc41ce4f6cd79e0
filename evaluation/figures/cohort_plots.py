"""Plots of curves and distributions of a cohort."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from ...data_manifests.terms import Group
from ..metrics import voxel_metrics as vm
from ..metrics.bootstrap import Estimate
from ..scoring.score_cohort import CohortScores
from .curves import Curve
from .plot import MOST_POINTS, Plot, Theme, averaged, plain_log_ticks, thinned

MOST_SITES = 12
_BELOW_ZERO = -0.03
"""Lower end of an axis on which marks just above 0 must not coincide with the axis itself."""


def roc_plot(scores: CohortScores, curve: Curve) -> Plot:
    """ROC curve of all voxels pooled."""
    fpr, tpr = thinned(curve.x, curve.y)
    estimate = scores.estimates["auroc"]

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axvspan(0, 0.3, color=theme.blue, alpha=0.06, linewidth=0, label="FPR up to 0.3")
        axes.plot([0, 1], [0, 1], color=theme.muted, linewidth=1, linestyle=(0, (4, 3)), label="chance")
        _band(axes, theme, curve)
        axes.plot(fpr, tpr, color=theme.blue, linewidth=2, label=f"AUROC {estimate.value:.3f}")
        axes.set(xlabel="False-positive rate", ylabel="True-positive rate", xlim=(0, 1), ylim=(0, 1.01))
        axes.legend(loc="lower right")

    return Plot("roc", "ROC", f"ROC curve of all voxels pooled; area under the curve {_value_text(estimate)}.", draw)


def precision_recall_plot(scores: CohortScores, curve: Curve) -> Plot:
    """Precision-recall curve of all voxels pooled."""
    recall, precision = thinned(curve.x, curve.y)
    estimate, chance = scores.estimates["average_precision"], float(vm.prevalence(scores.counts))

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axhline(chance, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)), label=f"chance {chance:.2g}")
        _band(axes, theme, curve)
        axes.plot(recall, precision, color=theme.blue, linewidth=2, label=f"average precision {estimate.value:.3f}")
        # Chance lies just above 0.
        axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1), ylim=(_BELOW_ZERO, 1.01))
        _legend_above(axes)

    alt = f"Precision-recall curve, all voxels; average precision {_value_text(estimate)}, prevalence {chance:.2g}."
    return Plot("precision-recall", "Precision and recall", alt, draw)


def pro_plot(scores: CohortScores, curve: Curve) -> Plot:
    """Per-region overlap (PRO) against the false-positive rate."""
    shown = curve.x <= 0.3
    fpr, overlap = thinned(np.append(curve.x[shown], 0.3), np.append(curve.y[shown], np.interp(0.3, curve.x, curve.y)))
    estimate = scores.estimates["aupro_fpr30"]

    def draw(axes: Axes, theme: Theme) -> None:
        axes.plot([0, 0.3], [0, 0.3], color=theme.muted, linewidth=1, linestyle=(0, (4, 3)), label="chance")
        _band(axes, theme, curve)
        axes.plot(fpr, overlap, color=theme.blue, linewidth=2, label=f"AUPRO up to 0.3: {estimate.value:.3f}")
        axes.axvline(0.05, color=theme.orange, linewidth=1.2, linestyle=(0, (4, 3)), label="FPR 0.05")
        axes.set(xlabel="False-positive rate", ylabel="Mean recall per lesion", xlim=(0, 0.3), ylim=(0, 1.01))
        _legend_above(axes)

    alt = f"Per-region overlap against the false-positive rate up to 0.3; area {_value_text(estimate)}."
    return Plot("pro", "Per-region overlap (PRO)", alt, draw)


def froc_plot(scores: CohortScores, curve: Curve) -> Plot:
    """FROC curve: fraction of lesions found against false clusters per subject."""
    shown = curve.x <= 16
    rates, found = curve.x[shown], curve.y[shown]
    if len(rates) > MOST_POINTS:
        kept = np.unique(np.geomspace(1, len(rates), MOST_POINTS).astype(int)) - 1
        rates, found = rates[kept], found[kept]
    estimate = scores.estimates["froc_score"]

    def draw(axes: Axes, theme: Theme) -> None:
        _band(axes, theme, curve)
        axes.step(np.maximum(rates, 0.08), found, where="post", color=theme.blue, linewidth=2, label="lesions found")
        axes.axvline(
            scores.settings.false_clusters,
            color=theme.orange,
            linewidth=1.2,
            linestyle=(0, (4, 3)),
            label="allowed per healthy brain",
        )
        axes.set(xlabel="False clusters per subject", ylabel="Lesions found", xlim=(0.125, 16), ylim=(0, 1.01))
        plain_log_ticks(axes, base=2)
        _legend_above(axes)

    alt = f"Lesion sensitivity against false clusters per subject; mean over six rates {_value_text(estimate)}."
    return Plot("froc", "Lesions found (FROC)", alt, draw)


def group_plot(name: str, title: str, values: Mapping[tuple[str, Group], Sequence[float]], *, y_label: str) -> Plot:
    """One dot per subject by site and group, with the medians.

    Parameters
    ----------
    values : mapping from (site, group) to one number per subject
    """
    sizes = {site: sum(len(v) for (s, _), v in values.items() if s == site) for site, _ in values}
    sites = sorted(sorted(sizes), key=lambda site: -sizes[site])[:MOST_SITES]
    random = np.random.default_rng(0)

    def draw(axes: Axes, theme: Theme) -> None:
        styles = {"control": (theme.green, "o", -0.17), "patient": (theme.blue, "D", 0.17)}
        named = set()
        for (site, group), numbers in values.items():
            if site not in sites:
                continue
            colour, marker, shift = styles[group]
            middle = sites.index(site) + shift
            places = middle + random.uniform(-0.1, 0.1, len(numbers))
            label = None if group in named else f"{group}s"
            named.add(group)
            axes.scatter(places, numbers, s=20, color=colour, marker=marker, alpha=0.75, linewidths=0, label=label)
            axes.hlines(np.median(numbers), middle - 0.15, middle + 0.15, color=theme.ink, linewidth=1.6)
        axes.set_xticks(range(len(sites)), [site if len(site) <= 14 else site[:13] + "…" for site in sites])
        axes.tick_params(axis="x", rotation=30 if len(sites) > 4 else 0)
        axes.set(ylabel=y_label, xlim=(-0.5, len(sites) - 0.5))
        _legend_above(axes)

    medians = "; ".join(f"{site}, {group}s: {np.median(v):.3g}" for (site, group), v in values.items() if site in sites)
    left_out = f" {len(sizes) - len(sites)} smaller sites are left out." if len(sizes) > len(sites) else ""
    return Plot(name, title, f"{y_label}, one dot per subject. Medians: {medians}.{left_out}", draw)


def distribution_plot(scores: CohortScores) -> Plot:
    """Distributions of the scores of healthy scans, of patients outside lesions, and of lesion voxels."""
    known = [s for s in scores.subjects if s.truth_known]
    unknown = [s for s in scores.subjects if not s.truth_known]
    groups = {
        "healthy scans": [(s.histogram.healthy_scores, s.histogram.healthy_counts) for s in known if s.is_healthy],
        "patients, outside lesions": [
            (s.histogram.healthy_scores, s.histogram.healthy_counts) for s in known if not s.is_healthy
        ],
        "patients, no lesion mask": [(s.histogram.healthy_scores, s.histogram.healthy_counts) for s in unknown],
        "lesion voxels": [(s.histogram.lesion_scores, s.histogram.lesion_counts) for s in known if s.has_lesions],
    }
    pooled = {}
    for name, parts in groups.items():
        if parts:
            values = np.concatenate([v for v, _ in parts])
            counts = np.concatenate([c for _, c in parts])
            finite = np.isfinite(values)
            if finite.any():
                pooled[name] = (values[finite].astype(np.float64), counts[finite])
    spans = [_weighted_quantiles(values, counts, [0.001, 0.999]) for values, counts in pooled.values()]
    low, high = min(s[0] for s in spans), max(s[1] for s in spans)
    high = max(high, scores.threshold if scores.threshold is not None else high)
    edges = np.linspace(low, high + 1e-6 * max(abs(high), 1e-6), 121)

    def draw(axes: Axes, theme: Theme) -> None:
        styles = {
            "healthy scans": (theme.green, "-"),
            "patients, outside lesions": (theme.blue, "-"),
            "patients, no lesion mask": (theme.blue, ":"),
            "lesion voxels": (theme.orange, "-"),
        }
        middles = (edges[1:] + edges[:-1]) / 2
        for name, (values, counts) in pooled.items():
            colour, line = styles[name]
            share, _ = np.histogram(values, bins=edges, weights=counts)
            density = share / counts.sum() / np.diff(edges)
            axes.plot(middles, density, color=colour, linestyle=line, linewidth=1.8, label=name)
            axes.fill_between(middles, density, color=colour, alpha=0.12, linewidth=0)
        if scores.threshold is not None:
            axes.axvline(scores.threshold, color=theme.ink, linewidth=1.2, linestyle=(0, (4, 3)), label="threshold")
        axes.set(xlabel="Anomaly score (higher = more anomalous)", ylabel="Density", xlim=(edges[0], edges[-1]))
        axes.set_ylim(bottom=0)
        _legend_above(axes)

    alt = "Distribution of the anomaly score, each with area 1: " + ", ".join(pooled) + "."
    return Plot("score-distributions", "Score distributions", alt, draw)


def subject_plot(scores: CohortScores) -> Plot:
    """Average precision of every subject with lesions against its lesion volume."""
    with_lesions = [s for s in scores.subjects if s.has_lesions]
    volumes = np.array([s.lesion_volume_ml for s in with_lesions], dtype=np.float64)
    values = np.array([s.average_precision.value for s in with_lesions], dtype=np.float64)
    chance = np.array([s.n_lesion / s.n_voxels for s in with_lesions])

    def draw(axes: Axes, theme: Theme) -> None:
        axes.scatter(volumes, values, s=26, color=theme.blue, alpha=0.85, linewidths=0, label="subject")
        axes.scatter(volumes, chance, s=90, color=theme.orange, marker="_", linewidths=2, label="prevalence (chance)")
        plain_log_ticks(axes)
        axes.set(xlabel="Lesion volume of the subject (ml)", ylabel="Average precision", ylim=(_BELOW_ZERO, 1.01))
        _legend_above(axes)

    alt = (
        f"Average precision of {len(values)} subjects by lesion volume, from {values.min():.2f} to {values.max():.2f}."
    )
    return Plot("subjects", "Subjects by lesion volume", alt, draw)


def lesion_plot(scores: CohortScores) -> Plot:
    """Highest threshold at which each lesion is found against its volume."""
    lesions = [les for s in scores.subjects if s.truth_known for les in s.lesions]
    volumes = np.array([les.volume_mm3 / 1000 for les in lesions])
    found_at = np.array([np.nan if les.found_at is None else les.found_at for les in lesions])
    threshold = scores.threshold
    found = found_at >= (threshold if threshold is not None else np.inf)
    lowest = np.nanmin(found_at) if np.isfinite(found_at).any() else 0.0
    places = np.where(np.isnan(found_at), lowest, found_at)

    def draw(axes: Axes, theme: Theme) -> None:
        label = "found" if threshold is not None else "no threshold"
        axes.scatter(volumes[found], places[found], s=22, color=theme.blue, alpha=0.8, linewidths=0, label=label)
        axes.scatter(
            volumes[~found],
            places[~found],
            s=22,
            facecolors="none",
            edgecolors=theme.orange,
            marker="s",
            label="missed",
        )
        if threshold is not None:
            axes.axhline(threshold, color=theme.ink, linewidth=1.2, linestyle=(0, (4, 3)), label="threshold")
        plain_log_ticks(axes)
        axes.set(xlabel="Lesion volume (ml)", ylabel="Highest threshold at which found")
        axes.legend(loc="best")

    alt = f"{len(lesions)} lesions by volume and highest threshold at which found; {found.sum()} above the threshold."
    return Plot("lesions", "Lesions by volume", alt, draw)


def line_plot(
    name: str, title: str, lines: Sequence[tuple[str, np.ndarray, np.ndarray]], *, y_label: str, log_scale: bool
) -> Plot:
    """Quantities over training steps."""

    def draw(axes: Axes, theme: Theme) -> None:
        colours = (theme.blue, theme.orange, theme.green, theme.ink)
        for number, (label, steps, values) in enumerate(lines):
            x, y = averaged(np.asarray(steps, float), np.asarray(values, float))
            marker = "o" if len(x) < 3 else None
            axes.plot(x, y, color=colours[number % 4], linewidth=1.8, marker=marker, markersize=4, label=label)
        if log_scale:
            axes.set_yscale("log")
        axes.set(xlabel="Step", ylabel=y_label)
        if len(lines) > 1:
            axes.legend(loc="best")

    ends = "; ".join(f"{label} ends at {np.asarray(values)[-1]:.3g}" for label, _, values in lines if len(values))
    return Plot(name, title, f"{title} over training steps. {ends}.", draw)


def _band(axes: Axes, theme: Theme, curve: Curve) -> None:
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.at, curve.low, curve.high, color=theme.blue, alpha=0.2, linewidth=0, label="interval")


def _legend_above(axes: Axes) -> None:
    """Place the legend above the plot so that it covers no curve."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, columnspacing=1.2, borderaxespad=0.2)


def _value_text(estimate: Estimate) -> str:
    if estimate.ci_low is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.ci_low:.3f} to {estimate.ci_high:.3f})"


def _weighted_quantiles(values: np.ndarray, counts: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    order = np.argsort(values)
    cumulated = np.cumsum(counts[order]) / counts.sum()
    return values[order][np.minimum(np.searchsorted(cumulated, shares), len(values) - 1)]
