"""Patches, noise, loss and reconstruction of the patched diffusion model."""

import math

import pytest
import torch
from torch import nn
from voxout.models.rivals.patched_diffusion import PatchedDiffusion, grid_of_patches, octave_noise
from voxout.models.rivals.slices import Slices

from .small_heads import SMALL


class _Echo(nn.Module):
    """Returns its input, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, images: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        self.seen.append((images, times))
        return images


def _slices(value: float, n: int = 3) -> Slices:
    inside = torch.zeros((n, 1, 16, 32), dtype=torch.bool)
    inside[:, :, 2:14, 2:30] = True
    return Slices(torch.full((n, 1, 16, 32), value), inside)


def test_the_patches_of_a_grid_cover_a_slice_once():
    patches = grid_of_patches(torch.Size((96, 112)), "cpu")
    assert patches.shape == (4, 1, 96, 112)
    assert torch.equal(patches.sum(dim=0), torch.ones(1, 96, 112, dtype=torch.long))
    assert patches.flatten(1).sum(dim=1).tolist() == [48 * 56] * 4
    assert patches[1, 0, :48, 56:].all()


def test_the_noise_has_mean_0_standard_deviation_1_and_several_scales():
    generator = torch.Generator().manual_seed(0)
    noise = torch.cat([octave_noise(torch.Size((8, 1, 48, 64)), generator, "cpu") for _ in range(50)])
    assert noise.shape == (400, 1, 48, 64)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    # Neighbours resemble each other, and even voxels that are far apart are not independent.
    flat = noise - noise.mean()
    correlation = [(flat[..., :-d] * flat[..., d:]).mean().item() for d in (1, 8, 48)]
    assert correlation[0] > 0.8 > correlation[1] > 0.3
    assert correlation[2] == pytest.approx(0, abs=0.1)
    # White noise would keep a hundredth of its variance in means over 10 x 10 voxels.
    assert nn.functional.avg_pool2d(noise, 10).var() > 0.3


def test_only_the_patch_is_drowned_in_noise():
    rival, images = PatchedDiffusion(), torch.full((1, 1, 16, 32), 0.75)
    network, noise = _Echo(), torch.ones((1, 1, 16, 32))
    patch = grid_of_patches(images.shape[2:], "cpu")[:1]
    found = rival.completed(network, images, noise, patch, torch.tensor([500]))
    # a_t of linear variances from 1e-4 to 0.02, computed here.
    kept = math.prod(1 - (1e-4 + (0.02 - 1e-4) * step / 999) for step in range(501))
    expected = math.sqrt(kept) * 0.5 + math.sqrt(1 - kept)
    assert found[patch].unique().item() == pytest.approx((expected + 1) / 2, rel=1e-4)
    assert torch.equal(found[~patch], images[~patch])
    assert network.seen[0][1].tolist() == [500]


def test_the_loss_is_the_error_of_the_patch_in_the_brain():
    class Half(nn.Module):
        """Completes every slice as 0.5, but outside the brain as 1."""

        def forward(self, images: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            return torch.where(_slices(0, len(images)).inside, 0.0, 1.0)

    batch = _slices(0.2)
    assert PatchedDiffusion().loss(Half(), batch, torch.Generator().manual_seed(0)).item() == pytest.approx(0.3)
    # A network that returns its input is only wrong in the patch: the loss does not vanish in the rest of the slice.
    loss = PatchedDiffusion().loss(_Echo(), batch, torch.Generator().manual_seed(0))
    assert loss.item() > 0.2


def test_a_reconstruction_is_put_together_from_each_patch_as_it_was_noisy():
    class Numbered(nn.Module):
        """Completes slices as the number of the call, in tenths."""

        calls = 0

        def forward(self, images: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            assert (times == 500).all()
            return torch.full_like(images, 2 * self.calls / 10 - 1)

    rival = PatchedDiffusion()
    rival.network, rival.preset = Numbered(), SMALL
    scores = rival.slice_scores(_slices(0.0, 2))
    corners = [scores[1, row, column].item() for row in (0, 15) for column in (0, 31)]
    assert corners == pytest.approx([0.1, 0.2, 0.3, 0.4])
    # The noise does not depend on the slices of a scan that are scored together.
    rival.network = _Echo()
    images = torch.rand((3, 1, 16, 32), generator=torch.Generator().manual_seed(0))
    together = rival.slice_scores(Slices(images, torch.ones_like(images, dtype=torch.bool)))
    alone = rival.slice_scores(Slices(images[2:], torch.ones_like(images[2:], dtype=torch.bool)))
    assert torch.equal(together[2:], alone)
