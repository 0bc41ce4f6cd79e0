"""P-values of a comparison, and its sentences."""

from dataclasses import replace

import numpy as np
import pytest
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.evaluation.scoring.compare import compare
from voxout.evaluation.scoring.in_words import TOLD, in_words, p_text
from voxout.evaluation.scoring.paired_test import PAIRED
from voxout.evaluation.scoring.score_folder import ScoreFolder
from voxout.evaluation.scoring.score_subject import score_map
from voxout.evaluation.settings import EvaluationSettings

GRID = Grid((10, 10, 10), np.diag([2.0, 2.0, 2.0, 1.0]))
SETTINGS = EvaluationSettings(smallest_cluster_mm3=100, bootstrap_draws=20)


def folder(tmp_path, name, contrast, patients=8):
    """Scores of patients with a lesion of this contrast each, and of three healthy subjects."""
    subjects = []
    for number in range(patients + 3):
        random = np.random.default_rng(number)
        lesion = np.zeros(GRID.size_vox, bool)
        lesion[2:5, 3:6, 4:6] = number < patients
        map = Volume((random.normal(size=GRID.size_vox) + contrast * lesion).astype(np.float32), GRID)
        group = "patient" if number < patients else "control"
        inside, truth = (Volume(v, GRID) for v in (np.ones_like(lesion), lesion))
        subjects.append(
            score_map(f"sub-{number}", map, inside, truth if number < patients else None, None, SETTINGS, group=group)
        )
    return ScoreFolder(tmp_path / name, tuple(subjects), SETTINGS, "native", "brain mask", ())


def test_the_better_method_is_named_with_its_p_value(tmp_path):
    comparison = compare([folder(tmp_path, "faint", 0.2), folder(tmp_path, "clear", 6.0)])
    of = {d.metric: d for d in comparison.differences}
    assert of["average_precision_per_subject_mean"].p_value == 2 / 2**8, "clear is better in every patient"
    assert of["auroc"].p_value is None
    lines = in_words(comparison, "faint", "clear")
    assert (
        lines[0].startswith("average precision, mean of subjects: clear is better, ")
        and "p = 0.0078 (the smallest that 8 subjects allow)." in lines[0]
    )
    assert lines[1].startswith("lesions found (sensitivity): clear is better, 1 against "), lines
    assert "not adjusted" in lines[-1]
    assert len(lines) == len(TOLD) + 1


def test_equal_methods_show_no_difference(tmp_path):
    one = folder(tmp_path, "one", 2.0)
    comparison = compare([one, replace(one, path=tmp_path / "other")])
    assert {d.p_value for d in comparison.differences if d.metric in PAIRED} == {1.0, None}
    lines = in_words(comparison, "one", "other")
    assert len(lines) == len(TOLD) and all("no difference is shown" in line and "p = 1." in line for line in lines)


def test_the_terms_of_the_subjects_add_up_to_the_metrics(tmp_path):
    from voxout.evaluation.scoring.score_cohort import score_cohort

    scored = score_cohort(folder(tmp_path, "one", 2.0).subjects, SETTINGS, seed=0)
    for name, term in PAIRED.items():
        terms = [term(s, r) for s, r in zip(scored.subjects, scored.rows, strict=True) if s.has_lesions]
        if name == "aupimo":  # needs more healthy voxels than these
            assert set(terms) == {scored.estimates[name].value} == {None}
            continue
        assert scored.estimates[name].value == pytest.approx(np.mean(terms)), name  # one lesion per patient


def test_patients_without_a_threshold_have_no_p_value_of_detection(tmp_path):
    one, other = (folder(tmp_path, name, contrast) for name, contrast in (("one", 1.0), ("other", 3.0)))
    one, other = (replace(f, subjects=f.subjects[:-3]) for f in (one, other))
    comparison = compare([one, other])
    p_values = {d.metric: d.p_value for d in comparison.differences}
    assert p_values["lesion_sensitivity"] is None and p_values["auroc_per_subject_mean"] is not None
    assert len(in_words(comparison, "one", "other")) == 2


def test_p_text():
    assert [p_text(p) for p in (0.0004, 0.0312, 1.0)] == ["p < 0.001", "p = 0.031", "p = 1"]
    assert p_text(0.25, 3) == "p = 0.25 (the smallest that 3 subjects allow)" and p_text(0.5, 3) == "p = 0.5"
    assert p_text(2 / 2**14, 14).startswith("p < 0.001 (the smallest") and "smallest" not in p_text(2 / 2**15, 15)
