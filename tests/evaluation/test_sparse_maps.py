"""Segmentations and sparse maps (a few detections on a constant background)."""

from dataclasses import replace

import numpy as np
import pytest
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.evaluation.scoring.operating_point import LOWEST_DETECTION, OWN_CUT, OperatingPoint
from voxout.evaluation.scoring.sanity_checks import scoring_warnings
from voxout.evaluation.scoring.score_cohort import score_cohort
from voxout.evaluation.scoring.score_subject import score_map
from voxout.evaluation.scoring.subject_scores import SubjectScores
from voxout.evaluation.settings import EvaluationSettings

GRID = Grid((16, 16, 16), np.diag([2.0, 2.0, 2.0, 1.0]))
SETTINGS = EvaluationSettings(smallest_cluster_mm3=8, bootstrap_draws=40, false_clusters=1)
LESION = np.zeros(GRID.size_vox, bool)
LESION[6:9, 6:9, 6:9] = True


def noise(number):
    healthy = number < 3
    return np.random.default_rng(number).standard_normal(GRID.size_vox) + (0 if healthy else 6 * LESION)


def scored(kind):
    """Three healthy subjects and three with a lesion; `kind` transforms maps of noise and a bright lesion."""
    inside = Volume(np.ones(GRID.size_vox, bool), GRID)
    return [
        score_map(
            f"sub-{n}",
            Volume(np.asarray(kind(noise(n)), np.float32), GRID),
            inside,
            Volume(LESION, GRID) if n >= 3 else None,
            None,
            SETTINGS,
            group="control" if n < 3 else "patient",
        )
        for n in range(6)
    ]


def cohort(kind):
    return score_cohort(scored(kind), SETTINGS)


def value(scores, name):
    return scores.estimates[name].value


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-1, 1), (1, 2)])
def test_a_segmentation_is_scored_at_its_higher_value(low, high):
    scores = cohort(lambda z: np.where(z > 4.5, high, low))
    assert (scores.threshold, scores.point.origin) == (high, OWN_CUT)
    assert value(scores, "lesion_sensitivity") == 1 and value(scores, "lesion_precision") == 1
    assert value(scores, "false_clusters_per_healthy_subject") == 0
    assert scores.estimates["lesion_sensitivity"].ci_low == 1, "defined in every bootstrap sample"
    note, *_ = scoring_warnings(scores)
    assert f"the maps have two values: voxels at or above {high} count as detections" in note


def test_false_clusters_of_a_noisy_segmentation_are_counted():
    scores = cohort(lambda z: z > 2.5)
    assert scores.threshold == 1
    assert value(scores, "lesion_sensitivity") == 1
    false = [s.clusters.false_clusters_at(1.0) for s in scores.subjects if s.is_healthy]
    assert value(scores, "false_clusters_per_healthy_subject") == pytest.approx(np.mean(false)) and min(false) > 5
    assert scores.row("sub-0").flagged_ml == pytest.approx((noise(0) > 2.5).sum() * 8 / 1000)


def test_a_segmentation_that_flags_most_voxels_keeps_its_threshold():
    scores = cohort(lambda z: z > -0.5)
    assert scores.threshold == 1 and value(scores, "lesion_sensitivity") == 1


def test_a_segmentation_needs_no_healthy_subject():
    scores = score_cohort(scored(lambda z: z > 4.5)[3:], SETTINGS)
    assert scores.threshold == 1 and value(scores, "lesion_sensitivity") == 1


def test_threshold_of_sparse_maps_without_false_clusters_is_the_lowest_detection():
    scores = cohort(lambda z: np.where(z > 4.5, z, 0))
    lowest = min(s.lowest_detection for s in scores.subjects if s.lowest_detection is not None)
    assert (scores.threshold, scores.point.origin) == (lowest, LOWEST_DETECTION) and lowest > 4.5
    assert value(scores, "lesion_sensitivity") == 1 and value(scores, "false_clusters_per_subject") == 0
    note, *_ = scoring_warnings(scores)
    assert "the most common score (0) counts as background" in note and f"above the background, {lowest:.3g}." in note


def test_noisy_sparse_maps_have_the_threshold_of_the_dense_maps():
    sparse, dense = cohort(lambda z: np.where(z > 2.5, z, 0)), cohort(lambda z: z)
    assert sparse.threshold == dense.threshold > 2.5
    for name in ("lesion_sensitivity", "lesion_precision", "false_clusters_per_healthy_subject"):
        assert value(sparse, name) == value(dense, name), name
    assert scoring_warnings(sparse) == []


def test_the_background_detects_no_lesion():
    """In maps without detections, the background of 0 must not count as a lesion found at 0."""
    scores = cohort(lambda z: np.where(z > 30, z, 0))
    assert scores.threshold is None, "no map holds a detection"
    assert [lesion.found_at for s in scores.subjects for lesion in s.lesions] == [None] * 3
    assert value(scores, "froc_score") == 0


def test_a_threshold_above_all_scores_gives_a_warning():
    """In maps of the labels 0, 1 and 2, no score lies above the last label."""
    scores = cohort(lambda z: (z > 2.2).astype(int) + (z > 2.6))
    assert value(scores, "lesion_sensitivity") == 0
    note, *_ = scoring_warnings(scores)
    assert "lies above every score: no voxel is flagged and no lesion can be found" in note
    assert "few distinct values, such as labels" in note
    faint = score_cohort(scored(lambda z: z), SETTINGS, point=OperatingPoint.fixed_by_maps(99, "a model", 0, 40))
    note, *_ = scoring_warnings(faint)
    assert "lies above every score" in note and "labels" not in note


def test_quiet_scans_without_lesions_give_no_warning_about_the_threshold():
    """One healthy scan mapped alone was said to be a map in which "no lesion can be found"."""
    point = OperatingPoint.fixed_by_maps(99, "a model", 0, 40)
    healthy = [s for s in scored(lambda z: z) if s.is_healthy]
    assert healthy and scoring_warnings(score_cohort(healthy, SETTINGS, point=point)) == []
    unknown = [replace(s, group="patient", truth_known=False) for s in healthy]
    assert scoring_warnings(score_cohort(unknown, SETTINGS, point=point)) == []


def test_continuous_maps_have_no_background():
    for s in scored(lambda z: z):
        assert (s.background, s.lowest_detection, s.is_segmentation) == (None, None, False)
    padded = scored(lambda z: np.where(np.arange(16) < 12, 0, z))
    assert all(s.background is None for s in padded), "0 is the most common score, but half of the others are lower"


def test_the_background_is_stored_in_the_file(tmp_path):
    for number, s in enumerate(scored(lambda z: z > 2.5)[2:4]):
        s.save(tmp_path / f"{number}.npz")
        back = SubjectScores.load(tmp_path / f"{number}.npz")
        assert (back.background, back.lowest_detection, back.is_segmentation) == (0, 1, True)
