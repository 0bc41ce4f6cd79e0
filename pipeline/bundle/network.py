"""A fitted model as a torch module, as a MONAI bundle names it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data_manifests.errors import plain_errors
from ..api import load_model


class AnomalyNetwork(torch.nn.Module):
    """Score prepared scans at each voxel of the template.

    Parameters
    ----------
    model : str or Path
        A packed model, or the output folder of the run that fitted it.
    device : torch.device or str
        Of the encoder; everything else is computed on the CPU.

    Attributes
    ----------
    model : AnomalyModel
    """

    def __init__(self, model: str | Path, device: torch.device | str = "cpu"):
        super().__init__()
        self.model = load_model(model, device=str(device))

    @property
    def in_channels(self) -> int:
        """The channels of the model, and the brain mask."""
        return len(self.model.source.channels.names) + 1

    def forward(self, image: torch.Tensor, *_: Any) -> torch.Tensor:
        """Score a batch.

        Parameters
        ----------
        image : Tensor, (B, C + 1, X, Y, Z), float32
            On the template grid: the channels of the model, in [0, 1] and 0 outside the brain, and the brain mask.
            `PrepareScand` makes it of a scan. Age and sex are taken as the controls' mean, if the model knows them.

        Returns
        -------
        Tensor, (B, 2, X, Y, Z), float32
            The z-scores, higher = more anomalous, 0 where there is none; and 1 where there is a score, 0 elsewhere.
        """
        images = torch.as_tensor(image).detach().cpu().numpy()
        scores = torch.from_numpy(np.stack([self._scored(own) for own in images]))
        return scores.to(image.device)

    def _scored(self, image: np.ndarray) -> np.ndarray:
        mask = self.model.mask
        with plain_errors():
            prediction = self.model.ensemble.predict(image[:-1], mask.transform(image[-1] > 0.5))
        both = (prediction.z, prediction.inside.astype(np.float32))
        return np.stack([mask.inverse_transform(values) for values in both])
