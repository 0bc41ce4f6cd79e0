"""Voxels of a labelled patient from which a combination of scorers is learnt."""

from dataclasses import dataclass

import numpy as np

MOST_LESION_VOXELS = 20_000
HIGHEST, DRAWN = 20_000, 20_000
"""Healthy voxels with the highest values, all of which are kept, and those drawn from the others."""


@dataclass(frozen=True, eq=False)
class LabelledVoxels:
    """Voxels of one patient.

    Attributes
    ----------
    participant : str
    values : ndarray, (K, n), float32
        -log10 p of each scorer.
    latents : ndarray, (n, L), float32, or None
    lesion : ndarray of bool, (n,)
    counts : ndarray, (n,), float64
        Number of voxels of the brain that each stands for.
    """

    participant: str
    values: np.ndarray
    latents: np.ndarray | None
    lesion: np.ndarray
    counts: np.ndarray

    @classmethod
    def draw(
        cls,
        participant: str,
        values: np.ndarray,
        latents: np.ndarray | None,
        lesion: np.ndarray,
        inside: np.ndarray,
        order: np.ndarray,
        random: np.random.Generator,
    ) -> "LabelledVoxels":
        """Choose voxels: lesions, the healthy voxels that look most unusual, and some of the others.

        Parameters
        ----------
        participant : str
        values : ndarray, (K, P)
        latents : ndarray, (P, L), or None
        lesion, inside : ndarray of bool, (P,)
            Voxels in lesions; scored voxels.
        order : ndarray, (P,)
            Value by which healthy voxels look unusual, such as the map of the model.
        random : Generator
        """
        sick, healthy = np.flatnonzero(lesion & inside), np.flatnonzero(~lesion & inside)
        healthy = healthy[np.argsort(-order[healthy], kind="stable")]
        highest, others = healthy[:HIGHEST], healthy[HIGHEST:]
        chosen, counts = [highest], [np.ones(len(highest))]
        for voxels, most in ((others, DRAWN), (sick, MOST_LESION_VOXELS)):
            drawn = random.choice(voxels, min(most, len(voxels)), replace=False)
            chosen.append(drawn)
            counts.append(np.full(len(drawn), len(voxels) / max(len(drawn), 1)))
        index = np.concatenate(chosen)
        return cls(
            participant,
            values[:, index].astype(np.float32),
            None if latents is None else latents[index].astype(np.float32),
            lesion[index],
            np.concatenate(counts),
        )

    def fewer(self, most: int, random: np.random.Generator) -> "LabelledVoxels":
        """Return at most `most` lesion voxels, and as many of the healthy ones, drawn at random.

        What they stand for is right on average.
        """
        chosen, counts = [], self.counts.copy()
        for part in (np.flatnonzero(self.lesion), np.flatnonzero(~self.lesion)):
            drawn = random.choice(part, min(most, len(part)), replace=False)
            counts[drawn] *= len(part) / max(len(drawn), 1)
            chosen.append(drawn)
        index = np.concatenate(chosen)
        latents = None if self.latents is None else self.latents[index]
        return LabelledVoxels(self.participant, self.values[:, index], latents, self.lesion[index], counts[index])


def average_precision(scores: np.ndarray, lesion: np.ndarray, counts: np.ndarray) -> float:
    """Average precision of scores (n,), where each voxel counts `counts` times; equal scores form one step."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum((counts * lesion)[order])
    flagged = np.cumsum(counts[order])
    last = np.append(np.diff(scores[order]) != 0, True)
    hits, flagged = hits[last], flagged[last]
    return float(np.sum(np.diff(hits, prepend=0) * hits / flagged) / hits[-1])
