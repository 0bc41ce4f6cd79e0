"""Small network that says how much a high score counts at a voxel of this kind.

Its inputs are the -log10 p of the scorers and the latents of the encoder, which tell the kind of tissue. Its output is
a factor of the combined -log10 p, between 1 / `LARGEST_FACTOR` and `LARGEST_FACTOR`.
"""

from dataclasses import dataclass

import numpy as np

LARGEST_FACTOR = 4.0
LARGEST_INPUT = 5.0
"""Standard deviations at which inputs are clipped: a network knows nothing beyond its training data."""
_VOXELS_AT_ONCE = 65_536


@dataclass(frozen=True, eq=False)
class Head:
    """Mean of M networks with one hidden layer.

    Attributes
    ----------
    centre, scale : ndarray, (d,), float32
        Of the inputs.
    hidden : ndarray, (M, d, h), float32
    hidden_bias : ndarray, (M, h), float32
    out : ndarray, (M, h), float32
    n_latents : int
        Inputs that are latents; they come last.
    """

    centre: np.ndarray
    scale: np.ndarray
    hidden: np.ndarray
    hidden_bias: np.ndarray
    out: np.ndarray
    n_latents: int

    def factor(self, values: np.ndarray, latents: np.ndarray | None) -> np.ndarray:
        """Factor of the combined -log10 p, (n,) float32.

        Parameters
        ----------
        values : ndarray, (K, n)
            -log10 p of the scorers, without weights.
        latents : ndarray, (n, L), or None
            NaN counts as the mean.
        """
        result = np.empty(values.shape[1], np.float32)
        for start in range(0, len(result), _VOXELS_AT_ONCE):
            block = slice(start, start + _VOXELS_AT_ONCE)
            own = None if latents is None or not self.n_latents else latents[block]
            inputs = self.standardised(head_inputs(values[:, block], own))
            summed = np.zeros(len(inputs), np.float32)
            for hidden, bias, out in zip(self.hidden, self.hidden_bias, self.out, strict=True):
                summed += np.tanh(inputs @ hidden + bias) @ out
            result[block] = np.exp(np.log(LARGEST_FACTOR) * np.tanh(summed / len(self.out)))
        return result

    def standardised(self, inputs: np.ndarray) -> np.ndarray:
        """Subtract the mean of inputs (n, d), divide by their standard deviation and clip."""
        return standardised(inputs, self.centre, self.scale)


def head_inputs(values: np.ndarray, latents: np.ndarray | None) -> np.ndarray:
    """Return the inputs (n, K + L) of a head, from the -log10 p (K, n) of the scorers and latents (n, L)."""
    scores = np.log1p(np.maximum(values.T, 0)).astype(np.float32)
    return scores if latents is None else np.concatenate([scores, latents.astype(np.float32)], axis=1)


def standardised(inputs: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Standardise inputs (n, d) as `Head.standardised` does."""
    return np.nan_to_num(np.clip((inputs - centre) / scale, -LARGEST_INPUT, LARGEST_INPUT), nan=0.0)
