"""Geometry of a series: a volume of evenly spaced slices, or a sentence about what is wrong with it.

dcm2niix converts a series with missing, doubled or unevenly spaced slices without an error, into a wrong or
interpolated volume. Every series is therefore checked here, and read by highdicom, before it is converted.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID

from ...data_manifests.errors import UserError, counted
from .reading import UNREADABLE
from .study import Series

FEWEST_SLICES = 16
_EVEN_WITHIN = 0.02
"""Relative difference of spacings that are the same; archives round positions."""
_TILTED_FROM = 5e-3
"""Distance of a slice from the common normal, relative to its distance from the first slice."""
_ADULT_HEAD_MM = 130.0
"""A whole brain extends over more than this in every direction."""
_EXPORT = "Export the series again from the archive"


@dataclass(frozen=True, eq=False)
class Loaded:
    """A series as a checked volume.

    Attributes
    ----------
    datasets : tuple of Dataset
        Its images, decompressed, in the order of the slices.
    volume : highdicom.Volume
        With rescaled intensities.
    warnings : tuple of str
    """

    datasets: tuple[Dataset, ...]
    volume: highdicom.Volume
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Plane:
    """Position of one image or frame."""

    position: np.ndarray
    orientation: np.ndarray
    form: tuple[Any, ...]
    """Rows, columns and pixel spacing."""


def load_series(series: Series) -> Loaded:
    """Read a series, and check that it is a volume.

    Raises
    ------
    UserError
        Damaged images, or images that are no volume of evenly spaced slices.
    """
    name = series.label
    datasets = [_read(path, name, number) for number, path in enumerate(series.files, start=1)]
    planes = _planes(datasets, name)
    _require_one_form(planes, name)
    normal = np.cross(planes[0].orientation[:3], planes[0].orientation[3:])
    places = np.array([plane.position for plane in planes]) @ normal
    order = np.argsort(places, kind="stable")
    _require_distinct(places[order], len(planes), name)
    _require_upright(datasets, [planes[number] for number in order], normal, name)
    _require_even(places[order], name)
    volume = _as_volume(datasets, name)
    if len(datasets) > 1:
        datasets = [datasets[number] for number in order]
    return Loaded(tuple(datasets), volume, tuple(_warnings(datasets, volume, name)))


def _read(path: Path, name: str, number: int) -> Dataset:
    """Read and decompress an image."""
    try:
        dataset = dcmread(path)
        syntax = dataset.file_meta.TransferSyntaxUID
        compressed = syntax.is_compressed
    except UNREADABLE as error:
        raise _refused(name, f"file {number} of it is damaged, expected whole images. {_EXPORT}") from error
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise _refused(name, "holds colour images, expected one intensity per voxel. Choose the original series")
    if compressed:
        _decompress(dataset, syntax, name, number)
    needed = int(dataset.get("Rows", 0)) * int(dataset.get("Columns", 0)) * int(dataset.get("BitsAllocated", 16)) // 8
    needed *= int(dataset.get("NumberOfFrames") or 1)
    if needed == 0 or len(dataset.get("PixelData") or b"") < needed:
        raise _refused(name, f"image {number} of it is truncated or has no pixels, expected whole images. {_EXPORT}")
    return dataset


def _decompress(dataset: Dataset, syntax: UID, name: str, number: int) -> None:
    try:
        dataset.decompress(generate_instance_uid=False)
    except (RuntimeError, NotImplementedError, *UNREADABLE) as error:
        raise _refused(
            name,
            f"image {number} of it cannot be decompressed ({syntax.name}), expected JPEG 2000, JPEG-LS, RLE or "
            "uncompressed images. Export it uncompressed (Explicit VR Little Endian), or install a decoder of pydicom "
            "for it",
        ) from error


def _planes(datasets: Sequence[Dataset], name: str) -> list[_Plane]:
    multi_frame = [dataset for dataset in datasets if "PerFrameFunctionalGroupsSequence" in dataset]
    if multi_frame and len(datasets) > 1:
        raise _refused(
            name,
            f"holds {len(datasets)} files of which {len(multi_frame)} are multi-frame, expected one multi-frame file "
            "or single slices. Export the volume alone",
        )
    try:
        if not multi_frame:
            return [_plane(dataset, dataset, dataset, dataset) for dataset in datasets]
        (dataset,) = datasets
        shared = dataset.SharedFunctionalGroupsSequence[0]
        planes = []
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            groups = [
                next(group[sequence].value[0] for group in (frame, shared) if sequence in group)
                for sequence in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
            ]
            planes.append(_plane(dataset, *groups))
        return planes
    except (AttributeError, KeyError, TypeError, IndexError, StopIteration) as error:
        raise _refused(
            name,
            "its images have no position or orientation, expected those of a scanner. Secondary captures and scanned "
            "films cannot be used; choose the original series",
        ) from error


def _plane(image: Dataset, position: Dataset, orientation: Dataset, measures: Dataset) -> _Plane:
    form = (image.Rows, image.Columns, *(round(float(mm), 4) for mm in measures.PixelSpacing))
    axes = np.array(orientation.ImageOrientationPatient, dtype=float)
    return _Plane(np.array(position.ImagePositionPatient, dtype=float), axes, form)


def _require_one_form(planes: Sequence[_Plane], name: str) -> None:
    if len(planes) < FEWEST_SLICES:
        raise _refused(
            name,
            f"has {counted(len(planes), 'slice')}, expected a whole head in at least {FEWEST_SLICES}. Choose another "
            "series, or export it again",
        )
    turned = sum(not np.allclose(plane.orientation, planes[0].orientation, atol=1e-3) for plane in planes)
    if turned:
        others = min(turned, len(planes) - turned)
        raise _refused(
            name,
            f"{others} of its {len(planes)} images have another orientation, expected parallel slices: a localizer may "
            "be mixed in. Export the series without it",
        )
    forms = Counter(plane.form for plane in planes)
    if len(forms) > 1:
        others = len(planes) - forms.most_common(1)[0][1]
        raise _refused(
            name,
            f"{others} of its {len(planes)} images have another size or pixel spacing, expected one. Export the series "
            "without them",
        )


def _require_distinct(places: np.ndarray, images: int, name: str) -> None:
    distinct = 1 + int((np.diff(places) > 1e-3).sum())
    if distinct == images:
        return
    if images % distinct == 0:
        raise _refused(
            name,
            f"has {images // distinct} images of each of {distinct} slices, expected one: several echoes, inversions "
            "or time points. Export one of them as a series",
        )
    raise _refused(
        name, f"{counted(images - distinct, 'slice')} of it occur twice, expected each once. {_EXPORT}, without copies"
    )


def _require_upright(datasets: Sequence[Dataset], planes: Sequence[_Plane], normal: np.ndarray, name: str) -> None:
    """Refuse slices that are stacked at an angle."""
    tilt = max(abs(float(dataset.get("GantryDetectorTilt") or 0)) for dataset in datasets)
    run = planes[-1].position - planes[0].position
    aside = float(np.linalg.norm(run - (run @ normal) * normal)) / float(np.linalg.norm(run))
    if tilt > 0.1 or aside > _TILTED_FROM:
        degrees = max(tilt, float(np.degrees(np.arcsin(aside))))
        raise _refused(
            name,
            f"its slices are stacked at an angle of {degrees:.1f} degrees (gantry tilt), expected slices at right "
            "angles to their axis. Choose a series without tilt",
        )


def _require_even(places: np.ndarray, name: str) -> None:
    gaps = np.diff(places)
    step = float(np.median(gaps))
    if np.abs(gaps - step).max() <= _EVEN_WITHIN * step:
        return
    steps = gaps / step
    if np.abs(steps - np.round(steps)).max() <= 5 * _EVEN_WITHIN:
        missing = int(np.round(steps).sum()) - len(gaps)
        raise _refused(name, f"lacks {counted(missing, 'slice')} within it, expected a whole volume. {_EXPORT}")
    raise _refused(
        name,
        f"its slices are unevenly spaced ({gaps.min():.3g} to {gaps.max():.3g} mm), expected one spacing. {_EXPORT}, "
        "or choose another series",
    )


def _as_volume(datasets: Sequence[Dataset], name: str) -> highdicom.Volume:
    try:
        if "PerFrameFunctionalGroupsSequence" in datasets[0]:
            image = highdicom.Image.from_dataset(datasets[0], copy=False)
            return image.get_volume(apply_real_world_transform=False, rtol=_EVEN_WITHIN)
        return highdicom.get_volume_from_series(
            datasets, apply_real_world_transform=False, rtol=_EVEN_WITHIN, orientation_tol=1e-3
        )
    except (ValueError, RuntimeError, AttributeError, TypeError, KeyError) as error:
        raise _refused(name, f"is no volume for highdicom ({str(error).rstrip('.')}). {_EXPORT}") from error


def _warnings(datasets: Sequence[Dataset], volume: highdicom.Volume, name: str) -> list[str]:
    """Return doubts about the ends of a volume, which no check of the positions can see."""
    slices, found = volume.shape[0], []
    said = max(int(dataset.get("ImagesInAcquisition") or 0) for dataset in datasets)
    numbers = sorted(int(dataset.get("InstanceNumber") or 0) for dataset in datasets)
    if len(datasets) > 1 and said > slices:
        found.append(
            f"{name}: has {slices} of the {said} images that its tags name (ImagesInAcquisition): slices at an end may "
            "be missing"
        )
    elif len(datasets) > 1 and numbers[0] > 1 and numbers[-1] - numbers[0] == slices - 1:
        found.append(f"{name}: its first image has the number {numbers[0]}: slices at an end may be missing")
    shortest = min(length * spacing for length, spacing in zip(volume.spatial_shape, volume.spacing, strict=True))
    if shortest < _ADULT_HEAD_MM:
        found.append(f"{name}: covers {shortest:.0f} mm in one direction, less than the head of an adult")
    return found


def _refused(name: str, sentence: str) -> UserError:
    return UserError(f"{name}: {sentence}.")
