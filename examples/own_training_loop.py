"""The guidance loss in a training loop of one's own.

    python examples/own_training_loop.py

A small network maps points to latents. Its loss is the error of a reconstruction plus the guidance loss: at each of a
batch of voxels, a one-class SVM is fitted to half of the controls, and the loss pulls the other half inside its
boundary.
"""

import torch
from voxout import ocsvm

VOXELS, CONTROLS, INPUTS, LATENTS = 32, 24, 12, 4


def batch(generator: torch.Generator) -> torch.Tensor:
    """Co-located inputs of all controls: (voxels, controls, inputs)."""
    centre = torch.randn(VOXELS, 1, INPUTS, generator=generator)
    return centre + 0.3 * torch.randn(VOXELS, CONTROLS, INPUTS, generator=generator)


def main(steps: int = 60) -> list[float]:
    """Train, and return the guidance loss of every step."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    encoder = torch.nn.Sequential(torch.nn.Linear(INPUTS, 16), torch.nn.ReLU(), torch.nn.Linear(16, LATENTS))
    decoder = torch.nn.Linear(LATENTS, INPUTS)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    curve = []
    for step in range(steps):
        inputs = batch(generator)
        latents = encoder(inputs)
        reconstruction = torch.nn.functional.mse_loss(decoder(latents), inputs)
        half = CONTROLS // 2
        guidance = ocsvm.guidance_loss(latents[:, :half], latents[:, half:], nu=0.2, gamma=0.1).mean()
        (reconstruction + guidance).backward()
        optimiser.step()
        optimiser.zero_grad()
        curve.append(guidance.item())
        if step % 20 == 0:
            print(f"step {step}: reconstruction {reconstruction.item():.3f}, guidance {guidance.item():.4f}")
    return curve


if __name__ == "__main__":
    main()
