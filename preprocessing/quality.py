"""Numbers and a picture that say whether a subject was prepared well.

One head registered badly can spoil a cohort's figures more than any choice of method: every subject is judged.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import ndimage

from ..data_manifests.atomic import written_whole
from ..data_manifests.errors import UserError
from ..data_manifests.terms import BIDS_SUFFIX, Modality
from ..data_manifests.volume import Volume
from .brain_extraction import BrainExtraction
from .resampling import bounding_box
from .settings import RegistrationSettings
from .template import Template

if TYPE_CHECKING:
    from .template_transform import TemplateTransform

Verdict = Literal["pass", "warn", "fail"]

USUAL_BRAIN_ML = (1000.0, 1900.0)
USUAL_OVERLAP = 0.94
USUAL_SIMILARITY = 0.55
USUAL_COVERAGE = 0.95
USUAL_NOISE = 0.1
USUAL_DARK_SHARE = 0.15


@dataclass(frozen=True)
class Quality:
    """How one subject was prepared.

    Attributes
    ----------
    brain_ml : float
        Volume of the brain mask in native space.
    brain_method : str
        Where the mask comes from.
    brain_overlap : float
        Dice of the warped brain mask with the template's; higher is better.
    coverage : float
        Share of the template's brain inside the warped brain mask; higher is better.
    similarity_before, similarity_after : float
        Correlation of the T1w with the template's inside the template's brain, after the affine and after the warp;
        higher is better.
    white_matter_overlap : float
        Dice of the warped bright tissue (Otsu's upper of three classes) with the template's white matter.
    jacobian_smallest, jacobian_percentile_1, jacobian_percentile_99 : float
        Local change of volume by the warp inside the template's brain; 1 is none, at or below 0 space is folded.
    noise : float
        Standard deviation of the noise over the mean intensity, in white matter: the median absolute second
        difference along the axes, scaled for Gaussian noise. Lower is better.
    dark_share : float
        Share of the brain mask darker than a tenth of the brain's median: background or bone that the mask took in.
    verdict : {"pass", "warn", "fail"}
    reasons : tuple of str
        A sentence for everything that is out of the ordinary.
    """

    brain_ml: float
    brain_method: str
    brain_overlap: float
    coverage: float
    similarity_before: float
    similarity_after: float
    white_matter_overlap: float
    jacobian_smallest: float
    jacobian_percentile_1: float
    jacobian_percentile_99: float
    noise: float
    dark_share: float
    verdict: Verdict
    reasons: tuple[str, ...] = ()

    def save(self, path: Path) -> Path:
        """Write JSON, whole or not at all."""
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1))
        return path

    @classmethod
    def load(cls, path: Path) -> "Quality":
        """Read what `save` wrote.

        Raises
        ------
        UserError
            Missing or damaged.
        """
        try:
            content = json.loads(path.read_text())
            return cls(**{**content, "reasons": tuple(content["reasons"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: no quality record of a prepared subject there. Run prepare for the subject again."
            ) from error


def measure_quality(
    t1w: Volume,
    brain: BrainExtraction,
    transform: "TemplateTransform",
    template: Template,
    settings: RegistrationSettings,
    *,
    warnings: Sequence[str] = (),
) -> Quality:
    """Judge a brain mask and a registration.

    Parameters
    ----------
    t1w : Volume
        Native, bias-corrected.
    brain : BrainExtraction
        On the grid of `t1w`.
    transform : TemplateTransform
    template : Template
        At the resolution to judge at.
    settings : RegistrationSettings
        The limits below which the verdict is "fail".
    warnings : sequence of str
        Sentences from elsewhere; any makes the verdict "warn" at least.
    """
    mask = brain.mask.voxels
    masked = t1w.with_voxels(np.where(mask, t1w.voxels, 0).astype(np.float32))
    white = _bright_tissue(t1w, mask)
    target = template.brain_mask.voxels

    warped_mask = transform.to_template(brain.mask, template.grid, interpolation="linear").voxels
    warped_white = transform.to_template(t1w.with_voxels(white), template.grid, interpolation="linear").voxels
    similarity = [
        _correlation(step.to_template(masked, template.grid, interpolation="linear").voxels[target], template, target)
        for step in (transform.affine_only(), transform)
    ]
    jacobian = transform.jacobian_range
    numbers = {
        "brain_ml": float(mask.sum() * t1w.grid.voxel_volume_mm3 / 1000),
        "brain_overlap": _dice(warped_mask, target),
        "coverage": float((warped_mask & target).sum() / target.sum()),
        "similarity_before": similarity[0],
        "similarity_after": similarity[1],
        "white_matter_overlap": _dice(warped_white, template.white.voxels >= 0.5),
        "jacobian_smallest": jacobian.smallest,
        "jacobian_percentile_1": jacobian.percentile_1,
        "jacobian_percentile_99": jacobian.percentile_99,
        "noise": _noise(t1w.voxels, white),
        "dark_share": float((t1w.voxels[mask] < 0.1 * np.median(t1w.voxels[mask])).mean()),
    }
    failures = _failures(numbers, settings)
    unusual = _unusual(numbers) + brain.notes + tuple(warnings)
    verdict: Verdict = "fail" if failures else "warn" if unusual else "pass"
    return Quality(**numbers, brain_method=brain.method, verdict=verdict, reasons=failures + unusual)


def _failures(numbers: Mapping[str, float], settings: RegistrationSettings) -> tuple[str, ...]:
    found = []
    if numbers["brain_overlap"] < settings.smallest_overlap:
        found.append(
            f"registration failed: the warped brain overlaps the template's with Dice {numbers['brain_overlap']:.2f}, "
            f"expected at least {settings.smallest_overlap:g}; look at the picture, then at the brain mask and the "
            "scan's orientation"
        )
    if numbers["similarity_after"] < settings.smallest_similarity:
        found.append(
            f"registration failed: the warped T1w correlates with the template by {numbers['similarity_after']:.2f}, "
            f"expected at least {settings.smallest_similarity:g}; look at the picture: is it a T1w, the right way up?"
        )
    return tuple(found)


def _unusual(numbers: Mapping[str, float]) -> tuple[str, ...]:
    low, high = USUAL_BRAIN_ML
    checks = [
        (
            not low <= numbers["brain_ml"] <= high,
            f"a brain of {numbers['brain_ml']:.0f} ml (usual: {low:.0f}-{high:.0f})",
        ),
        (
            numbers["brain_overlap"] < USUAL_OVERLAP,
            f"overlap with the template's brain {numbers['brain_overlap']:.2f} (usual: above {USUAL_OVERLAP})",
        ),
        (
            numbers["similarity_after"] < USUAL_SIMILARITY,
            f"similarity to the template {numbers['similarity_after']:.2f} (usual: above {USUAL_SIMILARITY})",
        ),
        (
            numbers["coverage"] < USUAL_COVERAGE,
            f"only {numbers['coverage']:.0%} of the template's brain is covered (usual: above {USUAL_COVERAGE:.0%})",
        ),
        (numbers["jacobian_smallest"] <= 0, "the warp folds space inside the brain"),
        (numbers["noise"] > USUAL_NOISE, f"noise of {numbers['noise']:.0%} (usual: below {USUAL_NOISE:.0%})"),
        (
            numbers["dark_share"] > USUAL_DARK_SHARE,
            f"{numbers['dark_share']:.0%} of the brain mask is dark (usual: below {USUAL_DARK_SHARE:.0%})",
        ),
    ]
    return tuple(sentence for is_unusual, sentence in checks if is_unusual)


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / max(one.sum() + other.sum(), 1))


def _correlation(values: np.ndarray, template: Template, target: np.ndarray) -> float:
    return float(np.corrcoef(values, template.t1w.voxels[target])[0, 1]) if values.std() > 0 else 0.0


def _bright_tissue(t1w: Volume, mask: np.ndarray) -> np.ndarray:
    from skimage.filters import threshold_multiotsu

    inside = t1w.voxels[mask]
    inside = np.clip(inside, *np.percentile(inside, [0.5, 99.5]))
    if len(np.unique(inside)) < 3:
        return np.zeros(mask.shape, bool)
    return mask & (t1w.voxels > threshold_multiotsu(inside, classes=3)[1])


def _noise(voxels: np.ndarray, white: np.ndarray) -> float:
    core = np.asarray(ndimage.binary_erosion(white), bool)
    if not core.any():
        return float("nan")
    differences = [(np.roll(voxels, 1, axis) - 2 * voxels + np.roll(voxels, -1, axis))[core] for axis in range(3)]
    # The second difference of white noise has 6 times its variance; 1.4826 turns a median deviation into an SD.
    deviation = 1.4826 * np.median(np.abs(np.concatenate(differences))) / np.sqrt(6)
    return float(deviation / voxels[core].mean())


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
        PNG, below 200 kB.
    t1w, brain_mask : Volume
        Native, axes towards right, anterior, superior.
    prepared : mapping from modality to Volume
        On the template's grid.
    template : Template
        On the grid of `prepared`.
    title : str
    """
    # The object-oriented way round: no global figure state, safe beside a notebook and in threads.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    rows = [("native T1w, brain mask", t1w, [(brain_mask.voxels, "red")], brain_mask.voxels)]
    outlines = [(template.brain_mask.voxels, "red"), (template.white.voxels >= 0.5, "yellow")]
    rows += [
        (
            f"{BIDS_SUFFIX[modality]} on the template, its brain and white matter",
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
    with written_whole(path) as temporary:
        # 64 colours: a quarter of the bytes, and the eye sees no difference.
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
            # As in the reports and the viewer: the radiological convention.
            axis_object.invert_xaxis()
            for side, at in (("R", 0.02), ("L", 0.92)):
                axis_object.text(at, 0.02, side, color="white", fontsize=8, transform=axis_object.transAxes)
    row[0].set_title(label, color="white", fontsize=8, loc="left", pad=2)
