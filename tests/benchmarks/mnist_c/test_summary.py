"""Means, intervals and paired differences, against direct computation and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.mnist_c.methods import METHODS
from benchmarks.mnist_c.protocol import Unit
from benchmarks.mnist_c.results import Cell, Result, described, method_task, read_result, write_result
from benchmarks.mnist_c.scores import area_under_roc, both_metrics
from benchmarks.mnist_c.summary import OGAE, Line, Summary

SAE = Line("sae", "ocsvm")


def _result(method, read_out, digit, seed, values, protocol="clean"):
    cells = tuple(Cell(read_out, condition, value, value / 2) for condition, value in values.items())
    return Result(Unit(protocol, digit, seed), method, cells, {}, False, 1.0)


def _results(shift=0.1, noise=0.0, seed=0):
    random = np.random.default_rng(seed)
    for digit in range(10):
        for s in range(3):
            base = 0.5 + 0.02 * digit + 0.01 * s
            yield _result("sae", "ocsvm", digit, s, {"identity": base + 0.1, "fog": base - 0.1})
            more = base + shift + noise * random.normal()
            yield _result("ogae", "last-10", digit, s, {"identity": more + 0.1, "fog": more - 0.1})


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_agree_with_scikit_learn(ties):
    random = np.random.default_rng(0)
    anomalous = np.arange(400) >= 200
    scores = random.normal(size=400) + anomalous
    scores = np.round(scores, 1) if ties else 1 + 1e-12 * scores  # differences below the precision of float32
    auroc, precision = both_metrics(scores, anomalous)
    assert auroc == pytest.approx(roc_auc_score(anomalous, scores), abs=1e-12) == area_under_roc(scores, 200)
    assert precision == pytest.approx(average_precision_score(anomalous, scores), abs=1e-12)


def test_means_over_conditions_digits_and_seeds():
    summary = Summary(_results())
    every = np.mean([0.5 + 0.02 * d + 0.01 * s for d in range(10) for s in range(3)])
    assert summary.lines == (SAE, OGAE)
    assert summary.estimate("clean", SAE).value == pytest.approx(every)
    assert summary.estimate("clean", SAE, "fog").value == pytest.approx(every - 0.1)
    assert summary.estimate("clean", SAE, "fog", "average_precision").value == pytest.approx((every - 0.1) / 2)
    estimate = summary.estimate("clean", SAE)
    assert estimate.n == 30 and estimate.ci_low < every < estimate.ci_high


def test_paired_difference_removes_common_variation():
    (same,) = Summary(_results(shift=0.1)).rivals()
    assert (same.first, same.second) == (OGAE, SAE)
    assert [same.estimate.value, same.estimate.ci_low, same.estimate.ci_high] == pytest.approx([0.1, 0.1, 0.1])
    (noisy,) = Summary(_results(shift=0.0, noise=0.05)).rivals()
    assert noisy.estimate.ci_low < 0 < noisy.estimate.ci_high


def test_interval_accounts_for_dependent_seeds():
    # All seeds of a digit give the same value: thirty values, of which ten are independent.
    repeated = [_result("sae", "ocsvm", d, s, {"fog": 0.5 + 0.1 * (d % 2)}) for d in range(10) for s in range(3)]
    estimate = Summary(repeated).estimate("clean", SAE)
    assert estimate.ci_high - estimate.ci_low == pytest.approx(2 * 1.96 * 0.05 / np.sqrt(10), rel=0.15)


def test_missing_results_are_excluded_and_n_is_reduced():
    results = [r for r in _results() if not (r.method == "ogae" and r.unit.digit == 9)]
    summary = Summary(results)
    (difference,) = summary.rivals()
    assert difference.estimate.n == 27 and difference.estimate.value == pytest.approx(0.1)


def test_no_interval_for_a_single_result():
    (difference,) = Summary([r for r in _results() if r.unit == Unit("clean", 3, 0)]).rivals()
    assert difference.estimate.value == pytest.approx(0.1) and difference.estimate.ci_low is None


def test_mean_is_over_the_test_conditions_of_each_seed():
    results = [
        _result("sae", "ocsvm", 1, 0, {"fog": 0.9, "shear": 0.7}, "shifted"),
        _result("sae", "ocsvm", 1, 1, {"fog": 0.5, "scale": 0.5}, "shifted"),
    ]
    summary = Summary(results)
    assert summary.estimate("shifted", SAE).value == pytest.approx((0.8 + 0.5) / 2)
    assert summary.estimate("shifted", SAE, "fog").value == pytest.approx(0.7)
    assert (summary.estimate("shifted", SAE, "shear").value, summary.estimate("shifted", SAE, "shear").n) == (0.7, 1)
    assert summary.conditions("shifted") == ("shear", "scale", "fog")


def test_tables_contain_the_same_values():
    summary = Summary(_results())
    figures = summary.figures().set_index(["protocol", "method", "read_out", "condition", "metric"])
    assert figures.loc[("clean", "ogae", "last-10", "fog", "auroc"), "mean"] == pytest.approx(
        summary.estimate("clean", OGAE, "fog").value
    )
    assert len(summary.cells) == 120 and len(figures) == 2 * 3 * 2
    assert summary.differences()["mean"].tolist() == pytest.approx([0.1])


def test_result_file_round_trip_and_identity(tmp_path):
    result = next(iter(_results()))
    task = method_task(tmp_path, "data", result.unit, result.method)
    assert read_result(task) is None
    write_result(task, result)
    assert read_result(task) == result
    assert read_result(method_task(tmp_path, "other data", result.unit, result.method)) is None
    task.out.write_text(task.out.read_text()[:-20])
    assert read_result(task) is None


def test_descriptions_of_methods_are_unique():
    described_all = [str(described(m.recipe)) for m in METHODS.values() if m.recipe is not None]
    assert len(set(described_all)) == len(described_all)
    assert "'routes': 'compactor_only'" in str(described(METHODS["ogae-compactor"].recipe))
