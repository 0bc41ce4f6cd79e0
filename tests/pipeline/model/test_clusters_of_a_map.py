import numpy as np
import pytest
from voxout.evaluation.scoring.operating_point import StoredPoint
from voxout.pipeline.config.config import Config
from voxout.pipeline.model.anomaly_map import AnomalyMap
from voxout.preprocessing.registration.template import load_template
from voxout.preprocessing.registration.template_transform import TemplateTransform


@pytest.mark.parametrize("space", ["native", "template"])
def test_clusters_have_a_region_and_shares(space):
    template = load_template(2.0)
    move = np.eye(4)
    move[:3, 3] = [0, 0, 20] if space == "native" else 0  # of the template to the scan
    z = np.zeros(template.grid.size_vox, np.float32)
    middle = np.linalg.inv(template.affine) @ move @ [-26, 4, 2, 1]
    x, y, slab = (int(i) for i in middle.round()[:3])
    z[x - 3 : x + 4, y - 3 : y + 4, slab - 3 : slab + 4], z[x, y, slab] = 4, 6
    map, brain = template.t1w.with_voxels(z), template.brain_mask
    config = Config()
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"space": space})})
    point = StoredPoint(3.6, (100.0,), 1, {"false_clusters": 1.0}, "a model")
    found = AnomalyMap(
        "sub-1", map, brain, map, brain, None, 3.6, (), config, point, "", TemplateTransform.from_affine(move)
    ).clusters
    (row,) = found.to_dict("records")
    assert (row["side"], row["region"], row["lobe"], row["tissue"]) == (
        "left", "putamen", "deep grey matter", "grey matter",
    )  # fmt: skip
    assert row["regions"].startswith("putamen 83 %; insula 9 %")
    assert list(found.columns)[-8:] == [
        "lobe", "regions", "part_of", "cluster_mm3", "flags", "x_native_mm", "y_native_mm", "z_native_mm",
    ]  # fmt: skip
    for axis, shift in zip("xyz", move[:3, 3], strict=True):
        assert row[f"{axis}_native_mm"] == pytest.approx(row[f"{axis}_mni_mm"] + shift)
    assert row["part_of"] is None and row["flags"] is None
