"""Synthetic heads: individual anatomy, image contrast, bias field and noise, with ground truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..images.volume import Volume
from ..terms import Modality
from .lesion_effects import Shift
from .painted_lesions import paint_lesion
from .phantom_anatomy import BrainMaps, Part, brain_maps, head_solids, layered_head
from .phantom_fields import Warp, apply_affine, random_grid, random_warp, smooth_noise
from .phantom_lesions import PhantomLesion, PlannedLesion, plan_lesions

_HEAD_VIEW_MM = ((-98, 98), (-126, 132), (-144, 102))
_BRAIN_VIEW_MM = ((-88, 88), (-116, 92), (-88, 96))
_SOFTNESS_MM = 1.0


@dataclass(frozen=True)
class Contrast:
    """Tissue intensities of one modality, relative to a bright brain tissue at about 1."""

    white: float
    grey: float
    fluid: float
    parts: Mapping[Part, float]
    detail: float
    """Weight of the T1w detail of the template (see `BrainMaps.detail`)."""
    lesion: float
    """Intensity change of a lesion of strength 1, in multiples of |white - grey|."""


CONTRASTS: Mapping[Modality, Contrast] = {
    "t1w": Contrast(
        white=1.0,
        grey=0.70,
        fluid=0.24,
        parts={
            Part.AIR: 0.0,
            Part.FLUID: 0.22,
            Part.BONE: 0.07,
            Part.MARROW: 0.80,
            Part.FAT: 1.35,
            Part.SKIN: 0.75,
            Part.MUSCLE: 0.55,
            Part.CORD: 0.85,
            Part.CAPSULE: 1.6,
        },
        detail=0.8,
        lesion=-1.0,
    ),
    "flair": Contrast(
        white=0.62,
        grey=0.80,
        fluid=0.14,
        parts={
            Part.AIR: 0.0,
            Part.FLUID: 0.12,
            Part.BONE: 0.06,
            Part.MARROW: 0.60,
            Part.FAT: 1.05,
            Part.SKIN: 0.70,
            Part.MUSCLE: 0.42,
            Part.CORD: 0.66,
            Part.CAPSULE: 1.2,
        },
        detail=0.0,
        lesion=2.0,
    ),
}


@dataclass(frozen=True, eq=False)
class Phantom:
    """Synthetic head and its ground truth, all on one grid.

    Attributes
    ----------
    images : mapping from modality to Volume
        float32, whole numbers, not below 0.
    brain_mask : Volume
        bool.
    grey, white, fluid : Volume
        Tissue probabilities, float32, without lesions; their sum is 1 inside the brain.
    lesion_mask : Volume or None
        bool; None without lesions.
    lesions : tuple of PhantomLesion
    warp : Warp
    white_intensity : mapping from modality to float
        Intensity of white matter before bias field and noise.
    noise_sigma : mapping from modality to float
        Standard deviation of the noise in the real and the imaginary channel of the magnitude image.
    age : float
        Years; the fluid volume increases with age.
    """

    images: Mapping[Modality, Volume]
    brain_mask: Volume
    grey: Volume
    white: Volume
    fluid: Volume
    lesion_mask: Volume | None
    lesions: tuple[PhantomLesion, ...]
    warp: Warp
    white_intensity: Mapping[Modality, float]
    noise_sigma: Mapping[Modality, float]
    age: float


def make_head(
    seed: int,
    *,
    spacing_mm: float,
    lesions: int = 0,
    modalities: Sequence[Modality] = ("t1w", "flair"),
    skull: bool = True,
) -> Phantom:
    """Make one head. The result is reproducible bit by bit for the same arguments.

    Anatomy, scanner and lesions use separate random streams: the same seed with and without lesions gives the same
    head with the same noise.

    Parameters
    ----------
    seed : int
        Not negative.
    spacing_mm : float
        Edge length of the voxels.
    lesions : int
        Number of lesions, alternately across the grey-white border and in deep white matter.
    modalities : sequence of {"t1w", "flair"}
    skull : bool
        False gives a skull-stripped brain: 0 outside the brain, on a smaller grid.
    """
    anatomy, tissue, place, paint, *scans = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4 + len(CONTRASTS))
    )
    age = float(np.round(anatomy.uniform(20, 75), 1))
    warp = random_warp(anatomy)
    grid = random_grid(place, spacing_mm, _HEAD_VIEW_MM if skull else _BRAIN_VIEW_MM)
    points = warp(apply_affine(grid.affine, np.indices(grid.size_vox, dtype=np.float32)))
    brain, tissues, detail = _individual_brain(points, brain_maps(spacing_mm), spacing_mm, age, tissue)
    brain_mask = brain >= 0.5
    head = _individual_head(anatomy) if skull else None
    planned = plan_lesions(lesions, tissues, points, brain_mask, grid, paint)

    images: dict[Modality, Volume] = {}
    white_intensity: dict[Modality, float] = {}
    noise_sigma: dict[Modality, float] = {}
    masks: list[np.ndarray] = []
    for (modality, usual), scan in zip(CONTRASTS.items(), scans, strict=True):
        if modality not in modalities:
            continue
        contrast, scale = _scan_contrast(usual, scan)
        signal = tissues[0] * contrast.grey + tissues[1] * contrast.white + tissues[2] * contrast.fluid
        signal += contrast.detail * detail
        signal *= 1 + 0.02 * smooth_noise(grid.size_vox, 2.0 / spacing_mm, scan)
        signal *= brain
        if head is not None:
            signal += (1 - brain) * _sample_head(*head, contrast, points)
        healthy = Volume((signal * scale).astype(np.float32), grid)
        full_change = contrast.lesion * abs(contrast.white - contrast.grey) * scale
        painted, masks = _with_lesions(healthy, planned, full_change)
        sigma = scan.uniform(0.02, 0.035) * contrast.white * scale
        voxels = _scanned(painted.voxels, sigma, spacing_mm, scan)
        images[modality] = Volume(voxels if skull else np.where(brain_mask, voxels, 0), grid)
        white_intensity[modality] = contrast.white * scale
        noise_sigma[modality] = sigma

    return Phantom(
        images=images,
        brain_mask=Volume(brain_mask, grid),
        grey=Volume(tissues[0], grid),
        white=Volume(tissues[1], grid),
        fluid=Volume(tissues[2], grid),
        lesion_mask=Volume(np.logical_or.reduce(masks), grid) if lesions else None,
        lesions=tuple(
            PhantomLesion(p.place, p.centre_mm, float(mask.sum() * grid.voxel_volume_mm3 / 1000), p.strength)
            for p, mask in zip(planned, masks, strict=True)
        ),
        warp=warp,
        white_intensity=white_intensity,
        noise_sigma=noise_sigma,
        age=age,
    )


def _individual_brain(
    points: np.ndarray, maps: BrainMaps, spacing_mm: float, age: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample the tissue maps with an individual folding of the cortex.

    Returns
    -------
    brain : ndarray, (X, Y, Z)
        Probability of brain.
    tissues : ndarray, (3, X, Y, Z)
        Grey, white, fluid; their sum is 1 near the brain and 0 elsewhere.
    detail : ndarray, (X, Y, Z)
    """
    size_vox = points.shape[1:]
    # Smooth noise shifts the tissue borders, so that the folds differ between heads.
    shifts = [0.5 * smooth_noise(size_vox, 4.0 / spacing_mm, rng) for _ in range(2)]
    index = apply_affine(np.linalg.inv(maps.affine), points)
    edge = np.array(maps.brain.shape).reshape(3, 1, 1, 1)
    near = ((index > -1) & (index < edge)).all(axis=0)
    index = index[:, near]
    sampled = [
        ndimage.map_coordinates(each, index, order=1).astype(np.float32)
        for each in (maps.brain, maps.grey, maps.white, maps.detail)
    ]
    inside = sampled[0] > 0.01
    share, grey, white, sampled_detail = (each[inside] for each in sampled)
    fluid = np.maximum(share - grey - white, 0)
    # Group maps are blurred compared to individual tissues: sharpen the odds. Fluid increases with age.
    odds = np.stack([grey, white, fluid]) + 0.01
    odds **= 1.6
    shift_grey, shift_fluid = (each[near][inside] for each in shifts)
    odds[0] *= np.exp(shift_grey)
    odds[2] *= np.exp(shift_fluid + 0.012 * (age - 45))
    odds /= odds.sum(axis=0)

    where = np.flatnonzero(near)[inside]
    brain = np.zeros(size_vox, dtype=np.float32)
    tissues = np.zeros((3, *size_vox), dtype=np.float32)
    detail = np.zeros(size_vox, dtype=np.float32)
    brain.flat[where] = share
    detail.flat[where] = sampled_detail
    for filled, values in zip(tissues, odds, strict=True):
        filled.flat[where] = values
    return np.clip(brain, 0, 1), tissues, detail


def _individual_head(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    size_vox = head_solids().grid.size_vox
    extra_skull_mm = rng.uniform(-1, 2) + 0.8 * smooth_noise(size_vox, 10, rng)
    streaks = smooth_noise(size_vox, 1.2, rng)
    return layered_head(extra_skull_mm), streaks


def _sample_head(parts: np.ndarray, streaks: np.ndarray, contrast: Contrast, points: np.ndarray) -> np.ndarray:
    """Return the intensities outside the brain."""
    signal = np.array([contrast.parts[part] for part in Part], dtype=np.float32)[parts]
    signal *= 1 + 0.12 * streaks
    signal = ndimage.gaussian_filter(signal, 0.4)
    index = apply_affine(np.linalg.inv(head_solids().grid.affine), points)
    return ndimage.map_coordinates(signal, index, order=1, mode="constant")


def _scan_contrast(usual: Contrast, rng: np.random.Generator) -> tuple[Contrast, float]:
    """Return a random variation of the contrast, and the white matter intensity in scanner units."""
    grey = usual.grey + 0.12 * (usual.white - usual.grey) * rng.uniform(-1, 1)
    fluid = usual.fluid * rng.uniform(0.85, 1.15)
    parts = {part: value * rng.uniform(0.88, 1.12) for part, value in usual.parts.items()}
    return Contrast(usual.white, grey, fluid, parts, usual.detail, usual.lesion), float(rng.uniform(500, 900))


def _with_lesions(
    image: Volume, planned: Sequence[PlannedLesion], full_change: float
) -> tuple[Volume, list[np.ndarray]]:
    """Paint the lesions; return the image and one lesion mask for each."""
    masks = []
    for lesion in planned:
        shape = image.with_voxels(lesion.shape)
        painted = paint_lesion(image, shape, Shift(lesion.strength * full_change), softness_mm=_SOFTNESS_MM)
        image = painted.image
        masks.append(painted.lesion_mask.voxels)
    return image, masks


def _scanned(signal: np.ndarray, sigma: float, spacing_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Add a bias field and Rician noise, and round to integers as scanners do."""
    coarse = tuple(max(2, int(np.ceil(n * spacing_mm / 16))) for n in signal.shape)
    field = smooth_noise(coarse, 3.5, rng)
    bias = np.exp(0.10 * ndimage.zoom(field, np.divide(signal.shape, coarse), order=1, grid_mode=True, mode="nearest"))
    real = signal * bias + sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.rint(np.hypot(real, imaginary)).astype(np.float32)
