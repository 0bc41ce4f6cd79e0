import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from voxout.models.features.packed_masks import PackedMasks


@given(st_np.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 40))))
def test_packed_masks_are_read_like_an_array(masks):
    packed = PackedMasks.pack(masks, masks.shape[1])
    assert packed.shape == masks.shape and len(packed) == len(masks)
    np.testing.assert_array_equal(np.stack([*packed]), masks)
    assert packed[len(masks) - 1].dtype == bool
    np.testing.assert_array_equal(packed[len(masks) - 1], masks[-1])
