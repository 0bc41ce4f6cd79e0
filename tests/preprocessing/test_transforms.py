"""The steps of preparation as MONAI transforms: equal to `prepare_subject`, and invertible."""

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, Invertd, LoadImaged, Orientationd
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.volume import Grid, Volume, read_mask, read_volume, write_volume
from voxout.preprocessing.prepare_subject import prepare_subject
from voxout.preprocessing.settings import (
    BiasFieldSettings,
    BrainExtractionSettings,
    PreprocessingSettings,
    RegistrationSettings,
)
from voxout.preprocessing.transforms import (
    AlignToT1wd,
    CorrectBiasFieldd,
    ExtractBraind,
    RegisterToTemplated,
    ScaleBrainIntensityd,
)

SETTINGS = PreprocessingSettings(
    spacing_mm=4.0,
    brain_extraction=BrainExtractionSettings(method="none"),
    bias_field=BiasFieldSettings(working_spacing_mm=8.0),
    registration=RegistrationSettings(transform="affine", working_spacing_mm=4.0),
)
STEPS = Compose(
    [
        LoadImaged("t1w", reader="NibabelReader", ensure_channel_first=True),
        Orientationd("t1w", "RAS"),
        ExtractBraind("t1w", settings=SETTINGS.brain_extraction),
        CorrectBiasFieldd("t1w", settings=SETTINGS.bias_field),
        RegisterToTemplated("t1w", spacing_mm=4.0, settings=SETTINGS.registration),
        ScaleBrainIntensityd("t1w"),
    ]
)


@pytest.fixture(scope="module")
def scan(tmp_path_factory, kit):
    """A skull-stripped brain, stored as PSR."""
    image, _ = kit.small_brain("PSR")
    folder = tmp_path_factory.mktemp("scan")
    return write_volume(folder / "t1w.nii.gz", image.with_voxels((1000 * image.voxels).astype(np.float32)))


@pytest.fixture(scope="module")
def prepared(scan):
    return STEPS({"t1w": scan})


def test_they_compute_what_prepare_subject_computes(scan, prepared, tmp_path):
    subject, out = SubjectRecord("01", "control", {"t1w": scan}), OutputFolder(tmp_path)
    prepare_subject(subject, SETTINGS, out, seed=1)
    image, mask = read_volume(out.prepared_image(subject, "t1w")), read_mask(out.prepared_brain_mask(subject))
    np.testing.assert_array_equal(Volume.from_metatensor(prepared["t1w"]).voxels, image.voxels)
    np.testing.assert_array_equal(Volume.from_metatensor(prepared["brain_mask"]).voxels, mask.voxels)
    assert Volume.from_metatensor(prepared["t1w"]).grid.same_as(image.grid)


def test_inverse_brings_volumes_of_the_template_to_the_scan(scan, prepared, kit):
    stored = read_volume(scan)
    native = Volume.from_metatensor(STEPS.inverse(prepared)["t1w"])
    assert native.grid.same_as(stored.grid), "also the orientation is undone"
    brain = stored.voxels > 200
    assert np.corrcoef(native.voxels[brain], stored.voxels[brain])[0, 1] > 0.9
    prediction = prepared["t1w"] > 0.5
    inverted = Invertd("prediction", STEPS, orig_keys="t1w")({**prepared, "prediction": prediction})["prediction"]
    assert set(np.unique(inverted)) == {0, 1}, "the nearest voxel"
    bright = stored.voxels > np.median(stored.voxels[brain])
    assert Volume.from_metatensor(inverted).grid.same_as(stored.grid)
    assert kit.dice(np.asarray(inverted)[0] > 0, bright) > 0.6


def test_a_data_loader_collates_them(scan):
    """Without an estimated bias field and affine, to be quick."""
    quick = Compose(
        [
            *STEPS.transforms[:3],
            CorrectBiasFieldd("t1w", settings=BiasFieldSettings(enabled=False)),
            RegisterToTemplated("t1w", spacing_mm=4.0, settings=RegistrationSettings(transform="none")),
            ScaleBrainIntensityd("t1w"),
        ]
    )
    alone = quick({"t1w": scan})["t1w"]
    (batch,) = DataLoader(Dataset([{"t1w": scan}, {"t1w": scan}], quick), batch_size=2)
    assert batch["t1w"].shape == (2, *alone.shape)
    assert torch.equal(batch["t1w"][1].as_tensor(), alone.as_tensor())


def test_alignment_changes_only_the_affine(kit):
    t1w, _ = kit.small_brain()
    flair = np.where(t1w.voxels > 0, 1.2 - t1w.voxels, 0).astype(np.float32)
    moved = Volume(flair, Grid(flair.shape, kit.turned(3.0, (5, -6, 4)) @ t1w.affine))
    mask = t1w.with_voxels(t1w.voxels > 0)
    data = {"t1w": t1w, "flair": moved, "brain_mask": mask}
    data = AlignToT1wd("flair")({name: volume.to_metatensor() for name, volume in data.items()})
    np.testing.assert_array_equal(data["flair"][0], flair)
    corners = np.array([[x, y, z, 1] for x in (10, 40) for y in (10, 50) for z in (10, 40)]).T
    assert np.abs((data["flair"].affine.numpy() - t1w.affine) @ corners)[:3].max() < 1.5
    # The mask is on the grid of the T1w; the bias field of the FLAIR is estimated inside it all the same.
    corrected = CorrectBiasFieldd("flair", settings=SETTINGS.bias_field)(data)["flair"]
    assert np.corrcoef(corrected[0][mask.voxels], flair[mask.voxels])[0, 1] > 0.9


def test_other_orientations_are_refused(kit):
    image, _ = kit.small_brain("LPS")
    with pytest.raises(UserError, match="t1w: has the orientation LPS, expected RAS. Apply monai.transforms.Orient"):
        ExtractBraind()({"t1w": image.to_metatensor()})
