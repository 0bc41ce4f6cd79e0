"""Scorer that a network has learnt from edited controls."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special

from ...preprocessing.patches.voxel_mask import VoxelMask
from ..features.whitening import load_whitening
from ..tensor_file import opened_tensors, write_tensors
from .context import Context
from .network import EditClassifier
from .norm import Norm

_WHITENING, _NETWORKS = "whitening.safetensors", "networks.safetensors"


@dataclass(frozen=True, eq=False)
class LearnedScorer:
    """How likely each voxel is edited, from the deviations of all channels and their `Context`.

    Attributes
    ----------
    context : Context
    networks : tuple of EditClassifier
        One per fold of the controls; their logits are averaged.
    """

    context: Context
    networks: Sequence[EditClassifier]

    def score(self, features: np.ndarray, *, inside: np.ndarray, jobs: int | None = None) -> np.ndarray:
        """Score the channels (P, C) of one subject, (P,) float32; higher = more anomalous."""
        inputs = self.context.compute(features, self.context.norm.deviations(features), inside)
        return score_of(np.mean([network.logits(inputs) for network in self.networks], axis=0))

    def save(self, folder: Path) -> None:
        """Write the whitening and the networks to a folder."""
        self.context.norm.whitening.save(folder / _WHITENING)
        arrays = {
            f"{number}.{name}": value
            for number, network in enumerate(self.networks)
            for name, value in network.arrays().items()
        }
        numbers = {"networks": str(len(self.networks)), "modalities": str(self.context.n_modalities)}
        write_tensors(folder / _NETWORKS, arrays, **numbers)

    @classmethod
    def load(cls, folder: Path, mask: VoxelMask, size: int) -> "LearnedScorer":
        """Load a saved scorer of so many channels.

        Raises
        ------
        UserError
            A file is missing, damaged, or was fitted on another brain mask.
        """
        norm = Norm(load_whitening(folder / _WHITENING, mask))
        with opened_tensors(folder / _NETWORKS, "networks of the learned scorer") as file:
            if norm.mean.shape[1] != size:
                raise ValueError(f"a whitening of {norm.mean.shape[1]} channels does not match {size} channels")
            context = Context(mask, norm, round(file.number("modalities")))
            networks = [
                EditClassifier.read(file, f"{number}.", context.size)
                for number in range(round(file.number("networks")))
            ]
        return cls(context, networks)


def score_of(logits: np.ndarray) -> np.ndarray:
    """Score of a logit, log(1 + exp(logit)): near 0 where nothing is unusual, so that its scale is that of the rest."""
    return special.log1p(np.exp(np.minimum(logits, 30))).astype(np.float32)
