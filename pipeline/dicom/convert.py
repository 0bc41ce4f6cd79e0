"""Conversion of a checked series to a volume and a description, without anything that identifies a person.

dcm2niix converts; highdicom has read the same series (see `geometry`), and both must agree at every voxel. The NIfTI
file is written anew from the voxels and the grid, and of the JSON file of dcm2niix only numbers and listed words are
kept.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dcm2niix
import highdicom
import numpy as np

from ...data_manifests.errors import UserError
from ...data_manifests.images.volume import Volume, read_volume
from ...data_manifests.typed_json import load_json
from .geometry import Loaded
from .study import Series

_LIMIT_S = 600
_NUMBERS = (
    "MagneticFieldStrength",
    "EchoTime",
    "RepetitionTime",
    "InversionTime",
    "FlipAngle",
    "SliceThickness",
    "SpacingBetweenSlices",
    "PixelBandwidth",
    "EchoTrainLength",
    "ParallelReductionFactorInPlane",
)
_WORDS = {
    "Modality": {"MR"},
    "MRAcquisitionType": {"2D", "3D"},
    "Manufacturer": {"Siemens", "GE", "Philips", "Canon", "Toshiba", "UIH", "Hitachi", "Bruker", "Fujifilm"},
    "PulseSequenceType": {"MPRAGE", "MP2RAGE", "FLASH", "SPGR", "BRAVO", "TFE"},
    "ConversionSoftware": {"dcm2niix"},
}
"""Words that are kept: these fields are free text, and any may hold a name."""
_SAME_WITHIN_MM = 1e-2


def convert(series: Series, loaded: Loaded, scratch: Path) -> tuple[Volume, dict[str, Any]]:
    """Convert a series.

    Parameters
    ----------
    series : Series
    loaded : Loaded
    scratch : Path
        An empty folder, for copies of the images.

    Returns
    -------
    volume : Volume
        With the intensities of the scanner: whole numbers as int16 or int32, others as float32.
    about : dict
        Of its JSON file, with the names and units of BIDS.

    Raises
    ------
    UserError
        dcm2niix gives no volume, several, or another one than highdicom.
    """
    inputs, outputs = scratch / "in", scratch / "out"
    inputs.mkdir()
    outputs.mkdir()
    # Their own names may hold a name of a person, and decide nothing.
    for number, dataset in enumerate(loaded.datasets):
        dataset.save_as(inputs / f"{number:06}.dcm")
    options = ["-f", "scan", "-z", "n", "-b", "y", "-ba", "y", "-p", "n", "-l", "o", "-x", "n", "-w", "1"]
    command = [str(dcm2niix.bin), *options, "-o", str(outputs), str(inputs)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=_LIMIT_S)
    images = sorted(outputs.glob("*.nii"))
    if done.returncode != 0 or len(images) != 1:
        raise UserError(
            f"{series.label}: dcm2niix makes {len(images)} volumes of it (exit code {done.returncode}), expected one. "
            "Export the series again from the archive, or choose another one."
        )
    volume = read_volume(images[0])
    _require_equal(volume, loaded.volume, series.label)
    return volume.with_voxels(_stored(volume.voxels)), _about(load_json(outputs / "scan.json"))


def on_grid_of(volume: Volume, series: highdicom.Volume) -> np.ndarray:
    """Return the voxels of a volume in the order of a series on the same grid, without interpolation.

    Raises
    ------
    ValueError
        Another grid.
    """
    given = highdicom.Volume(
        volume.voxels, volume.affine, "PATIENT", series.frame_of_reference_uid, from_reference_convention="RAS"
    )
    turned = given.match_geometry(series.get_geometry(), tol=_SAME_WITHIN_MM)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in series.spatial_shape], [1], indexing="ij")).reshape(4, -1)
    if np.abs((turned.affine - series.affine) @ corners).max() > _SAME_WITHIN_MM:
        raise ValueError("the grids differ")
    return turned.array


def _require_equal(volume: Volume, series: highdicom.Volume, name: str) -> None:
    try:
        difference = float(np.abs(on_grid_of(volume, series) - series.array).max())
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{name}: dcm2niix and highdicom read it as volumes of different grids, expected the same. Export the "
            "series again from the archive, or choose another one."
        ) from error
    if difference > 1e-3 * max(float(np.abs(series.array).max()), 1e-12):
        raise UserError(
            f"{name}: dcm2niix and highdicom read different intensities (up to {difference:.3g} apart), expected the "
            "same. Export the series again from the archive, or choose another one."
        )


def _stored(voxels: np.ndarray) -> np.ndarray:
    if (voxels % 1 != 0).any() or np.abs(voxels).max() >= 2**24:
        return voxels
    return voxels.astype(np.int16 if np.abs(voxels).max() < 2**15 else np.int32)


def _about(given: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {name: given[name] for name in _NUMBERS if _is_number(given.get(name))}
    return kept | {name: given[name] for name, words in _WORDS.items() if given.get(name) in words}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
