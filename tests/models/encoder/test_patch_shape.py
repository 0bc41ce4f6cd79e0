import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from voxout.models.encoder.patch_shape import PatchShape

SHAPE = (7, 8, 5)
VOLUMES = np.arange(4 * 2 * np.prod(SHAPE), dtype=np.float32).reshape(4, 2, *SHAPE)
"""Every value is unique to subject, channel and voxel."""


def reference_patch(patch_shape, row, centre):
    reach = [patch_shape.half if axis in patch_shape.axes else 0 for axis in range(3)]
    padded = np.pad(VOLUMES[row], [(0, 0), *((n, n) for n in reach)])
    cut = padded[:, *(slice(c, c + 2 * n + 1) for c, n in zip(centre, reach, strict=True))]
    return cut.reshape(2, *[patch_shape.size_vox] * len(patch_shape.axes))


@settings(max_examples=60)
@given(
    st.sampled_from(["axial", "coronal", "sagittal", "volume"]), st.sampled_from([1, 3, 5, 7]), st.integers(0, 2**31)
)
def test_agrees_with_slicing_a_padded_volume(plane, size, seed):
    random, patch_shape = np.random.default_rng(seed), PatchShape(plane, size)
    rows = random.integers(4, size=6)
    centres = np.stack([random.integers(n, size=6) for n in SHAPE], axis=1)
    patches = patch_shape.cut(torch.from_numpy(VOLUMES), torch.from_numpy(rows), torch.from_numpy(centres))
    expected = np.stack([reference_patch(patch_shape, row, centre) for row, centre in zip(rows, centres, strict=True)])
    np.testing.assert_array_equal(patches, expected)
    assert patches.dtype == torch.float32


@pytest.mark.parametrize(("plane", "normal"), [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_planes_are_anatomical(plane, normal):
    """A ramp along the normal of the plane (x: right, y: anterior, z: superior) is constant within it."""
    ramp = torch.arange(9.0).reshape([9 if axis == normal else 1 for axis in range(3)]).expand(9, 9, 9)
    patch = PatchShape(plane, 5).cut(ramp[None, None], torch.tensor([0]), torch.tensor([[4, 4, 4]]))
    assert patch.shape == (1, 1, 5, 5) and patch.std() == 0
