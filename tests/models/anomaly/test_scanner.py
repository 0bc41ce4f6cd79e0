"""Calibration of a model to another scanner."""

import numpy as np
import pytest
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.models.anomaly.scanner import ScannerCalibration, _calibration, read_controls
from voxout.preprocessing.patches.voxel_mask import VoxelMask

MASK = VoxelMask(Grid((40, 40, 30), np.diag([2.0, 2, 2, 1])), np.ones((40, 40, 30), bool))
LEFT = MASK.locations[:, 0] < 20
FACTOR = np.where(LEFT, 1.0, 1.8)
"""How much higher scans of the scanner score on the right."""


def scans(count: int, seed: int) -> np.ndarray:
    """-log10 p of healthy scans of the scanner; on the scanner of the model, it would be exponential."""
    uniform = np.random.default_rng(seed).uniform(size=(count, MASK.size))
    return (-np.log10(uniform) * FACTOR).astype(np.float32)


def names(count: int) -> list[str]:
    return [f"sub-{number:02}" for number in range(count)]


@pytest.mark.parametrize("count", [5, 12])
def test_scans_that_were_not_used_have_the_promised_tail(count):
    scanner, _ = ScannerCalibration.fit(scans(count, 0), np.ones((count, MASK.size), bool), names(count), MASK)
    new = scans(20, 1)
    promised = 10.0**-3
    assert (new > 3).mean() > 8 * promised
    for neg_log10_p in (1, 2, 3):
        share = (scanner.neg_log10_p(new) > neg_log10_p).mean()
        assert share == pytest.approx(10.0**-neg_log10_p, rel=0.15)
    assert scanner.controls == count


def test_each_control_is_left_out_with_all_its_sessions():
    values, inside = scans(7, 0), np.ones((7, MASK.size), bool)
    inside[3, :5000] = False
    participants = [*names(6), "sub-00"]
    _, left_out = ScannerCalibration.fit(values, inside, participants, MASK)
    others = [1, 2, 3, 4, 5]
    expected = _calibration(values[others], inside[others], MASK)
    np.testing.assert_allclose(left_out[[0, 6]], expected.neg_log10_p(values[[0, 6]]))
    changed = values.copy()
    changed[[0, 6]] *= 5
    _, again = ScannerCalibration.fit(changed, inside, participants, MASK)
    np.testing.assert_allclose(again[0], expected.neg_log10_p(changed[0]))


def test_it_keeps_the_order_of_the_voxels_and_is_read_as_it_was_written(tmp_path):
    scanner, _ = ScannerCalibration.fit(scans(5, 0), np.ones((5, MASK.size), bool), names(5), MASK)
    path = scanner.save(tmp_path / "scanner.safetensors")
    again = ScannerCalibration.load(path)
    rising = np.linspace(0, 12, MASK.size)
    found = again.neg_log10_p(rising)
    assert (np.diff(found) >= 0).all() and found[-1] > found[0]
    np.testing.assert_array_equal(found, scanner.neg_log10_p(rising))
    assert again.controls == read_controls(path) == 5


def test_four_persons_are_too_few():
    participants = [*names(4), "sub-03"]
    with pytest.raises(UserError, match=r"found 4 healthy controls of this scanner, expected at least 5 different"):
        ScannerCalibration.fit(scans(5, 0), np.ones((5, MASK.size), bool), participants, MASK)
