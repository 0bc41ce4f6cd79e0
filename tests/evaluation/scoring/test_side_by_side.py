"""Methods side by side, on maps whose quality is known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.evaluation.metrics.bootstrap import Estimate
from voxout.evaluation.scoring.operating_point import OperatingPoint
from voxout.evaluation.scoring.score_cohort import score_cohort
from voxout.evaluation.scoring.score_subject import score_map
from voxout.evaluation.scoring.side_by_side import (
    Contender,
    LesionKind,
    compare_side_by_side,
    differences_in_words,
)
from voxout.evaluation.settings import EvaluationSettings

GRID = Grid((20, 20, 20), np.diag([2.0, 2.0, 2.0, 1.0]))
SETTINGS = EvaluationSettings(smallest_cluster_mm3=16, bootstrap_draws=200, lesion_bands_ml=(0.1, 1.0))
DARK, BRIGHT = (4, 4, 4), (13, 13, 13)


def _scores(contrasts: tuple[float, float], *, subjects: range = range(10)):
    """Scores of a method that sees the small dark and the large bright lesion with these contrasts; 4 are healthy."""
    scored = []
    for number in subjects:
        random = np.random.default_rng(number)
        map = ndimage.gaussian_filter(random.normal(size=GRID.size_vox), 1) * 5
        truth = np.zeros(GRID.size_vox, bool)
        healthy = number < 4
        if not healthy:
            for (x, y, z), size, contrast in zip((DARK, BRIGHT), (2, 6), contrasts, strict=True):
                part = np.s_[x : x + size, y : y + size, z : z + size]
                truth[part] = True
                map[part] += contrast
        volume, inside = Volume(map.astype(np.float32), GRID), Volume(np.ones(GRID.size_vox, bool), GRID)
        group = "control" if healthy else "patient"
        lesions = None if healthy else Volume(truth, GRID)
        scored.append(score_map(f"sub-{number:02}", volume, inside, lesions, None, SETTINGS, group=group))
    return tuple(scored)


def _contender(name: str, contrasts: tuple[float, float], form: str = "raw", **more: object) -> Contender:
    point = OperatingPoint.fixed_by_maps(3.0, "controls", 4, SETTINGS.bootstrap_draws)
    return Contender(name, name.title(), form, _scores(contrasts, **more), point)


@pytest.fixture(scope="module")
def table():
    contenders = [
        _contender("ours", (4, 4)),
        _contender("blind", (0, 0)),
        _contender("blind", (0.2, 0.2), form="smoothed"),
        _contender("equal", (4, 4)),
        _contender("better", (8, 8)),
    ]
    kinds = [
        LesionKind(f"sub-{n:02}", tuple(2.0 * at + 1 for at in place), {"kind": name})
        for n in range(4, 10)
        for name, place in (("dark", DARK), ("bright", (15.5, 15.5, 15.5)))
    ]
    chosen = {"ours": "raw", "blind": "smoothed", "equal": "raw", "better": "raw"}
    return compare_side_by_side(contenders, chosen, "ours", SETTINGS, kinds=kinds)


def test_values_are_those_of_the_cohort_scores(table):
    row = next(row for row in table.rows if row.contender.name == "better")
    own = score_cohort(_scores((8, 8)), SETTINGS, point=row.contender.point)
    for name in ("average_precision", "auroc", "aupro_fpr30", "froc_score", "lesion_sensitivity"):
        assert row.estimates[name] == own.estimates[name]


def test_only_chosen_forms_are_compared_and_all_are_kept(table):
    assert [(row.contender.name, row.contender.form) for row in table.rows] == [
        ("ours", "raw"),
        ("blind", "smoothed"),
        ("equal", "raw"),
        ("better", "raw"),
    ]
    assert len(table.every_form) == 5


def test_differences_are_paired(table):
    by_name = {row.contender.name: row for row in table.rows}
    assert not by_name["ours"].differences
    # The same maps: no difference in any bootstrap sample, however wide the intervals of the values are.
    assert all(
        d.value == d.ci_low == d.ci_high == 0 for d in by_name["equal"].differences.values() if d.value is not None
    )
    difference = by_name["better"].differences["average_precision"]
    values = [by_name[name].estimates["average_precision"].value for name in ("better", "ours")]
    assert difference.value == pytest.approx(values[0] - values[1])
    assert difference.ci_low > 0


def test_sentences_tell_what_is_certain(table):
    sentence = differences_in_words(table)[0]
    assert sentence.startswith("Average precision, pooled: ours has ")
    assert "Certainly higher: better (" in sentence
    assert "Certainly lower: blind (" in sentence
    assert "No difference is shown for equal (" in sentence


def test_share_found_at_one_false_cluster_by_hand(table):
    row = next(row for row in table.rows if row.contender.name == "better")
    subjects = row.contender.subjects
    false = np.sort(np.concatenate([s.clusters.false_cluster_thresholds for s in subjects]))[::-1]
    limit = false[len(subjects)] if len(false) > len(subjects) else -np.inf  # the first false cluster too many
    found = np.concatenate([s.found_at for s in subjects])
    assert row.estimates["found_at_1"].value == pytest.approx(np.mean(found > limit))


def test_lesions_by_size_and_kind(table):
    rows = {(row.method, row.by, row.group): row.found for row in table.groups}
    assert rows["better", "size", "below 0.1 ml"].n == 6
    assert rows["better", "size", "1 ml and more"].n == 6
    # Here, the small lesions are the dark ones.
    assert rows["better", "kind", "dark"] == rows["better", "size", "below 0.1 ml"]
    assert rows["better", "kind", "bright"] == rows["better", "size", "1 ml and more"]


def test_lesions_far_from_any_of_the_table_have_no_kind():
    kinds = [LesionKind("sub-05", (39.0, 1.0, 1.0), {"kind": "dark"})]
    table = compare_side_by_side([_contender("ours", (4, 4))], {"ours": "raw"}, "ours", SETTINGS, kinds=kinds)
    assert {row.by for row in table.groups} == {"size"}


def test_subjects_that_a_method_lacks_are_left_out_of_all_rows():
    contenders = [_contender("ours", (4, 4)), _contender("other", (4, 4), subjects=range(8))]
    table = compare_side_by_side(contenders, {"ours": "raw", "other": "raw"}, "ours", SETTINGS)
    assert table.left_out == ("sub-08", "sub-09")
    assert all(d.value == 0 for d in table.rows[1].differences.values() if d.value is not None)


def test_methods_without_a_common_subject():
    contenders = [_contender("ours", (4, 4)), _contender("other", (4, 4), subjects=range(10, 14))]
    with pytest.raises(UserError, match="have no subject in common"):
        compare_side_by_side(contenders, {"ours": "raw", "other": "raw"}, "ours", SETTINGS)


def test_an_interval_that_touches_zero_is_not_certain(table):
    ours, other = table.rows[0], table.rows[3]
    open_ = replace(other, differences={"average_precision": Estimate(0.1, 10, 0.0, 0.2)})
    sentence = differences_in_words(replace(table, rows=(ours, open_)))[0]
    assert "No method is certainly higher." in sentence
    assert "No difference is shown for better" in sentence
