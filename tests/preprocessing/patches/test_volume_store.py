import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from voxout.data_manifests.errors import SubjectError, UserError
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume, write_volume
from voxout.preprocessing.intensity.channels import Channels
from voxout.preprocessing.intensity.standardisation import IntensityScale
from voxout.preprocessing.patches.volume_store import VolumeStore
from voxout.preprocessing.prepared_images import PreparedImages

GRID = Grid((5, 6, 4), np.array([[2.0, 0, 0, -9], [0, 2, 0, -7], [0, 0, 2, 3], [0, 0, 0, 1]]))
MASK = np.zeros(GRID.size_vox, bool)
MASK[1:4, 1:5, 1:3] = True
AS_PREPARED = Channels(IntensityScale("percentiles", {"t1w": (0.0, 1.0), "flair": (0.0, 1.0)}))


@pytest.fixture
def cohort(tmp_path):
    random = np.random.default_rng(0)
    subjects = []
    for key in ("sub-01", "sub-02_ses-a", "sub-03"):
        images = random.random((2, *GRID.size_vox)).astype(np.float32)
        paths = {
            channel: write_volume(tmp_path / f"{key}-{channel}.nii.gz", Volume(image, GRID))
            for channel, image in zip(("t1w", "flair"), images, strict=True)
        }
        brain = write_volume(tmp_path / f"{key}-brain.nii.gz", Volume(np.ones(GRID.size_vox, bool), GRID))
        subjects.append((PreparedImages(key, paths, brain), images))
    return subjects


def create(tmp_path, cohort, **change):
    arguments = {"template_grid": GRID, "brain_mask": MASK, "channels": AS_PREPARED} | change
    return VolumeStore.create(tmp_path / "store", [subject for subject, _ in cohort], **arguments)


def test_create_and_open(tmp_path, cohort):
    create(tmp_path, cohort)
    store = VolumeStore.open(tmp_path / "store")
    assert store.keys == ("sub-01", "sub-02_ses-a", "sub-03")
    assert store.channels == ("t1w", "flair")
    assert store.volumes.dtype == np.float16
    assert isinstance(store.volumes, np.memmap)
    np.testing.assert_allclose(store.volumes, np.stack([images for _, images in cohort]), atol=5e-4)
    np.testing.assert_array_equal(store.grid.brain_mask, MASK)
    assert store.grid.grid.same_as(GRID)
    assert store.index(["sub-03", "sub-01"]).tolist() == [2, 0]


def test_changes_are_not_written_to_disk(tmp_path, cohort):
    create(tmp_path, cohort).volumes[:] = 9
    assert VolumeStore.open(tmp_path / "store").volumes.max() <= 1


def _in_memory_kb(path):
    """Resident memory of a mapped file in this process, kB."""
    maps = Path("/proc/self/smaps").read_text().split(str(path.resolve()))[1:]
    return sum(int(re.search(r"Rss:\s+(\d+)", found)[1]) for found in maps)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_release_pages_frees_memory(tmp_path, cohort):
    store = create(tmp_path, cohort)
    before = np.array(store.volumes[1])
    assert _in_memory_kb(tmp_path / "store" / "volumes.npy") > 0
    store.release_pages()
    assert _in_memory_kb(tmp_path / "store" / "volumes.npy") == 0
    np.testing.assert_array_equal(store.volumes[1], before)
    replace(store, volumes=before[None]).release_pages()  # not memory-mapped: no effect


def test_error_for_an_unknown_subject(tmp_path, cohort):
    with pytest.raises(UserError, match="does not contain sub-09. Run the stage extract again"):
        create(tmp_path, cohort).index(["sub-01", "sub-09"])


def test_channels_and_their_definition_are_stored(tmp_path, cohort):
    halved = Channels(IntensityScale("z_score", {"t1w": (0.0, 0.5)}), ("detail",))
    assert create(tmp_path, cohort).channels == ("t1w", "flair")
    store = create(tmp_path, cohort, channels=halved)
    assert store.channels == ("t1w", "t1w_detail")
    assert Channels.load(tmp_path / "store") == halved
    assert np.array_equal(store.volumes[1], halved.read(cohort[1][0], GRID).astype(np.float16))
    assert 0.2 < store.volumes[0][0][MASK].mean() < 0.3, "half of the range 0 to 1"


def test_brain_mask_of_each_subject_is_stored(tmp_path, cohort):
    own = np.random.default_rng(1).random((3, *GRID.size_vox)) < 0.7
    for (subject, _), brain in zip(cohort, own, strict=True):
        write_volume(subject.brain_mask, Volume(brain, GRID))
    store = create(tmp_path, cohort)
    assert isinstance(store.inside, np.memmap) and store.inside.dtype == bool
    assert np.array_equal(store.inside, own)
    assert np.array_equal(store.volumes[:, 0] > 0, own & (store.volumes[:, 0] > 0))
    assert np.array_equal(store.grid.brain_mask, MASK)


def test_only_selects_channels(tmp_path, cohort):
    store = create(tmp_path, cohort, channels=replace(AS_PREPARED, derived=("detail",)))
    assert store.channels == ("t1w", "flair", "t1w_detail", "flair_detail")
    for names, rows in (
        (("t1w", "flair"), [0, 1]),
        (("flair_detail",), [3]),
        (("flair_detail", "t1w"), [3, 0]),
    ):
        some = store.only(names)
        assert some.channels == names and some.grid is store.grid and some.inside is store.inside
        assert np.array_equal(some.volumes, store.volumes[:, rows])
    assert np.shares_memory(store.only(store.channels[1:3]).volumes, store.volumes), "contiguous channels are a view"
    with pytest.raises(UserError, match="Channels: t2w, t1w_swelling not found, expected some of .* run the stage"):
        store.only(("t1w", "t2w", "t1w_swelling"))


def test_it_is_a_dataset_for_data_loaders(tmp_path, cohort):
    from monai.data import DataLoader, Dataset
    from monai.transforms import Flipd

    store = create(tmp_path, cohort)
    item = store[1]
    assert len(store) == 3 and item["key"] == "sub-02_ses-a"
    assert item["image"].dtype == torch.float32 and item["brain_mask"].dtype == torch.bool
    np.testing.assert_array_equal(item["image"], store.volumes[1])
    np.testing.assert_array_equal(item["brain_mask"], store.inside[1][None])
    np.testing.assert_array_equal(item["image"].affine, GRID.affine)
    item["image"][:] = 9
    assert store.volumes.max() <= 1, "an item is a copy"
    assert len(list(store)) == 3
    (batch,) = DataLoader(Dataset(store, Flipd(["image", "brain_mask"], spatial_axis=0)), batch_size=3)
    assert batch["image"].shape == (3, 2, *GRID.size_vox) and batch["key"] == list(store.keys)
    np.testing.assert_array_equal(batch["image"], store.volumes[:, :, ::-1])


def test_errors_name_the_subject(tmp_path, cohort):
    (broken, images), path = cohort[1], cohort[1][0].images["flair"]
    moved = Grid(GRID.size_vox, GRID.affine + np.array([[0, 0, 0, 2.0], *np.zeros((3, 4))]))
    write_volume(path, Volume(images[1], moved))
    with pytest.raises(SubjectError, match="sub-02_ses-a: its prepared flair lies on .* expected the template grid"):
        create(tmp_path, cohort)
    write_volume(path, Volume(images[1] * 300, GRID))
    with pytest.raises(SubjectError, match="sub-02_ses-a: its prepared flair has intensities from .* expected 0 to 1"):
        create(tmp_path, cohort)
    path.unlink()
    with pytest.raises(SubjectError, match="sub-02_ses-a: .* no such file"):
        create(tmp_path, cohort)
    alone = PreparedImages(broken.key, {"t1w": broken.images["t1w"]}, broken.brain_mask)
    with pytest.raises(SubjectError, match="sub-02_ses-a: has no prepared flair"):
        create(tmp_path, [(alone, images)])


def test_errors_for_no_and_duplicate_subjects(tmp_path, cohort):
    with pytest.raises(UserError, match="no subject is left"):
        create(tmp_path, [])
    with pytest.raises(UserError, match="sub-01 named twice"):
        create(tmp_path, [*cohort, cohort[0]])


def test_incomplete_store_does_not_open(tmp_path, cohort):
    create(tmp_path, cohort)
    cohort[2][0].images["t1w"].unlink()
    with pytest.raises(SubjectError):
        create(tmp_path, cohort)
    with pytest.raises(UserError, match="holds no complete volume store. Run the stage extract first"):
        VolumeStore.open(tmp_path / "store")
    assert not [path for path in (tmp_path / "store").iterdir() if path.name.startswith(".")]


def test_error_for_a_changed_index(tmp_path, cohort):
    create(tmp_path, cohort)
    path = tmp_path / "store" / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"keys": ["sub-01"]}))
    with pytest.raises(UserError, match="do not match each other"):
        VolumeStore.open(tmp_path / "store")


def test_error_for_masks_of_another_store(tmp_path, cohort):
    create(tmp_path, cohort)
    np.save(tmp_path / "store" / "inside.npy", np.ones((2, *GRID.size_vox), bool))
    with pytest.raises(UserError, match="do not match each other"):
        VolumeStore.open(tmp_path / "store")
