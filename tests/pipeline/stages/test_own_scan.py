"""What a subject's page holds of the scans as they were given."""

import json

import numpy as np
import pytest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume, write_volume
from voxout.pipeline.config.config import load_config
from voxout.pipeline.stages.report_pages import own_scan
from voxout.preprocessing.registration.template_transform import TemplateTransform

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 2, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1]])
GRID = Grid((20, 18, 16), AFFINE)
SHIFT = np.array([3.0, -4.0, 5.0])
"""Of the FLAIR's coordinates against those of the T1w."""


@pytest.fixture
def written(tmp_path):
    random = np.random.default_rng(0)
    moved = AFFINE.copy()
    moved[:3, 3] += SHIFT
    scans = {"t1w": Volume(random.random(GRID.size_vox, np.float32) + 1, GRID)}
    scans["flair"] = Volume(scans["t1w"].voxels * 3, Grid(GRID.size_vox, moved))
    subject = SubjectRecord("01", "patient", {name: tmp_path / f"{name}.nii.gz" for name in scans})
    for name, scan in scans.items():
        write_volume(subject.images[name], scan)
    out = OutputFolder(tmp_path / "out")
    brain = np.zeros(GRID.size_vox, bool)
    brain[6:14, 5:12, 4:11] = True
    for path in (out.native_brain_mask(subject), out.native_coverage(subject)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(path, Volume(brain, GRID))
    write_volume(out.native_map(subject), Volume(brain.astype(np.float32), GRID))
    out.transform_folder(subject).mkdir(parents=True)
    to_flair = np.eye(4)
    to_flair[:3, 3] = SHIFT
    content = {"t1w_to_image_ras_mm": to_flair.tolist(), "shift_mm": 7.0, "information": 0.4}
    out.alignment(subject, "flair").write_text(json.dumps(content))
    return subject, out, scans, brain


def given(written, *settings):
    subject, out, _, _ = written
    config = load_config(overrides=("preprocessing.modalities=[t1w,flair]", *settings))
    return own_scan(subject, out, config, TemplateTransform.from_affine(np.eye(4)))


def test_the_scans_are_aligned_by_their_headers_without_interpolation(written):
    own = given(written)
    _, _, scans, _ = written
    assert own.whole_head and own.images.name == "T1w" and list(own.images.others) == ["FLAIR"]
    assert (own.images.scan.voxels == scans["t1w"].voxels).all()
    flair = own.images.others["FLAIR"]
    assert (flair.voxels == scans["flair"].voxels).all()
    # The same anatomy lies at the same place of the T1w's space.
    assert flair.affine == pytest.approx(AFFINE)


def test_the_brain_alone_can_be_kept(written):
    own = given(written, "evaluation.page_scan=brain")
    _, _, scans, brain = written
    assert not own.whole_head
    for image, name in ((own.images.scan, "t1w"), (own.images.others["FLAIR"], "flair")):
        assert not image.voxels[~brain].any() and (image.voxels[brain] == scans[name].voxels[brain]).all()


def test_without_the_t1w_there_is_no_own_scan_and_without_the_flair_the_t1w_alone(written):
    subject = written[0]
    subject.images["flair"].unlink()
    assert list(given(written).images.others) == []
    subject.images["t1w"].unlink()
    assert given(written) is None
