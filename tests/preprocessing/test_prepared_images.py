import numpy as np
from voxout.data_manifests.grid import Grid
from voxout.data_manifests.volume import Volume, write_volume
from voxout.preprocessing.prepared_images import PreparedImages, covered

GRID = Grid((4, 3, 2), np.diag([2.0, 2, 2, 1]))


def _subjects(folder, masks):
    found = []
    for number, mask in enumerate(masks):
        path = folder / f"{number}.nii.gz"
        write_volume(path, Volume(mask, GRID))
        found.append(PreparedImages(f"sub-{number}", {}, path))
    return found


def test_a_location_that_fewer_than_half_of_the_controls_cover_is_left_out(tmp_path):
    everywhere = np.ones(GRID.size_vox, bool)
    masks = [everywhere.copy() for _ in range(4)]
    for number, mask in enumerate(masks):
        mask[1, 0, 0] = number < 1
        mask[2, 0, 0] = number < 2
    template = everywhere.copy()
    template[3] = False
    found = covered(_subjects(tmp_path, masks), Volume(template, GRID))
    assert not found[1, 0, 0] and found[2, 0, 0]
    assert not found[3].any(), "what is no brain in the template stays out"
    assert found.sum() == template.sum() - 1
