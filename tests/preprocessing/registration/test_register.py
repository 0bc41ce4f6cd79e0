import hashlib
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.preprocessing.registration import register
from voxout.preprocessing.registration.register import register_to_template
from voxout.preprocessing.registration.template import load_template
from voxout.preprocessing.registration.template_transform import TemplateTransform
from voxout.preprocessing.settings import RegistrationSettings

AFFINE = RegistrationSettings(transform="affine", working_spacing_mm=4.0)
SYN = RegistrationSettings(working_spacing_mm=4.0)
TEMPLATE = load_template(4.0)


def registered(image: Volume, settings: RegistrationSettings, **options) -> TemplateTransform:
    mask = image.with_voxels(image.voxels > 0.02)
    return register_to_template(image, mask, TEMPLATE, settings, seed=3, **options)


@pytest.fixture(scope="module")
def warped(kit):
    image, _ = kit.small_brain("PSR", bend_mm=5.0)
    return image, registered(image, SYN)


@pytest.fixture(scope="module", params=["RAS", "LPS", "PSR", "ILA"])
def brain(request, kit):
    """A brain in each orientation, the truth, and the affine registration."""
    image, truth = kit.small_brain(request.param)
    return image, truth, registered(image, AFFINE)


def test_known_affine_is_found_in_every_orientation(brain, kit):
    _, truth, transform = brain
    found = transform.affine
    points = kit.millimetres(TEMPLATE.grid)[TEMPLATE.brain_mask.voxels]
    error_mm = np.linalg.norm(points @ (found - truth)[:3, :3].T + (found - truth)[:3, 3], axis=-1)
    assert np.median(error_mm) < 1.0 and error_mm.max() < 3.0


def test_round_trip_keeps_left_and_right(brain, kit):
    image, truth, transform = brain
    ball_mm = (truth @ [-40, -20, 20, 1])[:3]
    native = Volume(kit.ball(image.grid, ball_mm, 10), image.grid)

    there = transform.to_template(native, TEMPLATE.grid, interpolation="nearest")
    assert kit.millimetres(there.grid)[there.voxels].mean(0) == pytest.approx([-40, -20, 20], abs=2.5)
    back = transform.to_native(there, image.grid, interpolation="nearest")
    assert kit.dice(back.voxels, native.voxels) > 0.8
    assert kit.millimetres(back.grid)[back.voxels].mean(0) == pytest.approx(ball_mm, abs=1.5)


@pytest.mark.parametrize("settings", [AFFINE, SYN], ids=["affine", "syn"])
def test_round_trip_of_a_smooth_map(settings, kit, warped):
    image, transform = warped if settings is SYN else (warped[0], registered(warped[0], AFFINE))
    random = np.random.default_rng(0).standard_normal(image.grid.size_vox)
    smooth = image.with_voxels(ndimage.gaussian_filter(random, 4).astype(np.float32))
    there = transform.to_template(smooth, load_template(2.0).grid, interpolation="linear")
    back = transform.to_native(there, image.grid, interpolation="linear")
    inside = ndimage.binary_erosion(image.voxels > 0.02)
    assert np.corrcoef(back.voxels[inside], smooth.voxels[inside])[0, 1] >= 0.99


def test_warp_improves_on_the_affine(warped):
    image, transform = warped
    inside = TEMPLATE.brain_mask.voxels
    similarity = [
        np.corrcoef(
            step.to_template(image, TEMPLATE.grid, interpolation="linear").voxels[inside],
            TEMPLATE.t1w.voxels[inside],
        )[0, 1]
        for step in (transform.affine_only(), transform)
    ]
    assert similarity[0] < 0.8 and similarity[1] > similarity[0] + 0.1
    assert 0 < transform.jacobian_range.smallest < 1 < transform.jacobian_range.percentile_99


def test_stiffness_reduces_deformation(warped):
    image, transform = warped
    stiff = registered(image, SYN.model_copy(update={"stiffness": 2.0}))
    loose, firm = transform.jacobian_range, stiff.jacobian_range
    assert firm.percentile_1 > loose.percentile_1 and firm.percentile_99 < loose.percentile_99


@pytest.fixture(scope="module")
def lesioned(kit, warped):
    """The warped brain with a dark ball in its white matter: the scan and the mask of the ball."""
    image, transform = warped
    ball = transform.to_native(
        TEMPLATE.t1w.with_voxels(kit.ball(TEMPLATE.grid, (28, -20, 28), 13)), image.grid, interpolation="linear"
    )
    return image.with_voxels(np.where(ball.voxels, 0.05, image.voxels).astype(np.float32)), ball


@pytest.mark.slow
def test_excluded_lesion_does_not_change_the_warp(lesioned, warped):
    image, ball = lesioned
    healthy = warped[1]
    mask = image.with_voxels(image.voxels > 0.02)

    def change(**options) -> float:
        """Mean distance between the warps with and without the lesion, inside the lesion, mm."""
        transform = register_to_template(image, mask, TEMPLATE, SYN, seed=3, **options)
        there = healthy.to_template(ball, TEMPLATE.grid, interpolation="linear").voxels
        distance_mm = np.linalg.norm(transform.warp - healthy.warp, axis=-1)
        return float(distance_mm[there].mean())

    unmasked = change()
    assert change(lesion_mask=ball) < 0.7 * unmasked
    nothing = ball.with_voxels(np.zeros_like(ball.voxels))
    assert change(lesion_mask=nothing) == unmasked


def test_lesion_and_margin_are_excluded_on_another_grid(kit):
    grid = Grid((20, 20, 20), np.diag([1.0, 1.0, 1.0, 1.0]))
    coarse = Grid((10, 10, 10), np.diag([2.0, 2.0, 2.0, 1.0]))
    lesion = Volume(kit.ball(grid, (10, 10, 10), 3), grid)
    metric_mask = register._without_lesion(lesion, coarse)
    distance = np.linalg.norm(kit.millimetres(coarse) - 10, axis=-1)
    assert not metric_mask.voxels[distance <= 5].any()
    assert metric_mask.voxels[distance >= 7].all()


def test_save_and_load(warped, tmp_path, kit):
    image, transform = warped
    loaded = TemplateTransform.load(transform.save(tmp_path / "transforms"))
    assert sorted(path.name for path in (tmp_path / "transforms").iterdir()) == ["transform.json", "warps.npz"]
    assert np.array_equal(loaded.affine, transform.affine)
    assert np.array_equal(loaded.warp, transform.warp)
    assert np.array_equal(loaded.inverse_warp, transform.inverse_warp)
    assert loaded.jacobian_range == transform.jacobian_range
    one, two = (t.to_template(image, TEMPLATE.grid, interpolation="bspline").voxels for t in (transform, loaded))
    assert np.array_equal(one, two)


def test_save_and_load_of_an_affine(tmp_path, kit):
    transform = TemplateTransform.from_affine(kit.turned(5.0))
    loaded = TemplateTransform.load(transform.save(tmp_path))
    assert loaded.warp is None and np.array_equal(loaded.affine, transform.affine)


@pytest.mark.parametrize("damage", ["missing", "cut", "warps lost"])
def test_error_for_an_incomplete_transform(damage, warped, tmp_path):
    folder = warped[1].save(tmp_path / "transforms")
    if damage == "missing":
        (folder / "transform.json").unlink()
    elif damage == "cut":
        (folder / "transform.json").write_text('{"affine')
    else:
        (folder / "warps.npz").unlink()
    with pytest.raises(UserError, match="holds no complete transform to the template"):
        TemplateTransform.load(folder)


@pytest.mark.slow
def test_reproducible_in_another_process(tmp_path, kit, warped):
    image, transform = warped
    again = registered(image, SYN)
    assert np.array_equal(again.affine, transform.affine) and np.array_equal(again.warp, transform.warp)

    np.savez(tmp_path / "brain.npz", voxels=image.voxels, affine=image.affine)
    script = f"""
import hashlib, numpy as np
from voxout.data_manifests.images.volume import Grid, Volume
from voxout.preprocessing.registration.register import register_to_template
from voxout.preprocessing.settings import RegistrationSettings
from voxout.preprocessing.registration.template import load_template
with np.load({str(tmp_path / "brain.npz")!r}) as a:
    image = Volume(a["voxels"], Grid(a["voxels"].shape, a["affine"]))
settings = RegistrationSettings(working_spacing_mm=4.0)
t = register_to_template(image, image.with_voxels(image.voxels > 0.02), load_template(4.0), settings, seed=3)
print(hashlib.sha256(t.affine.tobytes() + t.warp.tobytes() + t.inverse_warp.tobytes()).hexdigest())
"""
    elsewhere = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    here = transform.affine.tobytes() + transform.warp.tobytes() + transform.inverse_warp.tobytes()
    # stdout holds only the line of the script: the registration prints nothing.
    assert elsewhere == hashlib.sha256(here).hexdigest() + "\n"


def test_temporary_files_are_removed(tmp_path, monkeypatch, kit):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    registered(kit.small_brain()[0], AFFINE)
    assert list(tmp_path.iterdir()) == []


def test_environment_is_restored(monkeypatch):
    monkeypatch.setenv("ANTS_RANDOM_SEED", "5")
    monkeypatch.delenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", raising=False)
    with register._repeatable(0):
        assert register.os.environ["ANTS_RANDOM_SEED"] == "1"
    assert register.os.environ["ANTS_RANDOM_SEED"] == "5"
    assert "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS" not in register.os.environ


def test_error_if_ants_writes_no_transform(monkeypatch, kit):
    # The result of ANTs if it cannot write.
    import ants

    monkeypatch.setattr(ants, "registration", lambda *_, **__: {"fwdtransforms": [], "invtransforms": []})
    with pytest.raises(UserError, match="wrote no transform"):
        registered(kit.small_brain()[0], AFFINE)


def test_scores_at_the_edge_of_the_mask_are_not_diluted(warped):
    image, transform = warped
    mask = TEMPLATE.brain_mask
    constant = mask.with_voxels(np.where(mask.voxels, 7.0, -1000.0).astype(np.float32))
    scores, coverage = transform.scores_to_native(constant, mask, image.grid)
    assert scores.voxels[coverage.voxels] == pytest.approx(7.0, abs=1e-4)
    assert (scores.voxels[~coverage.voxels] == 0).all()
    assert scores.grid is image.grid and coverage.grid is image.grid
    brain = image.voxels > 0.3
    assert (coverage.voxels & brain).sum() / brain.sum() > 0.95


def test_the_jacobian_of_a_known_stretch():
    points = np.moveaxis(np.indices(TEMPLATE.grid.size_vox), 0, -1) * 4.0
    warp = (points * [0.1, 0.2, -0.1]).astype(np.float32)
    found = register.jacobian_range(warp, TEMPLATE)
    assert [found.smallest, found.percentile_1, found.percentile_99] == pytest.approx([1.1 * 1.2 * 0.9] * 3, rel=1e-4)


def test_displacements_move_points_in_ras_before_the_affine(kit):
    shift = np.zeros((*TEMPLATE.grid.size_vox, 3), np.float32)
    shift[...] = [8.0, -12.0, 4.0]
    affine = kit.turned(10.0, (3.0, 4.0, 5.0))
    transform = TemplateTransform(
        affine, shift, -shift, TEMPLATE.grid, TemplateTransform.from_affine(affine).jacobian_range
    )
    grid = Grid((60, 70, 60), np.array([[3, 0, 0, -90], [0, 3, 0, -110], [0, 0, 3, -80], [0, 0, 0, 1.0]]))
    native_mm = (affine @ [10 + 8, 20 - 12, 30 + 4, 1])[:3]
    there = transform.to_template(
        Volume(kit.ball(grid, native_mm, 9), grid), load_template(2.0).grid, interpolation="linear"
    )
    assert kit.millimetres(there.grid)[there.voxels].mean(0) == pytest.approx([10, 20, 30], abs=0.5)
    back = transform.to_native(there, grid, interpolation="linear")
    assert kit.millimetres(grid)[back.voxels].mean(0) == pytest.approx(native_mm, abs=0.5)
    assert transform.points_to_template(np.array([native_mm])) == pytest.approx(np.array([[10, 20, 30]]), abs=0.02)
    assert transform.points_to_template(np.zeros((0, 3))).shape == (0, 3)
