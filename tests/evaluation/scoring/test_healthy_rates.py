"""Dice at thresholds set by a share of the voxels of healthy scans."""

from types import SimpleNamespace

import numpy as np
import pytest
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.evaluation.metrics.bootstrap import resample_subjects
from voxout.evaluation.metrics.voxel_metrics import ScoreHistogram
from voxout.evaluation.scoring.healthy_rates import HEALTHY_FPRS, thresholds_at_rate
from voxout.evaluation.scoring.score_cohort import score_cohort
from voxout.evaluation.scoring.score_subject import score_map
from voxout.evaluation.settings import EvaluationSettings

GRID = Grid((20, 20, 20), np.diag([2.0, 2.0, 2.0, 1.0]))
SETTINGS = EvaluationSettings(smallest_cluster_mm3=16, bootstrap_draws=50)
NAMES = tuple(HEALTHY_FPRS)


def _curves(scores):
    scores = np.asarray(scores, np.float32)
    return SimpleNamespace(histogram=ScoreHistogram.from_voxels(scores, np.zeros(len(scores), bool)))


def _threshold(scans, limit, weights=None):
    weights = np.ones((1, len(scans))) if weights is None else np.asarray(weights, float)
    return thresholds_at_rate([_curves(scan) for scan in scans], weights, limit)


def _flagged(scans, threshold):
    return sum(int((np.asarray(scan, np.float32) >= threshold).sum()) for scan in scans)


def _above(score):
    return np.nextafter(np.float32(score), np.float32(np.inf))


@pytest.mark.parametrize("limit", [0.01, 0.03, 0.29])
def test_the_threshold_is_just_above_the_first_score_that_is_too_many(limit):
    scores = np.arange(-50, 50)
    assert _threshold([scores], limit)[0] == _above(49 - round(100 * limit))
    assert _flagged([scores], _threshold([scores], limit)[0]) == round(100 * limit)


def test_ties_are_flagged_together_or_not_at_all():
    # Of 100 voxels, two may be flagged, but three share the second highest score.
    scores = np.concatenate([np.zeros(96), [5, 5, 5, 9]])
    assert _threshold([scores], 0.02)[0] == _above(5)
    assert _threshold([scores], 0.04)[0] == _above(0)


@pytest.mark.parametrize("scores", [np.full(50, -3.0), np.zeros(50), np.full(50, 7.0)])
def test_above_a_constant_map_nothing_is_flagged(scores):
    assert _threshold([scores], 0.01)[0] == _above(scores[0])


def test_voxels_without_a_score_count_but_are_never_flagged():
    assert _threshold([[-np.inf] * 99 + [2]], 0.01)[0] == -np.finfo(np.float32).max
    assert _threshold([[-np.inf] * 98 + [2, 1]], 0.01)[0] == _above(1)


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_lowest_possible_in_every_mixture_of_scans(seed):
    random = np.random.default_rng(seed)
    scans = [np.round(random.standard_cauchy(random.integers(40, 900)), seed % 3) + shift for shift in (-2, 0, 0.3, 5)]
    weights = np.vstack([np.ones(4), np.eye(4), random.integers(0, 4, size=(20, 4)) + np.eye(4)[0]])
    for limit in (0.00169, 0.01, 0.2):
        thresholds = _threshold(scans, limit, weights)
        candidates = np.unique(np.concatenate(scans).astype(np.float32))
        # The threshold lies just above a score, or lets all but the voxels without a score pass.
        candidates = np.append(-np.finfo(np.float32).max, _above(candidates))
        for row, threshold in zip(weights, thresholds, strict=True):
            total = sum(w * len(scan) for w, scan in zip(row, scans, strict=True))
            shares = [sum(w * _flagged([scan], t) for w, scan in zip(row, scans, strict=True)) for t in candidates]
            assert threshold == candidates[np.flatnonzero(np.array(shares) <= limit * total)[0]]


def _subject(number, *, healthy):
    random = np.random.default_rng(number)
    lesion = np.zeros(GRID.size_vox, bool)
    if not healthy:
        lesion[4:8, 5:9, 6 : 9 + number % 3] = True
    values = (random.standard_normal(GRID.size_vox) + 2.5 * lesion).round(2).astype(np.float32)
    volumes = Volume(values, GRID), Volume(np.ones(GRID.size_vox, bool), GRID), Volume(lesion, GRID)
    scores = score_map(f"sub-{number}", *volumes, None, SETTINGS, group="control" if healthy else "patient")
    return scores, values, lesion


def test_dice_and_its_interval_agree_with_a_slow_reference():
    made = [_subject(n, healthy=n < 3) for n in range(8)]
    scores = score_cohort([s for s, _, _ in made], SETTINGS)
    weights = resample_subjects([f"{s.is_healthy}{s.has_lesions}" for s, _, _ in made], 50, 0)
    for name, limit in HEALTHY_FPRS.items():
        drawn = []
        for row in weights.astype(int):
            healthy = np.concatenate([np.tile(v.ravel(), w) for (_, v, _), w in zip(made[:3], row, strict=False)])
            ordered = np.sort(healthy)[::-1]
            # The first score that would flag too many is not flagged.
            too_low = ordered[int(limit * len(ordered) + 1e-9)]
            dice = [
                2 * (lesion & (v > too_low)).sum() / ((v > too_low).sum() + lesion.sum()) for _, v, lesion in made[3:]
            ]
            drawn.append(np.average(dice, weights=row[3:]))
        measure = scores.measures[name]
        assert measure.value == pytest.approx(drawn[0])
        assert measure.draws == pytest.approx(drawn[1:])
        assert measure.n == 5


def test_too_few_healthy_voxels_do_not_resolve_the_rate():
    grid = Grid((5, 5, 5), np.eye(4))
    lesion = np.zeros(grid.size_vox, bool)
    lesion[2, 2, 2] = True
    everywhere, values = Volume(np.ones(grid.size_vox, bool), grid), Volume(lesion.astype(np.float32), grid)
    scored = [
        score_map("sub-1", values, everywhere, None, None, SETTINGS, group="control"),
        score_map("sub-2", values, everywhere, Volume(lesion, grid), None, SETTINGS),
    ]
    estimates = score_cohort(scored, SETTINGS).estimates
    reason = "fewer than 592 healthy voxels do not resolve a false-positive rate of 0.00169"
    assert estimates[NAMES[0]].reason_undefined == reason
    # One of 125 voxels may be flagged: the threshold is just above 0.
    assert estimates[NAMES[1]].value == 1


def test_strata_have_the_threshold_of_all_healthy_scans():
    from dataclasses import replace

    made = [replace(_subject(n, healthy=n < 3)[0], site="Lyon" if n % 2 else "Graz") for n in range(8)]
    scores = score_cohort(made, SETTINGS)
    lyon = next(stratum for stratum in scores.strata if stratum.name == "Lyon").measures[NAMES[1]]
    graz = next(stratum for stratum in scores.strata if stratum.name == "Graz").measures[NAMES[1]]
    assert (lyon.n, graz.n) == (3, 2)
    assert scores.measures[NAMES[1]].value == pytest.approx((3 * lyon.value + 2 * graz.value) / 5)
