"""Tests of the input channels and their file."""

import json

import numpy as np
import pytest
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.volume import Volume, write_volume
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.intensity.derived_maps import Brain
from voxout.preprocessing.intensity.standardisation import IntensityScale
from voxout.preprocessing.prepared_images import PreparedImages
from voxout.preprocessing.registration.template import load_template

TEMPLATE = load_template(5.0)
GRID = TEMPLATE.grid
SCALE = IntensityScale("z_score", {"flair": (0.1, 0.9), "t1w": (0.0, 1.0)})


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> PreparedImages:
    folder = tmp_path_factory.mktemp("prepared")
    mask = TEMPLATE.brain_mask.voxels.copy()
    mask[:15] = False
    random = np.random.default_rng(0)
    paths = {}
    for modality in ("t1w", "flair"):
        noisy = np.clip(TEMPLATE.t1w.voxels + random.normal(0, 0.05, mask.shape), 0.01, 1)
        paths[modality] = write_volume(folder / f"{modality}.nii.gz", Volume(np.where(mask, noisy, 0), GRID))
    return PreparedImages("sub-01", paths, write_volume(folder / "brain.nii.gz", Volume(mask, GRID)))


def test_channel_order(subject):
    channels = Channels(SCALE, ("detail", "junction"))
    assert channels.names == ("flair", "t1w", "flair_detail", "flair_junction", "t1w_detail", "t1w_junction")
    assert channels.modalities == ("flair", "t1w")
    assert channels.index(("t1w_detail", "flair")) == [4, 0]
    volumes = channels.read(subject, GRID)
    assert volumes.shape == (6, *GRID.size_vox) and volumes.dtype == np.float32
    assert np.array_equal(volumes[:2], SCALE.read(subject, GRID))
    mask = subject.read_brain_mask(GRID)
    for name, one in (("t1w_detail", "detail"), ("t1w_junction", "junction")):
        by_hand = Brain(Volume(volumes[1], GRID), mask).derive(one).voxels
        assert np.array_equal(volumes[channels.names.index(name)], by_hand) and by_hand.any()


def test_no_derived_maps_by_default(subject):
    assert Channels(SCALE).names == ("flair", "t1w")
    assert np.array_equal(Channels(SCALE).read(subject, GRID), SCALE.read(subject, GRID))


def test_error_for_an_unknown_channel():
    with pytest.raises(
        UserError, match="t1w_detail not found, expected some of flair, t1w, flair_junction, t1w_junction"
    ):
        Channels(SCALE, ("junction",)).index(("t1w", "t1w_detail"))


@pytest.mark.parametrize("derived", [(), ("junction", "detail")])
def test_save_and_load_are_bit_identical(derived, subject, tmp_path):
    learnt = IntensityScale.learn("nyul", ("t1w", "flair"), [subject], GRID)
    Channels(learnt, derived).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["channels.json"]
    back = Channels.load(tmp_path)
    assert back == Channels(learnt, derived) and back.modalities == ("t1w", "flair")
    assert np.array_equal(back.read(subject, GRID), Channels(learnt, derived).read(subject, GRID))


_GOOD = {"scale": {"method": "nyul", "standard": {"t1w": [n / 10 for n in range(11)]}}, "derived": ["junction"]}
_TOUCHING = {"method": "z_score", "standard": {"t1w": [0.5, 0.5]}}
_REVERSED = {"method": "z_score", "standard": {"t1w": [1.0, 0.0]}}
_FEWER = {"method": "nyul", "standard": {"t1w": [0.0, 1.0]}}
_FAR = {"method": "z_score", "standard": {"t1w": [0.0, 5.0]}}
_NAN = {"method": "z_score", "standard": {"t1w": [0.0, float("nan")]}}
_WORDS = {"method": "z_score", "standard": {"t1w": ["0", "1"]}}


@pytest.mark.parametrize(
    "content",
    [
        *(None, "{", "{}", "[]", "[" * 100_000, json.dumps(_GOOD | {"derived": ["cortex"]})),
        *(json.dumps(_GOOD | {"scale": scale}) for scale in (_TOUCHING, _REVERSED, _FEWER, _FAR, _NAN, _WORDS)),
    ],
)
def test_error_for_a_missing_or_damaged_file(content, tmp_path):
    if content is not None:
        (tmp_path / "channels.json").write_text(content)
    with pytest.raises(UserError, match=r"channels.json\W: .*, expected the intensity scale of the training controls"):
        Channels.load(tmp_path)
    (tmp_path / "channels.json").write_text(json.dumps(_GOOD))
    assert Channels.load(tmp_path).names == ("t1w", "t1w_junction")
