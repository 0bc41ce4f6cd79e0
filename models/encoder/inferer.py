"""Dense inference as a MONAI inferer, for MONAI's evaluators and workflows.

It is apart from `dense_inference` because MONAI takes seconds to import.
"""

from typing import Any

import torch
from monai.inferers.inferer import Inferer
from monai.utils.type_conversion import convert_to_dst_type

from ...preprocessing.patches.voxel_mask import VoxelMask
from .dense_inference import encode_densely
from .network import PatchEncoder


class DenseInferer(Inferer):
    """Latents at every voxel of a mask, as maps; see `encode_densely`.

    Parameters
    ----------
    mask : VoxelMask
    """

    def __init__(self, mask: VoxelMask):
        super().__init__()
        self.mask = mask

    def __call__(self, inputs: torch.Tensor, network: PatchEncoder, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Encode a batch on its device.

        Parameters
        ----------
        inputs : tensor or MetaTensor, (B, C, X, Y, Z)
            On the grid of the mask.
        network : PatchEncoder

        Returns
        -------
        tensor or MetaTensor, (B, latent_size, X, Y, Z), float32
            0 outside the mask.
        """
        maps = torch.zeros(len(inputs), network.latent_size, self.mask.brain_mask.size)
        inside = torch.from_numpy(self.mask.flat_index)
        for latent_maps, volume in zip(maps, inputs.as_subclass(torch.Tensor), strict=True):
            latent_maps[:, inside] = encode_densely(network, volume, self.mask, device=inputs.device).T
        return convert_to_dst_type(maps.unflatten(-1, self.mask.grid.size_vox), inputs, dtype=torch.float32)[0]
