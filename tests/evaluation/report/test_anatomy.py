import importlib.util
from unittest.mock import ANY

import numpy as np
import pytest
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.evaluation.report import anatomy
from voxout.preprocessing.registration.template import load_template


@pytest.fixture(scope="module")
def tissue():
    template = load_template(2.0)
    return template.grey, template.white


@pytest.mark.parametrize(
    ("point", "side", "tissue_there", "region"),
    [
        ((-26, -14, -20), "left", "grey matter", "hippocampus"),
        ((26, -14, -20), "right", "grey matter", "hippocampus"),
        ((-10, -20, 8), "left", "grey matter", "thalamus"),
        ((30, -88, 2), "right", "grey matter", "posterior occipital"),
        ((26, -20, 34), "right", "white matter", ANY),
        ((8, 4, 16), "right", "fluid", ANY),
        ((0, -55, 30), "midline", None, "precuneus"),
        ((0, -25, -40), "midline", None, None),
    ],
)
def test_labels_of_known_mni_points(tissue, point, side, tissue_there, region):
    place = anatomy.place_of(np.array(point, float), *tissue)
    assert place.side == side
    assert tissue_there is None or place.tissue == tissue_there
    assert place.region == region


def test_named_points_cover_both_sides_without_abbreviations(tissue):
    names, points = anatomy._named_points()
    assert len(names) == len(points) > 180
    assert {"hippocampus", "amygdala", "thalamus", "basal ganglia", "precuneus"} <= set(names)
    assert not {"ACC", "IPL", "dlPFC"} & set(names), "abbreviations are spelled out"
    assert (points[:, 0] < -5).sum() > 60 and (points[:, 0] > 5).sum() > 60


def test_a_point_outside_the_grid():
    nothing = Volume(np.zeros((4, 4, 4), np.float32), Grid((4, 4, 4), np.eye(4)))
    assert anatomy.place_of(np.array([0.0, 0.0, -300.0]), nothing, nothing).tissue == "outside the brain"


def test_a_nilearn_without_the_lists_raises(tissue, monkeypatch, tmp_path):
    anatomy._named_points.cache_clear()
    fake = importlib.util.spec_from_file_location("nilearn", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: fake)
    with pytest.raises(UserError, match="nilearn does not hold the named points .* expected nilearn 0.12 to 0.14"):
        anatomy.place_of(np.zeros(3), *tissue)
    anatomy._named_points.cache_clear()
