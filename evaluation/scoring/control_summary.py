"""What a model's training controls look like under the model: to say how a patient relates to them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Annotated

import numpy as np
from pydantic import Field

from ...data_manifests.typed_json import Content

P001_Z = 3.09
"""z-score that one healthy voxel in a thousand exceeds."""
_AGE_STEP = 5
"""Years; ages are rounded outwards, since the youngest and the oldest age are those of single persons."""
LATER_FIELDS = ("females", "males", "sites", "latent_distances")
"""Fields that files of before lack."""

Share = Annotated[float, Field(ge=0, le=1)]


class StoredSummary(Content):
    """The same in the file of the operating point."""

    clusters: tuple[Annotated[int, Field(ge=0)], ...]
    shares_above: tuple[Share, ...]
    ages: tuple[float, float] | None
    spacing_mm: tuple[float, float] | None
    females: Annotated[int, Field(ge=0)] | None = None
    males: Annotated[int, Field(ge=0)] | None = None
    sites: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    latent_distances: tuple[Annotated[float, Field(ge=0)], ...] | None = None


@dataclass(frozen=True)
class ControlSummary:
    """Null maps of the training controls, in ascending order of each number.

    Attributes
    ----------
    clusters : tuple of int
        Number of clusters at the threshold of each control.
    shares_above : tuple of float
        Share of the voxels of each control above `P001_Z`.
    ages : tuple of (float, float) or None
        Range in years, rounded outwards to multiples of five; None if no age is known.
    spacing_mm : tuple of (float, float) or None
        Shortest and longest edge of a voxel in any scan.
    females, males : int or None
        Scans of women and men; None if no sex is known, or for models fitted before it was stored.
    sites : tuple of int or None
        Number of scans of each site, the largest first, without names; None as above.
    latent_distances : tuple of float or None
        Distance of the latents of each control from those of the others, the smallest first; None as above, and for
        models without an encoder.
    """

    clusters: tuple[int, ...]
    shares_above: tuple[float, ...]
    ages: tuple[float, float] | None = None
    spacing_mm: tuple[float, float] | None = None
    females: int | None = None
    males: int | None = None
    sites: tuple[int, ...] | None = None
    latent_distances: tuple[float, ...] | None = None

    @classmethod
    def of(
        cls,
        clusters: Sequence[int],
        shares_above: Sequence[float],
        ages: Sequence[float | None],
        spacings_mm: Sequence[np.ndarray],
        sexes: Sequence[str | None] = (),
        sites: Sequence[str | None] = (),
        latent_distances: Sequence[float] = (),
    ) -> "ControlSummary":
        """Summarise controls; see the attributes. Unknown ages, sexes and sites are left out."""
        known = [age for age in ages if age is not None]
        sexes_known = [letter for sex in sexes if (letter := (sex or "").strip().lower()[:1]) in ("f", "m")]
        edges = [float(edge) for spacing in spacings_mm for edge in spacing]
        return cls(
            tuple(sorted(int(number) for number in clusters)),
            # Digits that identify no map.
            tuple(sorted(round(float(share), 5) for share in shares_above)),
            (
                float(floor(min(known) / _AGE_STEP) * _AGE_STEP),
                float(ceil(max(known) / _AGE_STEP) * _AGE_STEP),
            )
            if known
            else None,
            (round(min(edges), 2), round(max(edges), 2)) if edges else None,
            sexes_known.count("f") if sexes_known else None,
            sexes_known.count("m") if sexes_known else None,
            tuple(sorted(Counter(site for site in sites if site).values(), reverse=True)) or None,
            tuple(sorted(latent_distances)) or None,
        )
