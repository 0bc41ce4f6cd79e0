"""Quality picture of a prepared subject: native and prepared images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.images.volume import Volume
from ...data_manifests.terms import BIDS_SUFFIX, Modality
from ..registration.resampling import bounding_box
from ..registration.template import Template


def quality_picture(
    path: Path,
    t1w: Volume,
    brain_mask: Volume,
    prepared: Mapping[Modality, Volume],
    template: Template,
    *,
    title: str,
) -> Path:
    """Draw slices of the native T1w with its mask, and of each prepared image with the template's outlines.

    Parameters
    ----------
    path : Path
        PNG file, less than 200 kB.
    t1w, brain_mask : Volume
        Native, axes towards right, anterior, superior.
    prepared : mapping from modality to Volume
        Prepared images on the template's grid.
    template : Template
        Template on the grid of `prepared`.
    title : str
    """
    # The object-oriented interface has no global state: it is safe in notebooks and threads.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    rows = [("native T1w, brain mask", t1w, [(brain_mask.voxels, "red")], brain_mask.voxels)]
    outlines = [(template.brain_mask.voxels, "red"), (template.white.voxels >= 0.5, "yellow")]
    rows += [
        (
            f"{BIDS_SUFFIX[modality]} on the template grid, outlines of the template's brain and white matter",
            image,
            outlines,
            template.brain_mask.voxels,
        )
        for modality, image in prepared.items()
    ]
    figure = Figure(dpi=100 if len(rows) <= 2 else 80, figsize=(14, 2.2 * len(rows) + 0.5), facecolor="black")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 7, squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.12})
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.5 / (2.2 * len(rows) + 0.5))
    convention = "the patient's right is on the left of a picture, sagittal slices face right"
    figure.suptitle(f"{title}     ({convention})", color="white", fontsize=9)
    for row, (label, image, drawn, shown) in zip(axes, rows, strict=True):
        _draw_row(row, label, image, drawn, shown)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    with atomic_write(path) as temporary:
        # 64 colours need a quarter of the bytes, without a visible difference.
        picture.quantize(64, dither=Image.Dither.NONE).save(temporary, format="PNG", optimize=True)
    return path


def _draw_row(row, label: str, image: Volume, outlines: Sequence[tuple[np.ndarray, str]], shown: np.ndarray) -> None:
    box = bounding_box(shown)
    top = np.percentile(image.voxels[shown], 99.5)
    places = [(0, 0.35), (0, 0.6), (1, 0.35), (1, 0.65), (2, 0.25), (2, 0.5), (2, 0.72)]
    for axis_object, (axis, share) in zip(row, places, strict=True):
        index = int(box[axis].start + share * (box[axis].stop - box[axis].start))
        aspect = float(np.divide(*np.delete(image.grid.spacing_mm, axis)[::-1]))
        axis_object.imshow(
            np.take(image.voxels, index, axis).T, origin="lower", cmap="gray", vmin=0, vmax=top, aspect=aspect
        )
        for mask, colour in outlines:
            edge = np.take(mask, index, axis).T.astype(float)
            if 0 < edge.sum() < edge.size:
                axis_object.contour(edge, levels=[0.5], colors=[colour], linewidths=0.6)
        axis_object.set_axis_off()
        if axis > 0:
            # Radiological convention, as in the reports and the viewer.
            axis_object.invert_xaxis()
            for side, at in (("R", 0.02), ("L", 0.92)):
                axis_object.text(at, 0.02, side, color="white", fontsize=8, transform=axis_object.transAxes)
    # The label is longer than its picture: drawn last, it lies above the taller pictures beside it.
    row[0].set_zorder(1)
    row[0].set_title(label, color="white", fontsize=8, loc="left", pad=2)
