"""The figure of docs/method-in-brief.md, from the synthetic cohort of `voxout demo`.

voxout demo demo-out
python benchmarks/method_figure.py demo-out docs
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats
from scipy.ndimage import binary_fill_holes
from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.images.volume import read_mask, read_volume
from voxout.evaluation.figures.plot import DARK, LIGHT, Theme
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.prepared_images import PreparedImages

PATIENT = "sub-patient001"
SHOWN = ("t1w", "t1w_extension")
"""Channels on the axes of the second panel."""


def main() -> None:
    """Write method-in-brief-light.svg and -dark.svg."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("docs", type=Path)
    options = parser.parse_args()
    run = _Run(options.demo)
    for name, theme in (("light", LIGHT), ("dark", DARK)):
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "method-in-brief"}):
            path = options.docs / f"method-in-brief-{name}.svg"
            _figure(run, theme).savefig(path, transparent=True, metadata={"Date": None})


def _figure(run: "_Run", theme: Theme) -> Figure:
    """Draw the four panels."""
    figure = Figure(figsize=(9.6, 2.75), layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=(1, 1.05, 1.05, 1))
    titles = ("1  same voxel in every head", "2  what is usual there", "3  how often in health", "4  map of a patient")
    draws = (_heads, _features, _null, _map)
    for axes, title, draw in zip(panels, titles, draws, strict=True):
        axes.set_facecolor("none")
        axes.set_title(title, color=theme.ink, fontsize=9.5, loc="left")
        axes.tick_params(colors=theme.muted, labelsize=7.5)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom") and draw in (_features, _null))
            spine.set_color(theme.muted)
        draw(axes, theme, run)
    return figure


class _Run:
    """What the panels show of a demo."""

    def __init__(self, demo: Path):
        out, manifest = OutputFolder(demo / "run"), read_manifest(demo / "cohort" / "cohort.csv")
        patient = manifest[PATIENT]
        store = VolumeStore.open(out.patches)
        self.train = [path.stem for path in sorted((out.latents / "null").glob("sub-*.npy"))]
        z = read_volume(out.template_map(patient))
        self.z, self.scan = z.voxels, read_volume(out.prepared_image(patient, "t1w")).voxels
        self.brain = read_mask(out.prepared_brain_mask(patient)).voxels
        self.peak = np.unravel_index(np.argmax(np.where(self.brain, self.z, -np.inf)), self.z.shape)
        channels = Channels.load(out.patches)
        own = channels.read(PreparedImages.from_record(patient, out, ("t1w",)), z.grid)
        rows, at = store.index(self.train), (slice(None), *self.peak)
        shown = [channels.names.index(name) for name in SHOWN]
        self.controls = np.array([store.volumes[row][at][shown] for row in rows], float)
        self.patient = np.array(own[at][shown], float)
        self.heads = [np.asarray(store.volumes[row][0], float)[:, :, self.peak[2]] for row in rows[:3]]
        nulls = [np.load(out.latents / "null" / f"{key}.npy").astype(float).ravel() for key in self.train]
        self.null = np.concatenate([values[np.isfinite(values)] for values in nulls])

    def slice(self, volume: np.ndarray) -> np.ndarray:
        """The axial slice through the peak, the patient's right on the left."""
        return volume[:, :, self.peak[2]][::-1].T


def _heads(axes: Axes, theme: Theme, run: _Run) -> None:
    """Three controls behind one another, each with the voxel marked."""
    step = 16
    width, height = run.heads[0].shape
    axes.set(xlim=(0, width + 2 * step), ylim=(0, height + 2 * step), xticks=[], yticks=[], aspect="equal")
    for n, head in enumerate(run.heads):
        picture = head[::-1].T
        x, y = (2 - n) * step, (2 - n) * step
        shown = np.zeros((*picture.shape, 4))
        shown[..., :3], shown[..., 3] = picture[..., None] * 1.1, binary_fill_holes(picture > 0.02)
        axes.imshow(shown.clip(0, 1), origin="lower", extent=(x, x + width, y, y + height), zorder=n)
        column, row = width - 1 - run.peak[0], run.peak[1]
        axes.plot(x + column + 0.5, y + row + 0.5, "s", ms=5, mfc="none", mec=theme.orange, mew=1.5, zorder=n + 0.5)
    axes.set(xlim=(0, width + 2 * step), ylim=(0, height + 2 * step))


def _features(axes: Axes, theme: Theme, run: _Run) -> None:
    """Two channels at the voxel: controls with an ellipse, and the patient."""
    mean, covariance = run.controls.mean(axis=0), np.cov(run.controls.T) + 1e-5 * np.eye(2)
    angles = np.linspace(0, 2 * np.pi, 90)
    ring = mean + 2.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1) @ np.linalg.cholesky(covariance).T
    axes.fill(*ring.T, color=theme.blue, alpha=0.15, lw=0)
    axes.plot(*ring.T, color=theme.blue, lw=1.2)
    axes.plot(*run.controls.T, "o", color=theme.blue, ms=4)
    axes.plot(*run.patient, "D", color=theme.orange, ms=6)
    axes.annotate("patient", run.patient, (0, 8), textcoords="offset points", color=theme.ink, fontsize=8, ha="center")
    axes.annotate("controls", ring[np.argmin(ring[:, 1])], (0, -11), textcoords="offset points", color=theme.ink,
                  fontsize=8, ha="center")  # fmt: skip
    axes.margins(0.25)
    axes.set_xlabel("intensity", color=theme.muted, fontsize=8)
    axes.set_ylabel("a second feature", color=theme.muted, fontsize=8)
    axes.set(xticks=[], yticks=[])


def _null(axes: Axes, theme: Theme, run: _Run) -> None:
    """Cross-validated scores of the controls, with the normal curve and the patient's peak."""
    peak = float(run.z[run.peak])
    counts, edges = np.histogram(run.null, bins=np.linspace(-4, 6, 51), density=True)
    axes.stairs(counts, edges, fill=True, color=theme.blue, alpha=0.35)
    z = np.linspace(-4, 6, 200)
    axes.plot(z, stats.norm.pdf(z), color=theme.blue, lw=1.2)
    axes.axvline(3.09, color=theme.muted, lw=1, ls="--")
    axes.text(3.2, 0.2, "1 in 1000", color=theme.ink, fontsize=8, va="top")
    end = max(peak, 6.0)
    axes.plot([peak], [2e-6], "D", color=theme.orange, ms=6, clip_on=False)
    axes.text(peak, 8e-6, f"z = {peak:.1f}", color=theme.ink, fontsize=8, ha="right" if peak > 7 else "center")
    axes.set(yscale="log", ylim=(1e-6, 1), xlim=(-4, end + 0.5), yticks=[])
    axes.minorticks_off()
    axes.set_xlabel("score, as z", color=theme.muted, fontsize=8)
    axes.set_ylabel("healthy voxels (log)", color=theme.muted, fontsize=8)


def _map(axes: Axes, theme: Theme, run: _Run) -> None:
    """The patient's slice with the map from 3.09 on."""
    scan, z = run.slice(run.scan), run.slice(run.z)
    shown = np.zeros((*scan.shape, 4))
    shown[..., :3], shown[..., 3] = scan[..., None] * 1.1, binary_fill_holes(scan > 0.02)
    axes.imshow(shown.clip(0, 1), origin="lower")
    axes.imshow(np.where(z > 3.09, z, np.nan), origin="lower", cmap="inferno", vmin=2, vmax=10)
    column, row = scan.shape[1] - 1 - run.peak[0], run.peak[1]
    axes.plot(column, row, "s", ms=7, mfc="none", mec=theme.orange, mew=1.5)
    axes.set(xticks=[], yticks=[])


if __name__ == "__main__":
    main()
