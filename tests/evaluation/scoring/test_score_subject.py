import numpy as np
import pytest
from sklearn import metrics
from voxout.data_manifests.errors import SubjectError, UserError
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.evaluation.metrics.voxel_metrics import NO_LESION_VOXEL
from voxout.evaluation.scoring.score_subject import score_map
from voxout.evaluation.scoring.subject_scores import NO_TRUTH, StoredCurves, SubjectScores
from voxout.evaluation.settings import EvaluationSettings

GRID = Grid((12, 13, 14), np.diag([2.0, 2.0, 2.0, 1.0]))
SETTINGS = EvaluationSettings(smallest_cluster_mm3=16)


def scan(seed=0):
    """Map with a weak contrast, brain mask, and lesion mask with two lesions."""
    random = np.random.default_rng(seed)
    inside = np.zeros(GRID.size_vox, bool)
    inside[1:11, 1:12, 2:12] = True
    lesion = np.zeros(GRID.size_vox, bool)
    lesion[3:5, 3:5, 3:6] = True
    lesion[8, 8, 8] = True
    voxels = (random.standard_normal(GRID.size_vox) + 1.5 * lesion).astype(np.float32)
    return Volume(voxels, GRID), Volume(inside, GRID), Volume(lesion, GRID)


def test_metrics_use_only_voxels_inside_the_mask():
    map, inside, lesion = scan()
    map.voxels[~inside.voxels] = np.nan  # must not be used
    scores = score_map("sub-01", map, inside, lesion, None, SETTINGS)
    truth, values = lesion.voxels[inside.voxels], map.voxels[inside.voxels].astype(np.float64)
    assert scores.auroc.value == pytest.approx(metrics.roc_auc_score(truth, values), abs=1e-9)
    assert scores.average_precision.value == pytest.approx(metrics.average_precision_score(truth, values), abs=1e-9)
    assert (scores.n_voxels, scores.n_uncovered, scores.n_lesion_outside) == (10 * 11 * 10, 0, 0)
    assert scores.lesion_volume_ml == pytest.approx(13 * 8 / 1000)
    flagged = values >= 1.0
    assert scores.dice_at(1.0).value == pytest.approx(2 * (flagged & truth).sum() / (flagged.sum() + truth.sum()))
    assert scores.flagged_ml_at(1.0) == pytest.approx(flagged.sum() * 8 / 1000)
    assert scores.highest_score == values.max()


def test_scores_of_every_lesion():
    map, inside, lesion = scan()
    map.voxels[8, 8, 8], map.voxels[8, 8, 9] = 50, 40
    scores = score_map("sub-01", map, inside, lesion, None, SETTINGS)
    large, small = scores.lesions
    assert (large.volume_mm3, small.volume_mm3) == pytest.approx((96, 8))
    assert small.centre_mm == (16, 16, 16)
    assert small.highest_score == small.mean_score == 50
    # A cluster needs two voxels, and the second has a score of 40.
    assert small.found_at == 40
    assert scores.lesions_found_at(40.5) == 0 and scores.lesions_found_at(40) == 1
    assert scores.clusters.clusters_at(45.0) == 0


def test_voxels_without_a_score_count_as_missed():
    map, inside, lesion = scan()
    covered = inside.voxels.copy()
    covered[:5] = False
    map.voxels[~covered] = 99  # not a score
    scores = score_map("sub-01", map, inside, lesion, map.with_voxels(covered), SETTINGS)
    assert scores.n_lesion_uncovered == 12
    assert scores.n_uncovered == 4 * 11 * 10
    lost, kept = scores.lesions
    assert (lost.highest_score, lost.found_at, lost.covered_share) == (None, None, 0)
    assert kept.covered_share == 1
    values = np.where(covered, map.voxels, -1e6)[inside.voxels].astype(np.float64)
    assert scores.auroc.value == pytest.approx(metrics.roc_auc_score(lesion.voxels[inside.voxels], values))
    assert scores.highest_score < 99


def test_lesion_voxels_outside_the_mask_are_counted():
    map, inside, lesion = scan()
    lesion.voxels[0, 0, :3] = True
    assert score_map("sub-01", map, inside, lesion, None, SETTINGS).n_lesion_outside == 3


def test_undefined_metrics_have_a_reason():
    map, inside, lesion = scan()
    unknown = score_map("sub-01", map, inside, None, None, SETTINGS)
    assert (unknown.truth_known, unknown.auroc.reason_undefined) == (False, NO_TRUTH)
    assert unknown.lesion_volume_ml is None and unknown.dice_at(0).reason_undefined == NO_TRUTH
    empty = score_map("sub-01", map, inside, map.with_voxels(np.zeros_like(lesion.voxels)), None, SETTINGS)
    assert empty.truth_known and not empty.has_lesions and not empty.is_healthy
    assert empty.average_precision.reason_undefined == NO_LESION_VOXEL
    healthy = score_map("sub-02", map, inside, None, None, SETTINGS, group="control")
    assert healthy.truth_known and healthy.is_healthy
    assert healthy.best_dice.reason_undefined == healthy.dice_at(0).reason_undefined == NO_LESION_VOXEL


def test_different_grids_raise_with_both_grids():
    map, inside, lesion = scan()
    other = Grid(GRID.size_vox, np.diag([1.0, 1.0, 3.0, 1.0]))
    with pytest.raises(SubjectError, match=r"sub-01: the lesion mask .*12x13x14 voxels of 1x1x3 mm.*of 2x2x2 mm"):
        score_map("sub-01", map, inside, Volume(lesion.voxels, other), None, SETTINGS)
    moved = Grid(GRID.size_vox, GRID.affine + np.array([[0, 0, 0, 1.0]] + [[0] * 4] * 3))
    with pytest.raises(SubjectError, match="evaluation mask"):
        score_map("sub-01", map, Volume(inside.voxels, moved), lesion, None, SETTINGS)


def test_invalid_inputs_raise():
    map, inside, lesion = scan()
    nothing = map.with_voxels(np.zeros(GRID.size_vox, bool))
    with pytest.raises(SubjectError, match="evaluation mask is empty"):
        score_map("sub-01", map, nothing, lesion, None, SETTINGS)
    with pytest.raises(SubjectError, match="no voxel of the evaluation mask has a score"):
        score_map("sub-01", map, inside, lesion, nothing, SETTINGS)
    with pytest.raises(SubjectError, match="the lesion mask of this control holds 13 voxels, expected none"):
        score_map("sub-01", map, inside, lesion, None, SETTINGS, group="control")
    map.voxels[5, 5, 5] = np.nan
    with pytest.raises(SubjectError, match="1 of 1100 scores of the anomaly map are NaN"):
        score_map("sub-01", map, inside, lesion, None, SETTINGS)


def test_swapped_masks_raise():
    map, inside, lesion = scan()
    with pytest.raises(SubjectError, match="fills the complete evaluation mask.* brain masks are swapped"):
        score_map("sub-01", map, lesion, inside, None, SETTINGS)


def test_save_and_load(tmp_path):
    scores = score_map("sub-01", *scan(), None, SETTINGS)
    path = tmp_path / "ä b" / "sub-01.npz"
    saved = scores.save(path)
    back = SubjectScores.load(path)
    assert saved.curves == back.curves == StoredCurves(path), "the arrays stay in the file"
    assert back.lesions == scores.lesions and back.key == scores.key and back.group == scores.group
    assert back.auroc == scores.auroc and back.best_dice == scores.best_dice
    np.testing.assert_array_equal(back.clusters.thresholds, scores.clusters.thresholds)
    np.testing.assert_array_equal(back.histogram.healthy_scores, scores.histogram.healthy_scores)
    for part in ("histogram", "clusters", "overlaps"):
        for name, values in vars(getattr(scores, part)).items():
            np.testing.assert_array_equal(getattr(getattr(back, part), name), values)
    assert list(path.parent.iterdir()) == [path]


def test_compressed_files_are_refused(tmp_path):
    path = tmp_path / "sub-01.npz"
    score_map("sub-01", *scan(), None, SETTINGS).save(path)
    with np.load(path) as stored:
        arrays = dict(stored)
    name = next(name for name in arrays if name.endswith("healthy_scores"))
    np.savez_compressed(path, **arrays | {name: np.zeros(1 << 26, np.float32)})
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UserError, match=r"sub-01.npz\W*: not readable as the scores of a subject"):
        SubjectScores.load(path)
    with pytest.raises(UserError, match=r"sub-01.npz\W*: not readable as the scores of a subject"):
        _ = StoredCurves(path).histogram


@pytest.mark.parametrize(
    "damaged",
    [
        lambda content: content[:400],
        lambda content: b"",
        lambda content: b"no scores",
        lambda content: content.replace(b"{'descr'", b"{(descr'"),
    ],
    ids=["truncated", "empty", "text", "array header"],
)
def test_a_damaged_file_raises(tmp_path, damaged):
    path = tmp_path / "sub-01.npz"
    score_map("sub-01", *scan(), None, SETTINGS).save(path)
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(UserError, match=r"sub-01.npz\W*: not readable as the scores of a subject"):
        SubjectScores.load(path)
