"""The one-class SVM: exact dual solver, voxel-wise detectors, and the differentiable guidance loss.

>>> import torch
>>> from voxout import ocsvm
>>> latents = torch.randn(8, 20, 4, dtype=torch.float64, requires_grad=True)    # 8 voxels, 20 controls, 4 numbers
>>> loss = ocsvm.guidance_loss(latents[:, :10], latents[:, 10:], nu=0.2, gamma=0.1)
>>> loss.sum().backward()
>>> latents.grad.shape
torch.Size([8, 20, 4])
"""

from .models.ocsvm.dual import DualSolution, solve_dual
from .models.ocsvm.guidance_loss import guidance_loss
from .models.ocsvm.voxelwise import DetectorField, fit_detectors

__all__ = ["DetectorField", "DualSolution", "fit_detectors", "guidance_loss", "solve_dual"]
