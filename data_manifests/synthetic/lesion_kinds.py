"""Kinds of simulated lesions whose detection is measured, each with a strength that can be varied."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..images.volume import Volume
from .lesion_effects import Blur, Swelling
from .soft_shapes import SoftShape

_GRAIN_MM = 0.8


@dataclass(frozen=True, eq=False)
class Site:
    """Where a lesion is painted: a crop of an image around its shape.

    Attributes
    ----------
    image : Volume
        The crop, on the voxels of `shape`.
    shape : SoftShape
    contrast : float
        White minus grey matter, in the units of the image.
    magnified : float
        Length on the grid of the image to that in the head, as a template is larger than most brains.
    """

    image: Volume
    shape: SoftShape
    contrast: float
    magnified: float = 1.0


Change = Callable[[Site, float, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class LesionKind:
    """Kind of a lesion.

    Attributes
    ----------
    name, title : str
    strength : str
        What its strength is, with its unit.
    weakest, strongest : float
        Strengths that are painted, log-uniformly.
    usual : float
        Strength at which limits are given.
    in_words : str
        A lesion of strength ``{}``, for a sentence.
    change : callable
        ``change(site, strength, random)``: the voxels of the site with the lesion, (x, y, z) float32.
    on_border : bool
        Whether it lies at the border of grey and white matter, where alone it can be seen.
    """

    name: str
    title: str
    strength: str
    weakest: float
    strongest: float
    usual: float
    in_words: str
    change: Change
    on_border: bool = False


def _darker(site: Site, strength: float, random: np.random.Generator) -> np.ndarray:
    return _shifted(site, -strength)


def _brighter(site: Site, strength: float, random: np.random.Generator) -> np.ndarray:
    return _shifted(site, strength)


def _shifted(site: Site, strength: float) -> np.ndarray:
    return site.image.voxels + np.float32(strength * site.contrast) * site.shape.sampled(site.shape.fine)


def _textured(site: Site, strength: float, random: np.random.Generator) -> np.ndarray:
    noise = site.shape.noise(random, _GRAIN_MM * site.magnified)
    return site.image.voxels + np.float32(strength * site.contrast) * site.shape.sampled(site.shape.fine * noise)


def _blurred(site: Site, strength: float, random: np.random.Generator) -> np.ndarray:
    return Blur(strength * site.magnified).painted(site.image, site.shape.sampled(site.shape.fine))


def _thickened_or_thinned(site: Site, strength: float, random: np.random.Generator) -> np.ndarray:
    growth = strength if random.random() < 0.5 else -strength / (1 + strength)
    return Swelling(growth).painted(site.image, site.shape.sampled(site.shape.fine))


_OF_CONTRAST, _OF_IT = "share of the grey–white contrast", "of the grey–white contrast"
KINDS: Mapping[str, LesionKind] = {
    kind.name: kind
    for kind in (
        LesionKind("dark", "Dark", _OF_CONTRAST, 0.25, 1.5, 0.5, f"dark, by {{}} {_OF_IT}", _darker),
        LesionKind("bright", "Bright", _OF_CONTRAST, 0.25, 1.0, 0.5, f"bright, by {{}} {_OF_IT}", _brighter),
        LesionKind(
            "blurred",
            "Blurred border",
            "blur in mm",
            1.5,
            4.0,
            2.5,
            "blurred border, by {} mm",
            _blurred,
            on_border=True,
        ),
        LesionKind(
            "texture", "Texture", f"amplitude, {_OF_CONTRAST}", 0.2, 0.8, 0.5, f"texture, of {{}} {_OF_IT}", _textured
        ),
        LesionKind(
            "swollen",
            "Thickened or thinned",
            "growth",
            0.3,
            1.5,
            1.0,
            "thickened or thinned, by a growth of {}",
            _thickened_or_thinned,
            on_border=True,
        ),
    )
}
"""Kinds by name."""
