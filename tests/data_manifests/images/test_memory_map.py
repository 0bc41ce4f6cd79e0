import numpy as np
from voxout.data_manifests.images.memory_map import rows_of, temporary_array


def test_a_temporary_array_leaves_no_file(tmp_path):
    array = temporary_array(tmp_path / "scratch", np.float32, (3, 5000))
    array[:] = np.arange(3)[:, None]
    assert not [*(tmp_path / "scratch").iterdir()]
    np.testing.assert_array_equal(array[:, 7], [0, 1, 2])


def test_rows_of_a_mapped_array_keep_their_changes(tmp_path):
    mapped, plain = temporary_array(tmp_path, np.float32, (3, 5000)), np.zeros((3, 5000), np.float32)
    for array in (mapped, plain):
        array[:] = 1
        for number, row in enumerate(rows_of(array)):
            row += number
        np.testing.assert_array_equal(array[:, -1], [1, 2, 3])
