"""Benchmark of the evaluation metrics against scikit-learn and slow references: agreement, time, memory, robustness.

    python benchmarks/evaluation.py            # about 10 minutes and 8 GB, mostly for scikit-learn
    python benchmarks/evaluation.py --quick    # a tenth of the voxels

Scans are synthetic: 3-D normal noise with lesions of 1 to 8,000 voxels, raised by two standard deviations, in one
percent of the voxels. Times are CPU seconds of one process; on a busy machine, only their ratios are reliable. Memory
is the peak increase in a process that has scored one subject before.
"""

import argparse
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
from sklearn import metrics
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.evaluation.metrics import voxel_metrics as vm
from voxout.evaluation.metrics.bootstrap import resample_subjects
from voxout.evaluation.metrics.components import find_lesions
from voxout.evaluation.scoring.score_cohort import score_cohort
from voxout.evaluation.scoring.score_subject import score_map
from voxout.evaluation.scoring.subject_scores import SubjectScores
from voxout.evaluation.scoring.voxel_measures import voxel_measures
from voxout.evaluation.settings import EvaluationSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "evaluation"))
from slow_references import random_cohort, slow_metrics

SHAPE = (128, 128, 122)  # 1,998,848 voxels: 50 of them make 10^8
SETTINGS = EvaluationSettings()
HEALTHY_SHARE = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the voxels")
    subjects = 5 if parser.parse_args().quick else 50
    rows: list[tuple[str, str, str]] = []

    def report(what: str, measured: str, goal: str) -> None:
        rows.append((what, measured, goal))
        print(f"| {what} | {measured} | {goal} |", flush=True)

    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}\n")
    print("| what | measured | goal |\n|---|---|---|")
    worst, name = agreement()
    report("largest deviation of any voxel metric, 200 random cohorts", f"{worst:.1e} ({name})", "1e-6")
    for what, worst in robustness().items():
        report(f"largest change of any metric: {what}", f"{worst:.1e}", "1e-6")
    small = in_new_process(subjects)
    n = subjects * np.prod(SHAPE)
    report(f"all voxel metrics of {n:.1e} voxels, {subjects} subjects", f"{small.cpu_s:.1f} s", "15 s")
    report("memory beyond one subject", f"{small.extra_mb:.0f} MB", "500 MB")
    reference = scikit_learn(subjects)
    report("AUROC and AP of scikit-learn on the same voxels", f"{reference:.1f} s", "")
    report("speed-up over scikit-learn", f"{reference / small.cpu_s:.0f}", "20")
    large = in_new_process(10 * subjects)
    report(f"all voxel metrics of {10 * n:.1e} voxels", f"{large.cpu_s:.1f} s", "linear")
    report("time ratio for ten times the voxels", f"{large.cpu_s / small.cpu_s:.1f}", "10")
    report("memory beyond one subject", f"{large.extra_mb:.0f} MB", "500 MB")
    report("1,000 bootstrap samples of all subjects, all voxel metrics", f"{bootstrap(subjects):.1f} s", "60 s")
    report("all metrics of one subject, including lesions", f"{complete_subject():.1f} s", "")
    return 0


# -- agreement and robustness ----------------------------------------------------------------------------------------
def agreement() -> tuple[float, str]:
    """Largest deviation from scikit-learn and the slow references, and the name of the metric."""
    worst, where = 0.0, ""
    for seed in range(200):
        scans = random_cohort(seed)
        subjects = [_scored(str(n), s.scores, s.labels > 0, s.healthy) for n, s in enumerate(scans)]
        got = voxel_measures(subjects, np.ones((1, len(subjects)))).measures
        for name, value in slow_metrics(scans).items():
            deviation = abs(got[name].value - value)
            if not deviation <= worst:
                worst, where = deviation, name
    return worst, where


def robustness() -> dict[str, float]:
    """Largest change of any metric of a cohort by an outlier, and by a shift and scale of all maps."""
    scans = [(scores[:48, :48, :48], truth[:48, :48, :48], healthy) for scores, truth, healthy in _scans(10)]
    plain = _all_figures(scans)
    top = max(range(len(scans)), key=lambda i: scans[i][0].max())
    outlier = [(scores.copy(), truth, healthy) for scores, truth, healthy in scans]
    outlier[top][0].flat[outlier[top][0].argmax()] *= 1000
    rescaled = [((np.float32(3.7) * scores - np.float32(2.1)), truth, healthy) for scores, truth, healthy in scans]
    far = [((np.float32(64) * scores - np.float32(1000)), truth, healthy) for scores, truth, healthy in scans]
    return {
        what: max(abs(value - plain[name]) for name, value in _all_figures(changed).items())
        for what, changed in {
            "the highest voxel at 1000 times its value": outlier,
            "all maps times 3.7 minus 2.1": rescaled,
            "all maps times 64 minus 1000": far,
        }.items()
    }


def _all_figures(scans: list[tuple[np.ndarray, np.ndarray, bool]]) -> dict[str, float]:
    settings = replace_settings(bootstrap_draws=20)
    subjects = [_scored(str(n), *scan, settings) for n, scan in enumerate(scans)]
    estimates = score_cohort(subjects, settings).estimates
    # The threshold changes with the scale of the maps.
    return {name: e.value for name, e in estimates.items() if e.value is not None and name != "healthy_threshold"}


def replace_settings(**changed: object) -> EvaluationSettings:
    return SETTINGS.model_copy(update=changed)


def _scored(
    key: str, scores: np.ndarray, truth: np.ndarray, healthy: bool, settings: EvaluationSettings = SETTINGS
) -> SubjectScores:
    grid = Grid(scores.shape, np.eye(4))
    lesions = None if healthy else Volume(truth, grid)
    everywhere = Volume(np.ones(scores.shape, bool), grid)
    group = "control" if healthy else "patient"
    return score_map(key, Volume(scores, grid), everywhere, lesions, None, settings, group=group)


# -- time and memory -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cost:
    cpu_s: float
    extra_mb: float


def in_new_process(subjects: int) -> Cost:
    """Cost of all voxel metrics in a new process that has scored only one subject before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(voxel_figures, 1).result()
        return process.submit(voxel_figures, subjects).result()


class Meter:
    """CPU time of selected calls, and peak increase of the memory of the process."""

    def __init__(self) -> None:
        self.cpu_s, self._highest = 0.0, 0
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self._finished = threading.Event()

    def __enter__(self) -> "Meter":
        self._thread = threading.Thread(target=self._monitor, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        self._thread.join()

    def _monitor(self) -> None:
        while not self._finished.wait(0.02):
            self._highest = max(self._highest, self._process.memory_info().rss)

    @property
    def cost(self) -> Cost:
        return Cost(self.cpu_s, (self._highest - self._before) / 2**20)

    def measure(self, function: Callable, *arguments: object) -> object:
        began = time.process_time()
        result = function(*arguments)
        self.cpu_s += time.process_time() - began
        return result


def voxel_figures(subjects: int) -> Cost:
    """Label the lesions, count the voxels and save the counts, scan by scan; then compute all pooled metrics."""
    one = next(_scans(1))
    template = _scored("one", one[0][:16, :16, :16], one[1][:16, :16, :16], False)
    _count(template, "one", *one)
    with tempfile.TemporaryDirectory() as folder, Meter() as meter:
        saved = []
        for number, scan in enumerate(_scans(subjects)):
            counted = meter.measure(_count, template, str(number), *scan)
            saved.append(meter.measure(counted.save, Path(folder) / f"{number}.npz"))
            del scan, counted
        meter.measure(voxel_measures, saved, np.ones((1, subjects)))
    return meter.cost


def _count(template: SubjectScores, key: str, scores: np.ndarray, truth: np.ndarray, healthy: bool) -> SubjectScores:
    """Voxel part of `score_map`, without clusters."""
    found = find_lesions(Volume(truth, Grid(scores.shape, np.eye(4))))
    shares = np.array([0.0] + [1 / lesion.voxels for lesion in found.lesions])
    histogram = vm.ScoreHistogram.from_voxels(scores.ravel(), truth.ravel(), shares[found.labels[truth]])
    counts = vm.rank_counts([histogram], vm.common_edges([histogram.lesion_scores]))
    needs = {"needs_healthy": True}
    return replace(
        template,
        key=key,
        group="control" if healthy else "patient",
        n_voxels=scores.size,
        n_lesion=histogram.n_lesion,
        n_lesion_scores=len(histogram.lesion_scores),
        auroc=vm.as_estimate(vm.auroc(counts), counts, **needs),
        auroc_fpr30_normalised=vm.as_estimate(vm.area_below_fpr(counts, 0.3), counts, **needs),
        average_precision=vm.as_estimate(vm.average_precision(counts), counts, **needs),
        best_dice=vm.as_estimate(vm.best_dice(counts)[0], counts, **needs),
        curves=replace(template.curves, histogram=histogram),
    )


def scikit_learn(subjects: int) -> float:
    scans = list(_scans(subjects))
    scores = np.concatenate([scores.ravel() for scores, _, _ in scans]).astype(np.float64)
    truth = np.concatenate([truth.ravel() for _, truth, _ in scans])
    del scans
    began = time.process_time()
    metrics.roc_auc_score(truth, scores)
    metrics.average_precision_score(truth, scores)
    return time.process_time() - began


def bootstrap(subjects: int) -> float:
    """CPU seconds of 1,000 bootstrap samples, from the histograms saved on disk."""
    one = next(_scans(1))
    template = _scored("one", one[0][:16, :16, :16], one[1][:16, :16, :16], False)
    with tempfile.TemporaryDirectory() as folder:
        saved = [_count(template, str(n), *s).save(Path(folder) / f"{n}.npz") for n, s in enumerate(_scans(subjects))]
        weights = resample_subjects([f"{s.is_healthy}{s.has_lesions}" for s in saved], 1000, 0)
        began = time.process_time()
        voxel_measures(saved, weights)
        return time.process_time() - began


def complete_subject() -> float:
    scores, truth, _ = next(_scans(1))
    began = time.process_time()
    _scored("one", scores, truth, False)
    return time.process_time() - began


def _scans(subjects: int) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Yield scores, truth, and whether the scan is healthy; seeded by the number of the scan."""
    for number in range(subjects):
        random = np.random.default_rng(number)
        scores = random.standard_normal(SHAPE, dtype=np.float32)
        truth = np.zeros(SHAPE, bool)
        healthy = number % HEALTHY_SHARE == HEALTHY_SHARE - 1
        while not healthy and truth.mean() < 0.01:
            edge = int(np.exp(random.uniform(0, 3)))
            x, y, z = (random.integers(0, size - edge) for size in SHAPE)
            truth[x : x + edge, y : y + edge, z : z + edge] = True
        scores[truth] += 2
        yield scores, truth, healthy


if __name__ == "__main__":
    sys.exit(main())
