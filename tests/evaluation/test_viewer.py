"""Volumes of the viewer, read back with nibabel."""

import base64
import gzip
import hashlib

import nibabel as nib
import numpy as np
import pytest
from voxout.evaluation.figures.colour_scale import ColourScale
from voxout.evaluation.figures.slices import Head
from voxout.evaluation.report.viewer import volumes
from voxout.evaluation.report.viewer.volumes import ViewerVolumes

from .phantom_report import LEFT_BACK, RIGHT_FRONT, asymmetric_images

SCALE = ColourScale.at(2.0)


def unpacked(text):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def value_at(image, place):
    index = np.round(np.linalg.inv(image.affine) @ np.append(place, 1)).astype(int)[:3]
    return float(image.dataobj[tuple(index)])


def head(axcodes="RAS", **more):
    scan, map, brain, lesion = asymmetric_images(axcodes, **more)
    return Head.from_volumes(scan, map, SCALE, brain_mask=brain, lesion_mask=lesion)


@pytest.mark.parametrize("axcodes", ["RAS", "LAS", "PIR"])
def test_all_volumes_have_the_same_positions_in_millimetres(axcodes):
    made = ViewerVolumes.from_head(head(axcodes))
    scan, map, lesion = unpacked(made.scans[0].data), unpacked(made.map), unpacked(made.lesion)
    assert scan.get_data_dtype() == np.uint8 and map.get_data_dtype() == np.uint16
    assert scan.shape == map.shape == lesion.shape
    assert value_at(scan, (-36, 40, 0)) > 200 > value_at(scan, (36, 40, 0)) > 0
    assert value_at(map, RIGHT_FRONT) + made.floor == pytest.approx(6.0, abs=1e-3)
    assert value_at(map, LEFT_BACK) + made.floor == pytest.approx(3.0, abs=1e-3)
    assert value_at(map, (-36, 40, 0)) == 0
    assert value_at(lesion, LEFT_BACK) == 0 and value_at(lesion, np.add(LEFT_BACK, [12, 0, 0])) == 1


def test_the_map_is_quantised_within_one_step_from_the_floor_of_the_scale():
    of = head()
    made = ViewerVolumes.from_head(of)
    image = unpacked(made.map)
    corner = np.round(np.linalg.inv(of.affine) @ np.append(image.affine[:3, 3], 1)).astype(int)[:3]
    box = tuple(slice(c, c + n) for c, n in zip(corner, image.shape, strict=True))
    stored, true = image.get_fdata(), of.scores[box]
    shown = true >= SCALE.floor
    assert made.floor == SCALE.floor == 1.0
    assert ((stored > 0) == shown).all() and shown.any()
    assert made.step == pytest.approx((made.top - made.floor) / 65534, rel=1e-3)
    assert np.abs(stored[shown] + made.floor - true[shown]).max() <= made.step * 1.001


def test_scores_are_coloured_from_exactly_the_threshold():
    scan, map, brain, _ = asymmetric_images("RAS")
    places = [(0, 0, 0), (0, 20, 0), (0, -20, 0)]
    for place, score in zip(places, (1.99999, 2.0, 2.00001), strict=True):
        map.voxels[tuple(np.round(np.linalg.inv(map.affine) @ np.append(place, 1)).astype(int)[:3])] = score
    made = ViewerVolumes.from_head(Head.from_volumes(scan, map, SCALE, brain_mask=brain))
    # Same limit as in subject.js: threshold plus half a step.
    cut = SCALE.low - made.floor + made.step / 2
    assert [value_at(unpacked(made.map), place) >= cut for place in places] == [False, True, True]


def test_an_extreme_voxel_does_not_change_the_other_scores():
    made = ViewerVolumes.from_head(head(peak=6000.0))
    assert made.top == 6000
    assert (
        value_at(unpacked(made.map), LEFT_BACK) + made.floor == pytest.approx(3.0, abs=made.step * 1.001)
        and made.step < 0.11
    )


def test_niivue_is_unmodified_and_has_its_licence():
    digest = hashlib.sha256(volumes.niivue_source().encode()).hexdigest()
    assert digest == "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    licence = volumes.niivue_licence()
    assert "Copyright (c) 2021, Niivue" in licence and "BSD 2-Clause" in licence
    assert gzip.decompress(base64.b64decode(volumes.niivue_packed())).decode() == volumes.niivue_source()
