"""What a change of a model gains, and when a gain may be claimed."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.evaluation.metrics.bootstrap import Estimate
from voxout.evaluation.scoring.gain import FOUND, PER_SUBJECT, POOLED, Gain, gains
from voxout.evaluation.scoring.score_subject import score_map
from voxout.evaluation.settings import EvaluationSettings

GRID = Grid((14, 14, 14), np.diag([2.0, 2.0, 2.0, 1.0]))
SETTINGS = EvaluationSettings(smallest_cluster_mm3=16)


def patient(number: int, contrast: float):
    random = np.random.default_rng(number)
    lesion = np.zeros(GRID.size_vox, bool)
    lesion[3:5, 3:5, 3:5] = lesion[9:11, 8:10, 3:5] = True
    noise = ndimage.gaussian_filter(random.standard_normal(GRID.size_vox), 0.7) * 3
    map = (noise + contrast * lesion).astype(np.float32)
    volumes = (map, np.ones(GRID.size_vox, bool), lesion)
    scores = score_map(f"sub-{number:02}", *(Volume(each, GRID) for each in volumes), None, SETTINGS)
    return scores, map.ravel(), lesion.ravel()


def both(count: int, before: float, after: float):
    first, second = ([patient(number, contrast) for number in range(count)] for contrast in (before, after))
    found = gains([s for s, _, _ in first], [s for s, _, _ in second], draws=200, seed=0)
    return {gain.metric: gain for gain in found}, first, second


def test_values_are_those_of_scikit_learn_and_of_counting():
    found, first, second = both(7, 1.0, 3.0)
    for made, name in ((first, "before"), (second, "after")):
        each = [metrics.average_precision_score(truth, map) for _, map, truth in made]
        assert getattr(found[PER_SUBJECT], name).value == pytest.approx(np.mean(each), abs=1e-9)
        truths, maps = (np.concatenate([part[index] for part in made]) for index in (2, 1))
        pooled = metrics.average_precision_score(truths, maps)
        assert getattr(found[POOLED], name).value == pytest.approx(pooled, abs=1e-9)
        # Lowest threshold with at most one false cluster a scan, counted one by one.
        curves = [scores.curves.clusters for scores, _, _ in made]
        steps = np.sort(np.concatenate([curve.false_cluster_thresholds for curve in curves]))[::-1]
        limit = steps[7] if len(steps) > 7 else -np.inf
        at = [lesion.found_at for scores, _, _ in made for lesion in scores.lesions]
        share = np.mean([where is not None and where > limit for where in at])
        assert getattr(found[FOUND], name).value == pytest.approx(share)
    gain = found[PER_SUBJECT]
    assert gain.difference.value == pytest.approx(gain.after.value - gain.before.value)
    assert gain.is_shown and gain.sentence.endswith(": a gain") and "p = 0.016" in gain.sentence


def test_the_same_maps_are_no_gain():
    found, _, _ = both(8, 2.0, 2.0)
    for gain in found.values():
        assert gain.difference.value == 0 and not gain.is_shown and not gain.is_loss
        assert gain.sentence.endswith("no gain shown")
    assert found[PER_SUBJECT].p_value == 1


def test_worse_maps_are_a_loss():
    found, _, _ = both(8, 3.0, 1.0)
    assert found[PER_SUBJECT].is_loss and found[PER_SUBJECT].sentence.endswith(": a loss")


def test_few_patients_show_nothing_however_large_the_difference():
    for count in (2, 5):
        found, _, _ = both(count, 0.0, 6.0)
        assert found[PER_SUBJECT].difference.value > 0.3
        assert not any(gain.is_shown for gain in found.values())
    assert both(2, 0.0, 6.0)[0][PER_SUBJECT].difference.ci_low is None, "two are too few for an interval"
    assert both(6, 0.0, 6.0)[0][PER_SUBJECT].is_shown


def test_an_interval_that_holds_0_or_a_p_value_that_may_be_chance_is_no_gain():
    def gain(low: float, p_value: float | None, participants: int = 10) -> Gain:
        return Gain(PER_SUBJECT, Estimate(0.2), Estimate(0.3), Estimate(0.1, 10, low, 0.2), p_value, participants)

    assert gain(0.01, 0.01).is_shown and gain(0.01, None).is_shown
    assert not gain(0.0, 0.01).is_shown and not gain(-0.01, 0.01).is_shown
    assert not gain(0.01, 0.05).is_shown and not gain(0.01, 0.01, 5).is_shown
    undefined = Gain(PER_SUBJECT, Estimate(0.2), Estimate.undefined("none"), Estimate.undefined("none"), None, 10)
    assert not undefined.is_shown and "not defined (none)" in undefined.sentence


def test_sessions_of_a_participant_are_one_participant():
    first = [patient(number, 1.0)[0] for number in range(6)]
    second = [patient(number, 5.0)[0] for number in range(6)]
    from dataclasses import replace

    keys = [f"sub-{number // 2}_ses-{number}" for number in range(6)]
    named = [[replace(s, key=key) for s, key in zip(each, keys, strict=True)] for each in (first, second)]
    found = gains(*named, draws=50, seed=0)
    assert all(gain.participants == 3 and not gain.is_shown for gain in found)
    with pytest.raises(ValueError, match="same patients"):
        gains(first, second[::-1], draws=10, seed=0)
