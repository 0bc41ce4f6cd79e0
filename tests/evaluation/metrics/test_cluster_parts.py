import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.evaluation.metrics.cluster_parts import CLOSEST_MM, label_findings
from voxout.evaluation.metrics.clusters import label_clusters

AFFINE = np.diag([-2.0, 2.0, 2.0, 1.0])
TOUCHING = np.ones((3, 3, 3), bool)


def volume(voxels):
    return Volume(voxels, Grid(voxels.shape, AFFINE))


def bumps(*peaks, ground=-4.0, size=(40, 20, 20)):
    """A score that falls off linearly, by 1 per 2 mm, around each of the (place, height)."""
    places = np.indices(size)
    falls = [height - np.sqrt(sum((p - c) ** 2 for p, c in zip(places, at, strict=True))) for at, height in peaks]
    return np.maximum(ground, np.max(falls, axis=0)).astype(np.float32)


def findings(scores, threshold=3.0, **more):
    return label_findings(volume(scores), threshold, volume(np.ones(scores.shape, bool)), **more)


def test_two_peaks_with_a_low_saddle_are_two_findings_of_one_cluster():
    # The saddle between peaks of 8 and 7, 8 voxels apart, is 3.5 (thresholds 3): one cluster.
    scores = bumps(((12, 10, 10), 8.0), ((20, 10, 10), 7.0), ((32, 10, 10), 4.5))
    healthy = {"largest_healthy_mm3": (0.0, 1e6, 500.0)}
    whole, _ = label_clusters(volume(scores), 3.0, volume(np.ones(scores.shape, bool)), **healthy)
    assert len(whole) == 2
    found, labels = findings(scores, **healthy)
    assert [f.peak_score for f in found] == [8.0, 7.0, 4.5]
    assert [f.peak_mm for f in found] == [(-24, 20, 20), (-40, 20, 20), (-64, 20, 20)]
    assert [f.parts for f in found] == [(1, 2), (1, 2), ()]
    assert found[0].whole_mm3 == found[1].whole_mm3 == whole[0].volume_mm3 and found[2].whole_mm3 is None
    assert found[0].volume_mm3 + found[1].volume_mm3 == pytest.approx(whole[0].volume_mm3)
    assert found[0].p_value == found[1].p_value == whole[0].p_value == 0.5
    assert [labels.voxels[at] for at in ((12, 10, 10), (20, 10, 10), (32, 10, 10), (0, 0, 0))] == [1, 2, 3, 0]


@pytest.mark.parametrize(
    ("saddle", "parts"),
    # A peak of 4 above the threshold has the height 5: the saddle may be 1 / 1.5 of it, 2.33 above the threshold.
    [(5.30, 2), (5.36, 1)],
)
def test_a_peak_has_to_rise_above_its_saddle(saddle, parts):
    scores = np.zeros((30, 9, 9), np.float32)
    scores[5:25, 3:6, 3:6] = saddle
    scores[6, 4, 4], scores[22, 4, 4] = 9.0, 7.0
    assert len(findings(scores)[0]) == parts


@pytest.mark.parametrize(("apart", "parts"), [(CLOSEST_MM, 2), (CLOSEST_MM - 2, 1)])
def test_close_peaks_are_one_finding(apart, parts):
    steps = int(apart / 2)
    scores = np.zeros((30, 9, 9), np.float32)
    scores[4 : 8 + steps, 3:6, 3:6] = 3.1
    scores[5, 4, 4], scores[5 + steps, 4, 4] = 9.0, 8.0
    assert len(findings(scores)[0]) == parts


def test_no_part_is_smaller_than_the_smallest_cluster():
    scores = np.zeros((40, 9, 9), np.float32)
    scores[3:20, 3:6, 3:6] = 5.0
    scores[5, 4, 4] = 9.0
    scores[20:30, 4, 4] = 3.1
    scores[29, 4, 4] = 8.0
    many = findings(scores)[0]
    assert len(many) == 2 and min(f.volume_mm3 for f in many) < 200
    (whole,) = findings(scores, smallest_mm3=200)[0]
    assert whole.parts == () and whole.whole_mm3 is None


def test_nothing_above_the_threshold():
    found, labels = findings(np.zeros((5, 5, 5), np.float32))
    assert found == () and labels.voxels.dtype == np.int32 and not labels.voxels.any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.floats(0.3, 0.98), smallest=st.integers(0, 12), sd=st.floats(0.8, 3))
def test_parts_are_disjoint_connected_and_together_the_cluster(seed, share, smallest, sd):
    random = np.random.default_rng(seed)
    scores = ndimage.gaussian_filter(random.standard_normal((24, 20, 18)), sd)
    scores = (4 * scores / scores.std()).astype(np.float32)
    inside = volume(random.random(scores.shape) < 0.97)
    threshold = float(np.quantile(scores, share))
    limits = {"smallest_mm3": 8.0 * smallest, "largest_healthy_mm3": (0.0, 400.0, 3000.0)}
    wholes, whole_labels = label_clusters(volume(scores), threshold, inside, **limits)
    found, labels = label_findings(volume(scores), threshold, inside, **limits)
    # One number a voxel: parts are disjoint. Their union are the clusters.
    assert ((labels.voxels > 0) == (whole_labels.voxels > 0)).all()
    assert [f.rank for f in found] == list(range(1, len(found) + 1)) and len(found) == labels.voxels.max()
    assert [f.peak_score for f in found] == sorted((f.peak_score for f in found), reverse=True)
    for finding in found:
        own = labels.voxels == finding.rank
        (number,) = np.unique(whole_labels.voxels[own])
        whole, all_parts = wholes[number - 1], np.unique(labels.voxels[whole_labels.voxels == number])
        assert ndimage.label(own, TOUCHING)[1] == 1
        assert finding.volume_mm3 == pytest.approx(8.0 * own.sum()) and own.sum() >= max(smallest, 1)
        assert finding.peak_score == scores[own].max() and finding.p_value == whole.p_value
        assert finding.parts == (tuple(all_parts) if len(all_parts) > 1 else ())
        if len(all_parts) == 1:
            assert finding.peak_mm == whole.peak_mm
        assert finding.whole_mm3 == (whole.volume_mm3 if len(all_parts) > 1 else None)
