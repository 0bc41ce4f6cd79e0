import numpy as np
import pytest
from voxout.data_manifests.errors import UserError
from voxout.data_manifests.images.volume import Grid, Volume, read_mask, read_volume
from voxout.preprocessing.brain_extraction.template_fallback import mask_from_template
from voxout.preprocessing.registration.resampling import canonical

from .test_extract import head_model


def test_mask_of_a_simulated_head(kit):
    head, brain, _ = head_model(kit, 8.0)
    found = mask_from_template(head, seed=1)
    assert found.grid is head.grid
    assert kit.dice(found.voxels, brain.voxels) > 0.92


@pytest.mark.slow
@pytest.mark.parametrize(("cohort", "name"), [("ixi", "sub-IXI033"), ("wmh", "sub-w01")])
def test_mask_of_a_real_head(cohort, name, real, kit):
    t1w = canonical(read_volume(real(cohort, name, "anat", f"{name}_T1w.nii.gz")))
    reference = real(cohort, "derivatives", "reference", name, "anat", f"{name}_desc-brain_mask.nii.gz")
    found = mask_from_template(t1w, seed=1)
    assert found.grid is t1w.grid
    assert kit.dice(found.voxels, canonical(read_mask(reference)).voxels) > 0.92


def test_error_for_an_image_without_a_head():
    grid = Grid((20, 20, 20), np.diag([4.0, 4.0, 4.0, 1.0]))
    dots = np.zeros(grid.size_vox, np.float32)
    dots[::7, ::7, ::7] = 1
    with pytest.raises(UserError, match="the T1w shows no head"):
        mask_from_template(Volume(dots, grid), seed=1)
