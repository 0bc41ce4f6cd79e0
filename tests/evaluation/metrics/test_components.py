import numpy as np
import pytest
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.evaluation.metrics.components import find_lesions

GRID = Grid((10, 11, 12), np.array([[-2.0, 0, 0, 30], [0, 1, 0, -5], [0, 0, 3, 7], [0, 0, 0, 1]]))


def mask_of(*blocks):
    voxels = np.zeros(GRID.size_vox, dtype=bool)
    for block in blocks:
        voxels[block] = True
    return Volume(voxels, GRID)


def test_volume_and_centre_of_known_lesions():
    mask = mask_of(np.s_[1:3, 4, 5], np.s_[6:9, 2:5, 8])
    found = find_lesions(mask)
    first, second = found.lesions
    assert (first.number, first.voxels, first.volume_mm3) == (1, 9, pytest.approx(54))
    assert first.centre_mm == pytest.approx((30 - 2 * 7, -5 + 3, 7 + 3 * 8))
    assert second.voxels == 2 and second.volume_mm3 == pytest.approx(12)
    assert second.centre_mm == pytest.approx((30 - 2 * 1.5, -1, 22))
    assert (found.labels[6:9, 2:5, 8] == 1).all() and (found.labels[1:3, 4, 5] == 2).all()


def test_voxels_are_connected_by_corners():
    assert len(find_lesions(mask_of(np.s_[1, 1, 1], np.s_[2, 2, 2])).lesions) == 1
    assert len(find_lesions(mask_of(np.s_[1, 1, 1], np.s_[3, 1, 1])).lesions) == 2


def test_components_of_exactly_the_smallest_volume_count():
    mask = mask_of(np.s_[1, 1, 1:3], np.s_[5, 5, 5])
    assert len(find_lesions(mask, smallest_mm3=12).lesions) == 1
    assert len(find_lesions(mask, smallest_mm3=12.1).lesions) == 0
    assert not find_lesions(mask, smallest_mm3=12.1).labels.any()


def test_no_lesion_in_an_empty_mask():
    assert find_lesions(mask_of()).lesions == ()
