"""Flags of findings in a hand-made brain: an ellipsoid in template space with blobs."""

from dataclasses import replace

import numpy as np
import pytest
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.evaluation.report.flags import BORDER, EDGE, FLAGS, MIRROR, VENTRICLE, WARP, OnTemplate, flags_of

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
AFFINE[:3, 3] = [-80, -110, -70]
GRID = Grid((81, 96, 76), AFFINE)
MM = np.moveaxis(np.indices(GRID.size_vox), 0, -1) * 2.0 + AFFINE[:3, 3]
CENTRE = (0.0, -18.0, 10.0)
BRAIN = (((MM - CENTRE) / [70, 88, 68]) ** 2).sum(axis=-1) < 1
DEEP = (38.0, -20.0, 35.0)
"""In white matter: far from surface, ventricles and midline."""


def blob(place, radius=5.0):
    return ((MM - place) ** 2).sum(axis=-1) <= radius**2


def on_template(*places, **more):
    volume = {name: Volume(voxels, GRID) for name, voxels in more.items()}
    map = Volume(np.where(np.any([blob(at) for at in places], axis=0), 5.0, 0.0).astype(np.float32), GRID)
    brain, tissue = Volume(BRAIN, GRID), Volume((0.5 * BRAIN).astype(np.float32), GRID)
    return replace(OnTemplate(map, brain, brain, tissue, tissue), **volume)


def flags(place, template):
    (found,) = flags_of([MM[blob(place)]], template, 4.0)
    return found


def test_a_finding_in_deep_white_matter_has_no_flags():
    assert flags(DEEP, on_template(DEEP)) == ()
    assert flags_of([], on_template(DEEP), 4.0) == []


@pytest.mark.parametrize(("shift", "flagged"), [((0, 0, 0), True), ((0, 4, 0), True), ((0, 12, 0), False)])
def test_a_score_at_the_mirrored_place(shift, flagged):
    mirrored = np.array(DEEP) * [-1, 1, 1] + shift
    assert flags(DEEP, on_template(DEEP, mirrored)) == ((MIRROR,) if flagged else ())


def test_below_the_threshold_nothing_is_mirrored():
    template = on_template(DEEP, np.array(DEEP) * [-1, 1, 1])
    low = template.map.with_voxels(np.where(MM[..., 0] < 0, 0.7, 1).astype(np.float32) * template.map.voxels)
    assert flags(DEEP, replace(template, map=low)) == ()


def test_a_finding_on_the_midline_is_not_its_own_mirror_image():
    middle = (0.0, -50.0, 50.0)
    assert MIRROR not in flags(middle, on_template(middle))


@pytest.mark.parametrize(("up", "flagged"), [(48.0, True), (36.0, False)])
def test_the_edge_of_the_field_of_view(up, flagged):
    # Brain above 50 mm has no score.
    place = (38.0, -20.0, up - 4)
    assert (EDGE in flags(place, on_template(place, covered=BRAIN & (MM[..., 2] < 50)))) is flagged


def test_a_thin_rim_without_scores_is_the_surface_of_a_smaller_brain():
    smaller = (((MM - CENTRE) / [68, 86, 66]) ** 2).sum(axis=-1) < 1
    place = (66.0, -18.0, 10.0)
    (found,) = flags_of([MM[blob(place) & smaller]], on_template(place, covered=smaller, brain=smaller), 4.0)
    assert found == (BORDER,)


@pytest.mark.parametrize(("depth", "flagged"), [(0.0, True), (2.0, True), (10.0, False)])
def test_the_border_of_the_brain_mask(depth, flagged):
    place = (0.0 + 69 - depth, -18.0, 10.0)
    found = (MM[blob(place) & BRAIN],)
    (own,) = flags_of(found, on_template(place), 4.0)
    assert own == ((BORDER,) if flagged else ())


@pytest.mark.parametrize(
    ("place", "flagged"), [((-8.0, 10.0, 8.0), True), ((26.0, -46.0, 12.0), True), ((28.0, 6.0, 2.0), False)]
)
def test_ventricles(place, flagged):
    # The left frontal horn, the right trigone, and the right putamen.
    assert (VENTRICLE in flags(place, on_template(place))) is flagged


@pytest.mark.parametrize(("change", "flagged"), [(0.4, True), (0.6, False), (2.4, False), (3.0, True)])
def test_strong_local_deformation(change, flagged):
    # The Jacobian has a grid of its own.
    coarse = Grid((41, 48, 38), np.diag([4.0, 4.0, 4.0, 1.0]) + np.pad(AFFINE[:3, 3:], ((0, 1), (3, 0))))
    values = np.ones(coarse.size_vox, np.float32)
    values[:, :, 20:] = change
    template = replace(on_template(DEEP), jacobian=Volume(values, coarse))
    assert flags(DEEP, template) == ((WARP,) if flagged else ())


def test_the_orientation_of_the_grid_does_not_matter():
    turn = np.diag([-1.0, 1.0, 1.0, 1.0])
    turn[0, 3] = GRID.size_vox[0] - 1
    template = on_template(DEEP, np.array(DEEP) * [-1, 1, 1], covered=BRAIN & (MM[..., 2] < 40))
    turned = Grid(GRID.size_vox, AFFINE @ turn)
    flipped = {
        name: Volume(getattr(template, name).voxels[::-1], turned)
        for name in ("map", "covered", "brain", "grey", "white")
    }
    assert flags(DEEP, template) == flags(DEEP, OnTemplate(**flipped)) == (MIRROR, EDGE)


def test_every_flag_has_a_short_phrase_and_a_sentence():
    for flag in FLAGS:
        assert len(flag.text) < 30 and flag.meaning.endswith(".") and ";" not in flag.text
