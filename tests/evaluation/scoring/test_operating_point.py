import json

import numpy as np
import pytest
from voxout.data_manifests.errors import UserError
from voxout.evaluation.scoring.operating_point import StoredPoint

SETTINGS = {"false_clusters": 1.0, "smallest_cluster_mm3": 30.0, "space": "native"}
POINT = StoredPoint(3.6, (3.5, 3.7), 4, SETTINGS, "a model", (40.0, 0.0))


def test_save_and_load_with_and_without_a_threshold(tmp_path):
    path = tmp_path / "point.json"
    POINT.save(path)
    assert StoredPoint.load(path) == POINT
    StoredPoint(np.nan, (), 0, SETTINGS, "a model").save(path)
    none = StoredPoint.load(path)
    assert np.isnan(none.threshold) and none.n_healthy == 0
    assert "NaN" not in path.read_text()


@pytest.mark.parametrize(
    "change", [{"threshold": 1.0}, {"threshold": None}, {"n_healthy": 400}, {"model": "b"}], ids=str
)
def test_a_plausible_edit_is_detected(tmp_path, change):
    path = tmp_path / "point.json"
    POINT.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="the threshold was changed or damaged, expected the file that map wrote"):
        StoredPoint.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": float("nan")},
        {"threshold": "3.6"},
        {"threshold": [3.6]},
        {"draws": 3.5},
        {"draws": [3.5, float("inf")]},
        {"draws": [None]},
        {"n_healthy": -1},
        {"n_healthy": 4.5},
        {"settings": []},
        {"model": 7},
        {"largest_mm3": [-1]},
        {"format": "voxout operating point 2"},
        {"another": 1},
    ],
    ids=str,
)
def test_an_invalid_edit_raises_a_user_error(tmp_path, change):
    path = tmp_path / "point.json"
    POINT.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"point.json\W: .*, expected an operating point. Run the stage map"):
        StoredPoint.load(path)
