"""Agreement of all voxel-wise metrics within 1e-6 with scikit-learn (float64) and slow references on 200 cohorts."""

import numpy as np
import pytest
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.evaluation.scoring.score_subject import score_map
from voxout.evaluation.scoring.voxel_measures import voxel_measures
from voxout.evaluation.settings import EvaluationSettings

from .slow_references import Scan, random_cohort, slow_metrics

SETTINGS = EvaluationSettings()


def package_metrics(scans: list[Scan]) -> dict[str, float]:
    """Metrics of the package for the same scans."""
    subjects = []
    for number, scan in enumerate(scans):
        grid = Grid(scan.scores.shape, np.eye(4))
        everywhere = Volume(np.ones(scan.scores.shape, bool), grid)
        truth = None if scan.healthy else Volume(scan.labels > 0, grid)
        group = "control" if scan.healthy else "patient"
        subjects.append(
            score_map(str(number), Volume(scan.scores, grid), everywhere, truth, None, SETTINGS, group=group)
        )
    once = np.ones((1, len(subjects)))
    return {name: measure.value for name, measure in voxel_measures(subjects, once).measures.items()}


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed % 5 > 0)) for seed in range(200)])
def test_all_voxel_metrics_agree_with_the_references(seed):
    scans = random_cohort(seed)
    got, expected = package_metrics(scans), slow_metrics(scans)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-6), name
    assert set(got) - set(expected) <= {"aupimo"}


def test_random_cohorts_cover_all_cases():
    cases = [random_cohort(seed) for seed in range(0, 200, 5)]
    scans = [scan for case in cases for scan in case]
    sizes = [np.bincount(scan.labels[scan.labels > 0]).max(initial=0) for scan in scans if scan.labels.any()]
    assert min(sizes) == 1 and max(sizes) > 100_000
    assert any(len(np.unique(scan.scores)) < 50 for scan in scans), "ties"
    assert any((scan.labels == 0).sum() > 2**17 for scan in scans), "ranks that share bins"
    healthy_voxels = [sum(scan.scores.size for scan in case if scan.healthy) for case in cases]
    assert sum(voxels >= 10**5 for voxels in healthy_voxels) >= 5, "AUPIMO is defined"
