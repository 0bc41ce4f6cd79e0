from dataclasses import fields, replace

import numpy as np
import pytest
from voxout.data_manifests.errors import UserError
from voxout.preprocessing.brain_extraction.extract import BrainExtraction
from voxout.preprocessing.quality import verdict
from voxout.preprocessing.quality.metrics import LABELS, QualityNumbers
from voxout.preprocessing.quality.verdict import Quality, measure_quality
from voxout.preprocessing.registration.template import load_template
from voxout.preprocessing.registration.template_transform import TemplateTransform
from voxout.preprocessing.settings import PreprocessingSettings, QualitySettings

TEMPLATE = load_template(4.0)
SETTINGS = PreprocessingSettings()
IDENTITY = TemplateTransform.from_affine(np.eye(4))


def quality_of(transform=IDENTITY, noise=0.0, **options) -> Quality:
    random = np.random.default_rng(0).standard_normal(TEMPLATE.grid.size_vox)
    t1w = TEMPLATE.t1w.with_voxels((1000 * TEMPLATE.t1w.voxels * (1 + noise * random)).astype(np.float32))
    return measure_quality(t1w, BrainExtraction(TEMPLATE.brain_mask, "given"), transform, TEMPLATE, SETTINGS, **options)


def test_template_itself_passes():
    quality = quality_of()
    assert quality.brain_overlap == quality.coverage == 1
    assert quality.similarity_before == pytest.approx(1) and quality.similarity_after == pytest.approx(1)
    assert quality.white_matter_overlap > 0.8
    assert quality.jacobian_smallest == quality.jacobian_percentile_99 == 1
    assert quality.brain_ml == pytest.approx(TEMPLATE.brain_mask.voxels.sum() * 0.064)
    assert (quality.verdict, quality.reasons) == ("pass", ())


def test_shifted_brain_fails(kit):
    quality = quality_of(TemplateTransform.from_affine(kit.turned(0.0, (40.0, 0, 0))))
    assert quality.verdict == "fail"
    assert quality.brain_overlap < 0.85
    assert "registration failed: the warped brain overlaps the template's with Dice 0." in quality.reasons[0]


def test_flipped_brain_fails_by_similarity():
    # Flipped about its centre, a brain hardly changes its outline: only the similarity is low.
    middle = np.eye(4)
    middle[:3, 3] = [0, -18, 0]
    flip = middle @ np.diag([1.0, -1.0, 1.0, 1.0]) @ np.linalg.inv(middle)
    quality = quality_of(TemplateTransform.from_affine(flip))
    assert quality.verdict == "fail"
    assert any("that the scan is a T1w and that its orientation is correct" in reason for reason in quality.reasons)


def test_folded_warp_and_other_warnings():
    folded = replace(IDENTITY, jacobian_range=replace(IDENTITY.jacobian_range, smallest=-0.2))
    quality = quality_of(folded, warnings=["the FLAIR covers only 60% of the brain"])
    assert quality.verdict == "warn"
    assert quality.reasons == ("the warp folds space inside the brain", "the FLAIR covers only 60% of the brain")


@pytest.mark.parametrize("noise", [0.02, 0.05, 0.15])
def test_noise_estimate(noise):
    # White matter is constant, so that anatomy does not contribute to the noise.
    flat = np.where(TEMPLATE.white.voxels > 0.7, 0.9, TEMPLATE.t1w.voxels * 0.5)
    random = np.random.default_rng(1).standard_normal(flat.shape)
    t1w = TEMPLATE.t1w.with_voxels((flat * (1 + noise * random)).astype(np.float32))
    brain = BrainExtraction(TEMPLATE.brain_mask, "given")
    found = measure_quality(t1w, brain, IDENTITY, TEMPLATE, SETTINGS)
    assert found.noise == pytest.approx(noise, rel=0.3)
    assert any(reason.startswith("noise ") for reason in found.reasons) == (noise > 0.08)


def test_save_and_load(tmp_path):
    quality = quality_of(warnings=["a warning"])
    assert Quality.load(quality.save(tmp_path / "anat" / "quality.json")) == quality
    assert [path.name for path in (tmp_path / "anat").iterdir()] == ["quality.json"]


@pytest.mark.parametrize("content", [None, "{", '{"brain_ml": 1}'])
def test_error_for_a_missing_or_damaged_record(content, tmp_path):
    if content is not None:
        (tmp_path / "quality.json").write_text(content)
    with pytest.raises(UserError, match="holds no valid quality record"):
        Quality.load(tmp_path / "quality.json")


def require_warning(number, message, settings=SETTINGS):
    brain = BrainExtraction(TEMPLATE.brain_mask, "given")
    quality = measure_quality(TEMPLATE.t1w, brain, IDENTITY, TEMPLATE, settings)
    assert (quality.verdict, quality.unusual) == ("warn", (number,))
    (reason,) = quality.reasons
    assert message in reason


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"smallest_brain_ml": 5000.0, "largest_brain_ml": 6000.0}, "ml (usual: 5000-6000)"),
        ({"largest_brain_ml": 900.0, "smallest_brain_ml": 1.0}, "brain volume"),
    ],
)
def test_volume_outside_the_limits_of_the_settings_warns(limits, message):
    require_warning("brain_ml", message, SETTINGS.model_copy(update={"quality": QualitySettings(**limits)}))


@pytest.mark.parametrize(
    ("number", "limit", "value", "message"),
    [
        ("white_matter_overlap", "_SMALLEST_WHITE_MATTER_OVERLAP", 0.99, "overlap with the template's white matter 0."),
        ("jacobian_percentile_1", "_SMALLEST_JACOBIAN", 1.1, "shrinks 1 % of the brain to 1.00 of its volume"),
        ("jacobian_percentile_99", "_LARGEST_JACOBIAN", 0.9, "expands 1 % of the brain to 1.00 of its volume"),
        ("noise", "_LARGEST_NOISE", 1e-9, "of the mean intensity"),
    ],
)
def test_number_outside_its_limits_warns(number, limit, value, message, monkeypatch):
    monkeypatch.setattr(verdict, limit, value)
    require_warning(number, message)


def test_missing_number_warns():
    """The noise of a constant brain is not defined, as it has no white matter."""
    flat = TEMPLATE.t1w.with_voxels(TEMPLATE.brain_mask.voxels.astype(np.float32))
    quality = measure_quality(flat, BrainExtraction(TEMPLATE.brain_mask, "given"), IDENTITY, TEMPLATE, SETTINGS)
    assert np.isnan(quality.noise) and "noise" in quality.unusual and quality.verdict != "pass"


def test_every_number_has_a_label():
    assert list(LABELS) == [field.name for field in fields(QualityNumbers)]


def test_warp_improves_the_overlap_of_the_affine(kit):
    image, truth = kit.small_brain(bend_mm=6.0)
    brain = image.with_voxels(image.voxels > 0.05)
    wave = (6.0 * np.sin(kit.millimetres(TEMPLATE.grid)[..., [1, 2, 0]] / 16)).astype(np.float32)
    bent = TemplateTransform(truth, -wave, wave, TEMPLATE.grid, IDENTITY.jacobian_range)
    quality = measure_quality(image, BrainExtraction(brain, "given"), bent, TEMPLATE, SETTINGS)
    assert quality.white_matter_overlap > quality.white_matter_overlap_before + 0.05
    assert quality.similarity_after > quality.similarity_before + 0.05
