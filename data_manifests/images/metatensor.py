"""Conversion between arrays with a grid and MONAI's tensors. MONAI is imported when it is needed: it takes seconds."""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from .grid import Grid

if TYPE_CHECKING:
    from monai.data.meta_tensor import MetaTensor


def as_metatensor(voxels: np.ndarray, grid: Grid) -> "MetaTensor":
    """Return a copy of an array (C, X, Y, Z) as a MONAI tensor with the affine and form codes of a grid."""
    import torch
    from monai.data.meta_tensor import MetaTensor

    copy = np.array(voxels, voxels.dtype.newbyteorder("="), order="C")
    codes = {"qform_code": grid.qform_code, "sform_code": grid.sform_code}  # named as by MONAI's LoadImage
    return MetaTensor(torch.from_numpy(copy), affine=torch.tensor(grid.affine), meta=codes)


def from_metatensor(image: "MetaTensor") -> tuple[np.ndarray, Grid]:
    """Return a copy of the voxels (X, Y, Z) of a MONAI tensor and their grid; see `Volume.from_metatensor`."""
    if not hasattr(image, "applied_operations"):
        raise UserError("scan: found a tensor without an affine, expected a MONAI MetaTensor. Keep its metadata.")
    if image.pending_operations:
        raise UserError("MetaTensor: has transforms that are still pending, expected none. Apply them first.")
    if image.is_complex():
        raise UserError("MetaTensor: has complex values, expected real ones. Give the magnitude.")
    if image.ndim != 4 or len(image) != 1:
        raise UserError(f"MetaTensor: has the shape {tuple(image.shape)}, expected one channel, (1, X, Y, Z).")
    affine = image.affine.numpy().astype(np.float64)
    if image.meta.get("space") == "LPS":
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    if not np.isfinite(affine).all():
        raise UserError("MetaTensor: its affine is not finite, expected millimetres. Load the scan again.")
    tensor = image.as_tensor()[0].detach().cpu()
    # numpy has no bfloat16.
    voxels = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy().copy()
    codes = (np.ravel(image.meta.get(name, 1))[:1] for name in ("qform_code", "sform_code"))
    qform_code, sform_code = (int(code[0]) for code in codes)
    return voxels, Grid(voxels.shape, affine, qform_code, sform_code)
