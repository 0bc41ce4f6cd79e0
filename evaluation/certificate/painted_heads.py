"""Results of one healthy head: its false clusters, and which of the lesions painted into it were found."""

import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.typed_json import Content, read_json
from ..metrics.components import Lesions


class TriedLesion(Content):
    """A painted lesion, and whether it was found.

    Attributes
    ----------
    copy_number : int
        Copy of the head that it was painted into, from 1.
    kind : str
        Name in `KINDS`.
    ml : float
        Volume in the head, not on the template.
    strength : float
        In the unit of its kind.
    x_mm, y_mm, z_mm : float
        Its centre, in RAS+ mm of the template.
    lobe : str
        At its centre; "elsewhere" far from all regions.
    tissue : str
        "grey matter", "white matter" or "both".
    found : bool
        Whether a cluster at the threshold touches it, as in ``lesions.csv`` of the scores.
    highest_score : float
        Of its voxels.
    """

    copy_number: Annotated[int, Field(ge=1)]
    kind: str
    ml: Annotated[float, Field(gt=0)]
    strength: Annotated[float, Field(gt=0)]
    x_mm: float
    y_mm: float
    z_mm: float
    lobe: str
    tissue: str
    found: bool
    highest_score: float


class PaintedHead(Content):
    """A healthy head that lesions were painted into.

    Attributes
    ----------
    key, participant : str
    false_clusters : int
        Clusters at the threshold in the head itself.
    lesions : tuple of TriedLesion
    left_out : int
        Lesions that no suitable place was found for.
    """

    format: Literal["voxout painted head 1"] = "voxout painted head 1"
    key: str
    participant: str
    false_clusters: Annotated[int, Field(ge=0)]
    lesions: tuple[TriedLesion, ...]
    left_out: Annotated[int, Field(ge=0)] = 0

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.model_dump(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> "PaintedHead":
        """Load what `save` wrote.

        Raises
        ------
        UserError
            The file is missing or damaged.
        """
        return read_json(path, cls, "the lesions painted into a head", "Delete it and run `voxout certify` again.")


def found_lesions(clusters: Lesions, smallest_voxels: int, labels: np.ndarray, number: int) -> np.ndarray:
    """Return which lesions a cluster touches, (number,) bool.

    Parameters
    ----------
    clusters : Lesions
        Components of the map at its threshold.
    smallest_voxels : int
        Smaller components are no clusters.
    labels : ndarray of int32, (X, Y, Z)
        Number of the lesion, from 1; 0 outside.
    number : int
        Of lesions.
    """
    # Components are numbered in descending order of size.
    counted = sum(cluster.voxels >= smallest_voxels for cluster in clusters.lesions)
    touched = labels[(clusters.labels > 0) & (clusters.labels <= counted)]
    return np.bincount(touched, minlength=number + 1)[1:] > 0
