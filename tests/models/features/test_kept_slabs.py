"""Slabs kept in a file are those that were computed."""

import numpy as np
import pytest
from voxout.models.features.kept_slabs import KeptSlabs
from voxout.models.features.moments import SlabMoments
from voxout.models.features.slabs import Slab


@pytest.mark.parametrize("confounds", [0, 3])
@pytest.mark.parametrize("on_disk", [True, False])
def test_slabs_are_read_as_they_were_kept(tmp_path, confounds, on_disk):
    random = np.random.default_rng(0)
    slabs = [
        SlabMoments(
            Slab(0, 1, start, start + n, start, start + n),
            random.normal(size=(2, confounds, n, 4)).astype(np.float16),
            random.normal(size=(2, n, 4)).astype(np.float32),
            random.normal(size=(2, n, 10)).astype(np.float32),
        )
        for start, n in ((0, 5), (5, 3))
    ]
    kept = KeptSlabs(tmp_path / "scratch" if on_disk else None)
    assert [slab.slab for slab in kept.keep(slabs)] == [slab.slab for slab in slabs]
    for _ in range(2):  # may be read again
        for found, expected in zip(kept, slabs, strict=True):
            assert found.slab == expected.slab
            for name in ("slopes", "mean", "covariance"):
                array = getattr(found, name)
                assert array.dtype == getattr(expected, name).dtype
                np.testing.assert_array_equal(array, getattr(expected, name))
    assert not on_disk or not list((tmp_path / "scratch").iterdir())  # the file has no name
