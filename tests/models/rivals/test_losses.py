"""Losses and parts of methods against cases computed by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from voxout.models.encoder.schedule import guidance_nu, require_enough_controls, support_size
from voxout.models.rivals.autoencoders import DenseVae, SpatialAutoEncoder
from voxout.models.rivals.context_encoding import ContextEncodingVae, largest_parts
from voxout.models.rivals.deep_svdd import DeepSvdd, _PatchNetwork
from voxout.models.rivals.denoising_unet import DenoisingUNet, coarse_noise
from voxout.models.rivals.intensity import EqualisedIntensity
from voxout.models.rivals.masked_ae import MaskedAutoEncoder, completed_slices
from voxout.models.rivals.one_class_svms import published_settings
from voxout.models.rivals.scans import Scan
from voxout.models.rivals.slice_networks import box_masks, kl_divergence, mean_inside, residual
from voxout.models.rivals.slices import SliceFrame, Slices
from voxout.models.rivals.vae_restoration import total_variation
from voxout.models.rivals.z_score import ZScore

from .small_heads import MASK, brain, controls, scan


class _Shifted(nn.Module):
    """Stands in for a network: returns its input plus a number."""

    def __init__(self, shift: float):
        super().__init__()
        self.shift = shift

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.shift


def _batch(images: torch.Tensor) -> Slices:
    inside = torch.zeros((len(images), 1, *images.shape[2:]), dtype=torch.bool)
    inside[:, :, 1:3] = True
    return Slices(images, inside)


def test_l1_and_squared_losses_count_only_the_brain():
    batch, generator = _batch(torch.rand(2, 1, 4, 4)), torch.Generator().manual_seed(0)
    assert SpatialAutoEncoder().loss(_Shifted(0.25), batch, generator).item() == pytest.approx(0.25)

    class Outside(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images + (~batch.inside).float()

    assert SpatialAutoEncoder().loss(Outside(), batch, generator).item() == 0
    # The noise is taken off completely by no network that returns its input: the loss is the mean of its square.
    noise = coarse_noise(batch.images.shape, torch.Generator().manual_seed(0), "cpu") * batch.inside
    loss = DenoisingUNet().loss(_Shifted(0.0), batch, torch.Generator().manual_seed(0)).item()
    assert loss == pytest.approx((noise**2).sum().item() / batch.inside.sum().item(), rel=1e-5)


def test_coarse_noise_is_smooth_and_has_its_standard_deviation():
    noise = coarse_noise(torch.Size((16, 1, 64, 64)), torch.Generator().manual_seed(1), "cpu")
    assert noise.shape == (16, 1, 64, 64)
    assert noise.diff(dim=3).abs().mean() < 0.2 * noise.std()  # neighbours resemble each other
    # Bilinear enlargement of white noise keeps 4/9 of its variance on average.
    assert noise.std().item() == pytest.approx(0.2 * math.sqrt((2 / 3) ** 2), rel=0.15)


def test_kl_divergence_of_a_known_normal():
    mu, sigma = torch.full((2, 3), 0.5), 2.0
    expected = 3 * 0.5 * (0.25 + sigma**2 - 1 - math.log(sigma**2))
    assert kl_divergence(mu, torch.full((2, 3), math.log(sigma**2))).item() == pytest.approx(expected)
    assert kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3)).item() == 0


class _KnownVae(DenseVae):
    """Variational auto-encoder whose code is the mean brightness, and whose decoder returns 0."""

    def encode(self, network, images):
        mu = images.mean(dim=(1, 2, 3))[:, None]
        return mu, torch.zeros_like(mu)

    def decode(self, network, code):
        return torch.zeros(len(code), 1, 4, 4)


def test_negative_elbo_by_hand():
    batch = _batch(torch.full((2, 1, 4, 4), 0.5))
    # Mean absolute error .5 over scale .05; KL = mu^2 / 2 = .125 for the 8 voxels of the brain of each slice.
    expected = 0.5 / 0.05 + 0.125 / 8
    assert _KnownVae().negative_elbo(nn.Identity(), batch, None).item() == pytest.approx(expected)


def test_context_encoding_adds_the_error_of_completing_masked_slices():
    class Known(ContextEncodingVae, _KnownVae):
        pass

    batch, generator = _batch(torch.full((2, 1, 4, 4), 0.5)), torch.Generator().manual_seed(0)
    assert Known().loss(nn.Identity(), batch, generator).item() == pytest.approx(2 * 0.5 / 0.05 + 0.125 / 8)


def test_otsu_and_area_filter_keep_the_large_bright_part():
    volume, inside = np.full((12, 12, 12), 0.1, np.float32), np.ones((12, 12, 12), bool)
    volume[2:5, 2:5, 2:5] = 1.0
    volume[9, 9, 9] = 1.0
    kept = largest_parts(volume, inside)
    assert (kept > 0).sum() == 27
    assert kept[9, 9, 9] == 0
    assert kept[3, 3, 3] == 1
    # A map without anything in it stays as it is.
    np.testing.assert_array_equal(largest_parts(np.full_like(volume, 0.3), inside), np.full_like(volume, 0.3))


def test_total_variation_by_hand():
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 1, 1] = 2.0
    assert total_variation(image).item() == 8  # four neighbours, 2 each


def test_deep_svdd_loss_is_the_squared_distance_from_the_centre():
    network = _PatchNetwork(1).eval()
    batch = _batch(torch.rand(2, 1, 16, 16))
    codes = network(batch.images).movedim(1, -1)[batch.inside[:, 0]]
    expected = (codes - network.centre).square().sum(dim=1).mean().item()
    loss = DeepSvdd().loss(network, batch, torch.Generator()).item()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert not [name for name, _ in network.named_parameters() if "bias" in name]


def test_deep_svdd_sees_nine_voxels():
    network = _PatchNetwork(1).eval()
    image = torch.zeros(1, 1, 32, 32)
    image[0, 0, 16, 16] = 1
    reach = torch.nonzero(network(image).abs().sum(dim=1)[0])
    assert reach.min(dim=0).values.tolist() == [12, 12]
    assert reach.max(dim=0).values.tolist() == [20, 20]


def test_the_squares_of_the_masked_auto_encoder_are_put_where_they_were_hidden():
    class Echo(nn.Module):
        """Hides the second square of four, and draws numbers of the squares."""

        def forward(self, images):
            drawn = torch.arange(4.0)[None, :, None].expand(len(images), 4, 64)
            return drawn, torch.tensor([[0, 1, 0, 0]]).expand(len(images), 4)

    completed, hidden = completed_slices(Echo(), torch.zeros(2, 1, 16, 16), torch.Generator().manual_seed(0))
    assert completed[0, 0, 0, 15] == 1
    assert completed[0, 0, 15, 0] == 2
    assert hidden[0, 0, :8, 8:].all()
    assert hidden[0].sum() == 64
    images = torch.full((2, 1, 16, 16), 0.5)
    batch = Slices(images, torch.ones(2, 1, 16, 16, dtype=torch.bool))
    # Only the hidden square counts: (1 - .5)^2.
    assert MaskedAutoEncoder().loss(Echo(), batch, torch.Generator().manual_seed(0)).item() == pytest.approx(0.25)


def test_boxes_have_edges_between_an_eighth_and_a_third():
    boxes = box_masks((64, 48, 96), torch.Generator().manual_seed(0), "cpu", boxes=1)[:, 0]
    rows, columns = boxes.any(dim=2).sum(dim=1), boxes.any(dim=1).sum(dim=1)
    assert (rows >= 5).all() and (rows <= 17).all()
    assert (columns >= 11).all() and (columns <= 33).all()
    assert torch.equal(boxes.sum(dim=(1, 2)), rows * columns)


def test_residual_and_mean_inside():
    one, other = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    other[0, 0], other[0, 1] = 1.0, 3.0
    assert torch.equal(residual(one, other), torch.full((1, 2, 2), 2.0))
    inside = torch.tensor([[[[True, False], [False, False]]]])
    assert mean_inside(other, inside).item() == 2


def test_slices_go_back_to_where_they_came_from():
    frame = SliceFrame.around(MASK)
    volume = brain(0)[None]
    slices = frame.cut(volume)
    assert slices.shape[1:] == (1, 32, 32)
    assert all(edge % 16 == 0 for edge in slices.shape[2:])
    np.testing.assert_array_equal(frame.paste(slices[:, 0]) * MASK.brain_mask, volume[0])


def test_intensity_ranks_dark_voxels_of_t1w_and_bright_ones_of_flair_highest():
    image, inside = np.zeros((2, 1, 4, 1)), np.ones((1, 4, 1), bool)
    image[:, 0, :, 0] = [[0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.4, 0.3]]
    t1w = Scan("sub-1", image[:1], ("t1w",), 1, inside)
    np.testing.assert_allclose(EqualisedIntensity().score(t1w)[0, :, 0], [0.875, 0.625, 0.375, 0.125])
    both = Scan("sub-1", image, ("t1w", "flair"), 2, inside)
    np.testing.assert_allclose(EqualisedIntensity().score(both)[0, :, 0], [0.875, 0.625, 0.875, 0.625])


def test_z_score_by_hand(tmp_path: Path):
    fitted, own = ZScore(), controls(tmp_path, count=5)
    fitted.fit(own)
    values = np.stack([c.images[0] for c in own])
    place = tuple(np.argwhere(MASK.brain_mask)[200])
    sd = np.std([value[place] for value in values], ddof=1)
    usual = np.median(values.var(axis=0, ddof=1)[MASK.brain_mask])
    image = brain(3)
    expected = abs(image[place] - values.mean(axis=0)[place]) / np.sqrt(sd**2 + 0.01 * usual)
    assert fitted.score(scan(image))[place] == pytest.approx(expected, rel=1e-4)


def test_published_settings_can_be_met_with_few_controls():
    settings = published_settings(100, 0.0, 1e-2)
    assert settings.guidance.nu == 0.03  # the trainer raises it where there are few controls
    require_enough_controls(7, settings)
    assert guidance_nu(settings.guidance.nu, 7) == 1 / support_size(7)
    assert (settings.detector.nu, settings.detector.gamma, settings.detector.latent_scaling) == (0.03, 0.01, "raw")
    assert settings.training.pretraining_steps + settings.training.guided_steps == 100


def test_the_median_filter_takes_single_voxels_off():
    volume = np.zeros(MASK.grid.size_vox, np.float32)
    volume[15, 20, 6] = 1
    assert DenoisingUNet().finished(volume, scan(brain(0))).max() == 0
    volume[13:18, 18:23, 4:9] = 1
    assert DenoisingUNet().finished(volume, scan(brain(0)))[15, 20, 6] == 1
