import numpy as np
import pytest
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume, write_volume
from voxout.preprocessing.prepared_images import PreparedImages, covered

GRID = Grid((4, 3, 2), np.diag([2.0, 2, 2, 1]))


def _subjects(folder, masks):
    found = []
    for number, mask in enumerate(masks):
        path = folder / f"{number}.nii.gz"
        write_volume(path, Volume(mask, GRID))
        found.append(PreparedImages(f"sub-{number}", {}, path))
    return found


def test_covered_needs_half_of_the_controls(tmp_path):
    everywhere = np.ones(GRID.size_vox, bool)
    masks = [everywhere.copy() for _ in range(10)]
    for number, mask in enumerate(masks):
        mask[1, 0, 0] = number < 4
        mask[2, 0, 0] = number < 5
    template = everywhere.copy()
    template[3] = False
    found = covered(_subjects(tmp_path, masks), Volume(template, GRID))
    assert not found[1, 0, 0] and found[2, 0, 0]
    assert not found[3].any(), "voxels outside the template's brain are excluded"
    assert found.sum() == template.sum() - 1


@pytest.mark.parametrize(("controls", "needed"), [(3, 3), (4, 4), (6, 4), (7, 4), (10, 5)])
def test_covered_needs_at_least_four_controls(tmp_path, controls, needed):
    masks = [np.zeros(GRID.size_vox, bool) for _ in range(controls)]
    for number, mask in enumerate(masks):
        mask[0, 0, 0], mask[1, 0, 0] = number < needed - 1, number < needed
    found = covered(_subjects(tmp_path, masks), Volume(np.ones(GRID.size_vox, bool), GRID))
    assert not found[0, 0, 0] and found[1, 0, 0]
