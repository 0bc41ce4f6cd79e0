"""Features, decoder, loss and weights of feature inversion."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from voxout.data_manifests.errors import UserError
from voxout.models.rivals.autoencoders import SpatialAutoEncoder
from voxout.models.rivals.feature_inversion import FeatureInversion, InversionDecoder
from voxout.models.rivals.frozen_encoders import AutoEncoderFeatures, ResNetFeatures
from voxout.models.rivals.slice_networks import enlarged
from voxout.models.rivals.slices import Slices

from .small_heads import SMALL, brain, controls, scan


class _Angles(nn.Module):
    """Stands in for an encoder: two levels of features in a plane, at an angle to the first axis."""

    def __init__(self, *degrees: float):
        super().__init__()
        self.degrees = degrees

    def forward(self, images: object) -> list[torch.Tensor]:
        n, maps = 2, []
        for level, angle in enumerate(self.degrees):
            at = torch.deg2rad(torch.tensor(angle))
            edge = 8 // 2**level
            maps.append(torch.stack([at.cos(), at.sin()])[None, :, None, None].expand(n, 2, edge, edge))
        return maps


def _fitted() -> tuple[FeatureInversion, nn.Module, Slices]:
    rival = FeatureInversion()
    rival.encoder, rival.network = _Angles(0.0, 0.0), _Angles(60.0, 90.0)
    images = torch.zeros((2, 1, 16, 16))
    inside = torch.zeros((2, 1, 16, 16), dtype=torch.bool)
    inside[:, :, 4:8, 4:8] = True
    return rival, rival.network, Slices(images, inside)


def test_loss_and_score_are_sums_of_one_minus_cosines():
    rival, network, batch = _fitted()
    # 1 - cos 60 degrees + 1 - cos 90 degrees.
    assert rival.loss(network, batch, torch.Generator()).item() == pytest.approx(0.5 + 1.0)
    scores = rival.slice_scores(batch)
    assert scores.shape == (2, 16, 16)
    torch.testing.assert_close(scores, torch.full((2, 16, 16), 1.5))


def test_the_loss_counts_places_with_brain_alone():
    class OutsideWrong(_Angles):
        def forward(self, images: object) -> list[torch.Tensor]:
            maps = [level.clone() for level in super().forward(images)]
            for level in maps:
                level[:, :, level.shape[2] // 2 :] *= -1
            return maps

    rival, _, batch = _fitted()
    assert rival.loss(OutsideWrong(0.0, 0.0), batch, torch.Generator()).item() == pytest.approx(0)


def test_features_are_those_of_the_auto_encoder():
    network = SpatialAutoEncoder().make(1, (32, 32), SMALL).eval()
    found = AutoEncoderFeatures(network)(torch.rand(2, 1, 32, 32))
    assert [tuple(level.shape) for level in found] == [(2, 8, 16, 16), (2, 16, 8, 8), (2, 16, 4, 4)]
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(AutoEncoderFeatures(network)(images)[1], network.encode[1](network.encode[0](images)))


def test_the_style_alone_tells_the_decoder_of_the_slice():
    torch.manual_seed(0)
    decoder = InversionDecoder([4, 8, 8], (3, 5))
    features = [torch.rand(2, 4, 12, 20), torch.rand(2, 8, 6, 10), torch.rand(2, 8, 3, 5)]
    found = decoder(features)
    assert [level.shape for level in found] == [level.shape for level in features]
    assert not torch.allclose(found[0][0], found[0][1])
    for level in decoder.levels:
        for style in level.styles:
            nn.init.zeros_(style.conv.weight)
    same = decoder(features)
    for level in same:
        torch.testing.assert_close(level[0], level[1])


def test_the_frozen_encoder_does_not_change(tmp_path):
    rival = FeatureInversion()
    rival.fit(controls(tmp_path, count=8, preset=replace(SMALL, steps=6)))
    images = torch.rand(2, 1, *rival.frame.size)
    before = rival.encoder(images)
    assert not any(parameter.requires_grad for parameter in rival.encoder.parameters())
    again = FeatureInversion()
    again.fit(controls(tmp_path, count=8, preset=replace(SMALL, steps=6)))
    for one, other in zip(before, again.encoder(images), strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Random weights of a ResNet-34 with the names of torchvision, which has two more."""
    torch.manual_seed(0)
    network = ResNetFeatures.empty()
    path = tmp_path / "resnet34.safetensors"
    tensors = {name: value.clone() for name, value in network.state_dict().items()}
    save_file({**tensors, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, path)
    return path


def test_weights_that_the_site_supplies(tmp_path, weights):
    encoder = ResNetFeatures(weights).eval()
    images = torch.rand(2, 2, 32, 48)
    found = encoder(images)
    assert [tuple(level.shape) for level in found] == [(2, 128, 16, 24), (2, 256, 8, 12), (2, 512, 4, 6)]
    # Each modality by itself: exchanging both exchanges their features.
    swapped = encoder(images.flip(1))[0]
    torch.testing.assert_close(found[0], torch.cat([swapped[:, 64:], swapped[:, :64]], dim=1))
    own = replace(controls(tmp_path, count=8, preset=replace(SMALL, steps=3, batch=2)), encoder_weights=weights)
    rival = FeatureInversion()
    rival.fit(own)
    scores = rival.score(scan(brain(3)))
    assert np.isfinite(scores).all()
    assert scores.max() > 0
    assert not list(own.folder.glob("feature-inversion-encoder*"))  # nothing was trained in its place


def test_weights_that_are_missing_or_wrong_are_named(tmp_path, weights):
    own = replace(controls(tmp_path, count=8), encoder_weights=tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match=r"found no file .*nothing.safetensors.*, expected the weights of a ResNet-34"):
        FeatureInversion().fit(own)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"damaged.safetensors.* cannot be read .*expected a safetensors file"):
        ResNetFeatures(damaged)
    save_file({"conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"has conv1.weight of shape \(64, 3, 3, 3\), expected \(64, 3, 7, 7\)"):
        ResNetFeatures(tmp_path / "other.safetensors")
    pickled = tmp_path / "resnet34.pth"
    torch.save({"conv1.weight": torch.zeros(2)}, pickled)
    with pytest.raises(UserError, match=r"cannot be read"):
        ResNetFeatures(pickled)


def test_maps_are_enlarged_bilinearly():
    maps = torch.tensor([[[[0.0, 1.0]]]])
    torch.testing.assert_close(enlarged(maps, (1, 4)), torch.tensor([[[[0.0, 0.25, 0.75, 1.0]]]]))
    assert enlarged(maps, (1, 2)) is maps
