import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.encoder.dense_inference import encode_densely
from voxout.models.encoder.network import PatchEncoder
from voxout.models.encoder.patch_shape import PatchShape
from voxout.models.features.extractors import LatentFeatures, PatchFeatures, VoxelFeatures
from voxout.models.settings import EncoderSettings
from voxout.preprocessing.patches.voxel_mask import VoxelMask

MASK = np.zeros((9, 10, 8), bool)
MASK[0:7, 2:9, 1:8] = True  # touches the grid's edge
GRID = VoxelMask(Grid(MASK.shape, np.diag([2.0, 2, 2, 1])), MASK)
EVERYWHERE = np.ones(GRID.size, bool)
RANDOM = np.random.default_rng(0)
CHANNELS = RANDOM.random((3, *MASK.shape), dtype=np.float32)


def test_voxel_features_are_the_channel_values():
    found = VoxelFeatures(GRID, (2, 0)).compute(CHANNELS)
    assert found.shape == (GRID.size, 2) and found.dtype == np.float32
    for number, voxel in enumerate(GRID.locations):
        assert tuple(found[number]) == (CHANNELS[2][tuple(voxel)], CHANNELS[0][tuple(voxel)])


def test_latents_are_those_of_the_encoder():
    torch.manual_seed(0)
    encoder = PatchEncoder(1, [PatchShape("axial", 5)], EncoderSettings(latent_size=4)).eval()
    features = LatentFeatures(GRID, (1,), encoder)
    expected = encode_densely(encoder, torch.from_numpy(CHANNELS[1:2]), GRID).numpy()
    assert features.size == 4
    np.testing.assert_array_equal(features.compute(CHANNELS), expected)


def _naive_patches(channels):
    padded = np.pad(channels, [(0, 0), (1, 1), (1, 1), (1, 1)])
    return np.stack([padded[:, x : x + 3, y : y + 3, z : z + 3].reshape(-1) for x, y, z in GRID.locations])


def test_components_of_patches_are_those_of_scikit_learn():
    controls = [RANDOM.random((3, *MASK.shape), dtype=np.float32) * scale for scale in (1.0, 0.5, 2.0)]
    brains = [EVERYWHERE, RANDOM.random(GRID.size) < 0.7, EVERYWHERE]
    # The mask has fewer voxels than samples, so all are used.
    found = PatchFeatures.learn(zip(controls, brains, strict=True), GRID, (0, 2), seed=0)
    patches = np.concatenate(
        [_naive_patches(control[[0, 2]])[brain] for control, brain in zip(controls, brains, strict=True)]
    )
    oracle = PCA(8).fit(patches)
    agreement = np.abs(np.einsum("ij,ji->i", oracle.components_, found.components))
    np.testing.assert_allclose(agreement, 1, atol=1e-3)
    np.testing.assert_allclose(found.compute(CHANNELS), _naive_patches(CHANNELS[[0, 2]]) @ found.components, atol=1e-4)


def test_components_are_saved_and_loaded(tmp_path):
    features = PatchFeatures.learn([(CHANNELS, EVERYWHERE)], GRID, (1,), seed=0)
    loaded = PatchFeatures.load(features.save(tmp_path / "components.safetensors"), GRID)
    np.testing.assert_array_equal(loaded.compute(CHANNELS), features.compute(CHANNELS))
    with pytest.raises(UserError, match="holds no components of patches .*Run the stage fit again"):
        PatchFeatures.load(tmp_path / "other.safetensors", GRID)
