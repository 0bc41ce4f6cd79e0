"""What a MONAI bundle does before and after the network: prepare a scan, and save its map on its own grid."""

import logging
import tempfile
from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import MapTransform
from monai.utils.enums import TraceKeys

from ...data_manifests.cohort.output_paths import OutputFolder
from ...data_manifests.cohort.single_scan import single_scan
from ...data_manifests.errors import plain_errors
from ...data_manifests.images.metatensor import as_metatensor
from ...models.anomaly.ensemble import Prediction
from ..model.anomaly_map import AnomalyMap
from ..model.anomaly_model import AnomalyModel
from ..model.prepared_scan import PreparedScan

_LOGGER = logging.getLogger(__name__)
_NO_CHANNELS = np.empty((0, 0, 0, 0), np.float32)


class PrepareScand(MapTransform, InvertibleTransform):
    """Prepare a scan as the controls of a model were, and refuse it where `voxout apply` would.

    Adds ``image``: MetaTensor (C + 1, X, Y, Z) on the template grid, the channels of the model and the brain mask. It
    remembers the way back to the scan, for `SaveAnomalyMapd`.

    Parameters
    ----------
    keys : str
        Path of the T1w. Those of a FLAIR and of a brain mask, if there are any, are in ``flair`` and ``brain_mask``.
    model : AnomalyModel
    image_key : str
    """

    def __init__(self, keys: KeysCollection, model: AnomalyModel, image_key: str = "image"):
        super().__init__(keys)
        self.model, self.image_key = model, image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the image; raises `SubjectError` if the scan cannot be prepared."""
        (key,) = self.keys
        flair, brain_mask = (Path(data[name]) if name in data else None for name in ("flair", "brain_mask"))
        with plain_errors(), tempfile.TemporaryDirectory(prefix="voxout-") as folder:
            (subject,) = single_scan(Path(data[key]), flair=flair, brain_mask=brain_mask)
            scan = self.model.prepare(subject, OutputFolder(Path(folder)))
        image = as_metatensor(np.concatenate([scan.channels, scan.brain.voxels[None]]), scan.brain.grid)
        # The channels are in the image.
        self.push_transform(image, extra_info={"scan": replace(scan, channels=_NO_CHANNELS)})
        return {**data, self.image_key: image}


class SaveAnomalyMapd(MapTransform):
    """Bring the scores of a scan to its own grid, and save them as `AnomalyMap.save` does.

    Parameters
    ----------
    keys : str
        The scores: what `AnomalyNetwork` returns for one scan.
    model : AnomalyModel
    output_dir : str or Path
    image_key : str
        The image that `PrepareScand` made.
    """

    def __init__(self, keys: KeysCollection, model: AnomalyModel, output_dir: str | Path, image_key: str = "image"):
        super().__init__(keys)
        self.model, self.output_dir, self.image_key = model, Path(output_dir), image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Save the map in ``output_dir/<key>``, and log what is doubtful about it."""
        (key,) = self.keys
        with plain_errors():
            found = self.map_of(data[self.image_key], data[key])
            found.save(self.output_dir / found.key)
        for warning in found.warnings:
            _LOGGER.warning("%s: %s", found.key, warning)
        return dict(data)

    def map_of(self, image: MetaTensor, scores: torch.Tensor) -> AnomalyMap:
        """Return the map of an image of `PrepareScand` and its scores (2, X, Y, Z)."""
        scan: PreparedScan = image.applied_operations[-1][TraceKeys.EXTRA_INFO]["scan"]
        z, scored = self.model.mask.transform(torch.as_tensor(scores).detach().cpu().numpy())
        return self.model.map_of(scan, Prediction(z, scored > 0.5))
