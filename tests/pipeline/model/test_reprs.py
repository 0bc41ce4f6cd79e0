"""What `import voxout` returns is shown on one line, as in scikit-learn."""

from typing import Any

import numpy as np
from voxout.data_manifests.cohort.subject import Manifest, SubjectRecord
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.evaluation.scoring.compare import Comparison
from voxout.evaluation.settings import EvaluationSettings
from voxout.pipeline.config.config import Config
from voxout.pipeline.model.anomaly_map import AnomalyMap
from voxout.pipeline.model.anomaly_model import AnomalyModel
from voxout.preprocessing.patches.voxel_mask import VoxelMask

GRID = Grid((20, 20, 20), np.diag([2.0, 2, 2, 1]))
NOTHING: Any = None


def test_a_model():
    model = AnomalyModel(Config(), VoxelMask(GRID, np.ones(GRID.size_vox, bool)), NOTHING, NOTHING)
    scorers = "['ocsvm', 'prototypes', 'learned']"
    assert repr(model) == f"AnomalyModel(scorers={scorers}, spacing_mm=2, voxels=8000, threshold=None)"


def test_a_map():
    z, inside = Volume(np.zeros(GRID.size_vox, np.float32), GRID), Volume(np.ones(GRID.size_vox, bool), GRID)
    result = AnomalyMap("sub-01", z, inside, z, inside, None, 3.7412, (), NOTHING, NOTHING, "", NOTHING)
    assert repr(result) == "AnomalyMap(key='sub-01', shape=(20, 20, 20), threshold=3.74)"


def test_a_cohort():
    assert repr(Manifest((SubjectRecord("01", "control", {}),))) == "Manifest(controls=1, patients=0)"


def test_a_comparison():
    comparison = Comparison(("a", "b"), ("sub-01",), {}, (), EvaluationSettings())
    assert repr(comparison) == "Comparison(names=['a', 'b'], subjects=1)"
