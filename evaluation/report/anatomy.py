"""Approximate anatomical labels of points in MNI space, from data included in nilearn (no download).

nilearn includes no lobe atlas, but two published lists of named points: 160 points of Dosenbach et al. (Science 2010)
in the cortex and cerebellum, and the subcortical points of Seitzman et al. (NeuroImage 2020). A point is labelled by
the nearest of them.
"""

import csv
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ...data_manifests.errors import UserError
from ...data_manifests.images.volume import Volume

MIDLINE_MM = 3.0
"""Points closer to the mid-sagittal plane are labelled "midline"."""
FARTHEST_MM = 20.0
"""Maximum distance of a named point used as a label."""

_NAMES = {
    "ACC": "anterior cingulate", "dACC": "dorsal anterior cingulate", "post cingulate": "posterior cingulate",
    "IPL": "inferior parietal", "IPS": "intraparietal sulcus", "SMA": "supplementary motor area",
    "pre-SMA": "pre-supplementary motor area", "TPJ": "temporo-parietal junction",
    "aPFC": "anterior prefrontal", "vent aPFC": "ventral anterior prefrontal", "dlPFC": "dorsolateral prefrontal",
    "mPFC": "medial prefrontal", "vmPFC": "ventromedial prefrontal", "vlPFC": "ventrolateral prefrontal",
    "vPFC": "ventral prefrontal", "dFC": "dorsal frontal", "mFC": "medial frontal", "vFC": "ventral frontal",
    "sup frontal": "superior frontal", "sup parietal": "superior parietal", "post parietal": "posterior parietal",
    "sup temporal": "superior temporal", "inf temporal": "inferior temporal", "post occipital": "posterior occipital",
    "ant insula": "anterior insula", "mid insula": "middle insula", "post insula": "posterior insula",
    "inf cerebellum": "inferior cerebellum", "lat cerebellum": "lateral cerebellum",
    "med cerebellum": "medial cerebellum",
}  # fmt: skip
_SUBCORTICAL = {3: "hippocampus", 4: "amygdala", 5: "basal ganglia", 6: "thalamus"}


@dataclass(frozen=True)
class Place:
    """Anatomical label of a point.

    Attributes
    ----------
    side : {"left", "right", "midline"}
        Side of the patient.
    tissue : {"grey matter", "white matter", "fluid", "outside the brain"}
        Most probable tissue of the template at this point.
    region : str or None
        Nearest named point; None if it is farther away than `FARTHEST_MM`.
    """

    side: str
    tissue: str
    region: str | None


def place_of(point_mm: np.ndarray, grey: Volume, white: Volume) -> Place:
    """Label a point in MNI space.

    Parameters
    ----------
    point_mm : array, (3,)
        RAS+ mm: x increases to the patient's right.
    grey, white : Volume
        Tissue probabilities of the template, 0 to 1, on one grid.
    """
    point = np.asarray(point_mm, dtype=np.float64)
    x = float(point[0])
    side = "midline" if abs(x) < MIDLINE_MM else "right" if x > 0 else "left"
    names, places = _named_points()
    distances = np.linalg.norm(places - point, axis=1)
    nearest = int(distances.argmin())
    region = names[nearest] if distances[nearest] <= FARTHEST_MM else None
    return Place(side, _tissue_at(point, grey, white), region)


def _tissue_at(point: np.ndarray, grey: Volume, white: Volume) -> str:
    index = np.round(np.linalg.inv(grey.affine)[:3] @ np.append(point, 1)).astype(int)
    if (index < 0).any() or (index >= grey.voxels.shape).any():
        return "outside the brain"
    at = tuple(index)
    in_grey, in_white = float(grey.voxels[at]), float(white.voxels[at])
    shares = {"grey matter": in_grey, "white matter": in_white, "fluid": 1 - in_grey - in_white}
    return max(shares, key=lambda tissue: shares[tissue])


@cache
def _named_points() -> tuple[tuple[str, ...], np.ndarray]:
    spec = importlib.util.find_spec("nilearn")
    folder = Path(spec.origin).parent / "datasets" / "data" if spec and spec.origin else Path("nilearn")
    names: list[str] = []
    places: list[list[float]] = []
    try:
        with (folder / "dosenbach_2010.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                names.append(_NAMES.get(row["name"], row["name"]))
                places.append([float(row[axis]) for axis in "xyz"])
        points = (folder / "seitzman_2018_ROIs_300inVol_MNI_allInfo.txt").read_text().splitlines()[1:]
        kinds = (folder / "seitzman_2018_ROIs_anatomicalLabels.txt").read_text().splitlines()[1:]
        for line, kind in zip(points, kinds, strict=True):
            if int(kind) in _SUBCORTICAL:
                names.append(_SUBCORTICAL[int(kind)])
                places.append([float(value) for value in line.split()[:3]])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            "The installed nilearn does not hold the named points of Dosenbach 2010 and Seitzman 2018, expected "
            "nilearn 0.12 to 0.14. Install one of these."
        ) from error
    return tuple(names), np.array(places)
