from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from voxout.data_manifests.errors import UserError
from voxout.preprocessing.brain_extraction import BrainExtraction
from voxout.preprocessing.quality import Quality, measure_quality, quality_picture
from voxout.preprocessing.settings import RegistrationSettings
from voxout.preprocessing.template import load_template
from voxout.preprocessing.template_transform import TemplateTransform

TEMPLATE = load_template(4.0)
SETTINGS = RegistrationSettings()
IDENTITY = TemplateTransform.from_affine(np.eye(4))


def judged(transform=IDENTITY, noise=0.0, **options) -> Quality:
    random = np.random.default_rng(0).standard_normal(TEMPLATE.grid.size_vox)
    t1w = TEMPLATE.t1w.with_voxels((1000 * TEMPLATE.t1w.voxels * (1 + noise * random)).astype(np.float32))
    return measure_quality(t1w, BrainExtraction(TEMPLATE.brain_mask, "given"), transform, TEMPLATE, SETTINGS, **options)


def test_the_template_itself_is_perfect():
    quality = judged()
    assert quality.brain_overlap == quality.coverage == 1
    assert quality.similarity_before == pytest.approx(1) and quality.similarity_after == pytest.approx(1)
    assert quality.white_matter_overlap > 0.8
    assert quality.jacobian_smallest == quality.jacobian_percentile_99 == 1
    assert quality.brain_ml == pytest.approx(TEMPLATE.brain_mask.voxels.sum() * 0.064)
    assert (quality.verdict, quality.reasons) == ("pass", ())


def test_a_shifted_brain_fails_and_says_so(kit):
    quality = judged(TemplateTransform.from_affine(kit.turned(0.0, (40.0, 0, 0))))
    assert quality.verdict == "fail"
    assert quality.brain_overlap < 0.85
    assert "registration failed: the warped brain overlaps the template's with Dice 0." in quality.reasons[0]


def test_a_brain_upside_down_fails_by_its_inside():
    # Turned about its own middle a brain's outline hardly changes: only the similarity tells.
    middle = np.eye(4)
    middle[:3, 3] = [0, -18, 0]
    flip = middle @ np.diag([1.0, -1.0, 1.0, 1.0]) @ np.linalg.inv(middle)
    quality = judged(TemplateTransform.from_affine(flip))
    assert quality.verdict == "fail"
    assert any("is it a T1w, the right way up?" in reason for reason in quality.reasons)


def test_a_folded_warp_and_notes_warn():
    folded = replace(IDENTITY, jacobian_range=replace(IDENTITY.jacobian_range, smallest=-0.2))
    quality = judged(folded, warnings=["its FLAIR shows only 60% of the brain"])
    assert quality.verdict == "warn"
    assert quality.reasons == ("the warp folds space inside the brain", "its FLAIR shows only 60% of the brain")


@pytest.mark.parametrize("noise", [0.02, 0.05, 0.15])
def test_known_noise_is_measured(noise):
    # On the flat inside of the white matter, so the anatomy's own differences stay out.
    flat = np.where(TEMPLATE.white.voxels > 0.7, 0.9, TEMPLATE.t1w.voxels * 0.5)
    random = np.random.default_rng(1).standard_normal(flat.shape)
    t1w = TEMPLATE.t1w.with_voxels((flat * (1 + noise * random)).astype(np.float32))
    brain = BrainExtraction(TEMPLATE.brain_mask, "given")
    found = measure_quality(t1w, brain, IDENTITY, TEMPLATE, SETTINGS)
    assert found.noise == pytest.approx(noise, rel=0.3)
    assert any("noise of" in reason for reason in found.reasons) == (noise > 0.1)


def test_json_there_and_back(tmp_path):
    quality = judged(warnings=["a note"])
    assert Quality.load(quality.save(tmp_path / "anat" / "quality.json")) == quality
    assert [path.name for path in (tmp_path / "anat").iterdir()] == ["quality.json"]


@pytest.mark.parametrize("content", [None, "{", '{"brain_ml": 1}'])
def test_a_missing_or_damaged_record_is_told(content, tmp_path):
    if content is not None:
        (tmp_path / "quality.json").write_text(content)
    with pytest.raises(UserError, match="no quality record of a prepared subject there"):
        Quality.load(tmp_path / "quality.json")


def test_the_picture_is_small_and_shows_all_images(tmp_path):
    template = load_template(2.0)
    prepared = {"t1w": template.t1w, "flair": template.grey}
    path = quality_picture(
        tmp_path / "figures" / "q.png", template.t1w, template.brain_mask, prepared, template, title="sub-01: pass"
    )
    assert path.stat().st_size < 200_000
    with Image.open(path) as picture:
        width, height = picture.size
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert width > 800 and height > 350
    for third in np.array_split(pixels, 3):
        assert (third.max(axis=-1) > 150).mean() > 0.02  # a brain
        assert ((third[..., 0] > 150) & (third[..., 2] < 60)).sum() > 100  # outlines in red or yellow


def test_the_patients_right_is_on_the_left_of_the_picture(tmp_path):
    # The template, with the right half of the head four times as bright.
    right = np.arange(TEMPLATE.brain_mask.voxels.shape[0]) > TEMPLATE.brain_mask.voxels.shape[0] // 2
    voxels = np.where(right[:, None, None], 1.0, 0.25) * TEMPLATE.brain_mask.voxels
    head = TEMPLATE.brain_mask.with_voxels(voxels.astype(np.float32))
    path = quality_picture(tmp_path / "q.png", head, TEMPLATE.brain_mask, {"t1w": head}, TEMPLATE, title="sub-01")
    picture = np.asarray(Image.open(path).convert("L"), dtype=float)
    panels = np.array_split(picture[40:], 7, axis=1)
    for coronal_or_axial in panels[2:]:
        left_half, right_half = np.array_split(coronal_or_axial, 2, axis=1)
        assert left_half.mean() > 2 * right_half.mean()
