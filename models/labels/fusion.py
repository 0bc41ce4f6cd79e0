"""A learnt combination of scorers: their weights, and a head if there is one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..tensor_file import opened_tensors, write_tensors
from .head import Head

FILE = "fusion.safetensors"
_OF_HEAD = ("centre", "scale", "hidden_bias", "out")


@dataclass(frozen=True, eq=False)
class Fusion:
    """Weights of the scorers, and a head.

    Attributes
    ----------
    names : tuple of K str
        Scorers, in the order of the ensemble.
    weights : ndarray, (K,), float64
        Above 0.
    patients : int
        Labelled participants that it was learnt from.
    head : Head or None
    """

    names: tuple[str, ...]
    weights: np.ndarray
    patients: int
    head: Head | None = None

    @property
    def needs_latents(self) -> bool:
        """Whether the head uses the latents of the encoder."""
        return self.head is not None and self.head.n_latents > 0

    def weighted(self, neg_log10_ps: Iterable[np.ndarray]) -> list[np.ndarray]:
        """Multiply the -log10 p of each scorer by its weight."""
        return [weight * values for weight, values in zip(self.weights, neg_log10_ps, strict=True)]

    def factor(self, neg_log10_ps: Iterable[np.ndarray], latents: np.ndarray | None) -> np.ndarray | float:
        """Factor of the combined values, (P,); 1 without a head."""
        return 1.0 if self.head is None else self.head.factor(np.stack([*neg_log10_ps]), latents)

    def save(self, path: Path) -> Path:
        """Write one safetensors file, atomically."""
        tensors, metadata = {"weights": self.weights}, {"names": " ".join(self.names), "patients": str(self.patients)}
        if self.head is not None:
            tensors |= {name: getattr(self.head, name) for name in (*_OF_HEAD, "hidden")}
            metadata["latents"] = str(self.head.n_latents)
        return write_tensors(path, tensors, **metadata)

    @classmethod
    def load(cls, path: Path, names: Sequence[str]) -> "Fusion":
        """Load a saved combination of the scorers with these names.

        Raises
        ------
        UserError
            The file is missing, damaged, or of other scorers.
        """
        with opened_tensors(path, "learnt combination of these scorers") as file:
            weights = file.array("weights", "float64", 1)
            if file.metadata["names"].split(" ") != list(names) or len(weights) != len(names) or weights.min() <= 0:
                raise ValueError(f"its scorers are {file.metadata['names']}, with {len(weights)} weights")
            patients = round(file.number("patients"))
            if "latents" not in file.metadata:
                return cls(tuple(names), weights, patients)
            axes = {"centre": 1, "scale": 1, "hidden_bias": 2, "out": 2}
            parts = {name: file.array(name, "float32", axes[name]) for name in _OF_HEAD}
            head = Head(hidden=file.array("hidden", "float32", 3), n_latents=int(file.metadata["latents"]), **parts)
            n_networks, d, width = head.hidden.shape
            shapes = [part.shape for part in parts.values()]
            if shapes != [(d,), (d,), (n_networks, width), (n_networks, width)] or d != len(names) + head.n_latents:
                raise ValueError(f"its arrays have the shapes {shapes} and {head.hidden.shape}")
            if head.n_latents < 0 or head.scale.min() <= 0:
                raise ValueError("a scale is not above 0")
            return cls(tuple(names), weights, patients, head)


def read_patients(path: Path) -> int:
    """Read the number of labelled participants from a saved combination.

    Raises
    ------
    UserError
        The file is damaged.
    """
    with opened_tensors(path, "learnt combination of scorers") as file:
        return round(file.number("patients"))
