from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from voxout.data_manifests.errors import UserError, for_terminal
from voxout.data_manifests.settings import Section
from voxout.evaluation.settings import EvaluationSettings
from voxout.models.encoder.checkpoint import TRAINED_BY
from voxout.models.settings import EnsembleSettings, ModelSettings
from voxout.pipeline.config.config import Config, load_config, preset_names, read_settings, save_config
from voxout.pipeline.config.diff import changes, flat_settings
from voxout.pipeline.workflow.records import StageRecord

BEFORE = Path(__file__).with_name("before_removals.yaml")
SCORERS_OF_BEFORE = "models.ensemble.scorers=[ocsvm,derived_features,intensity,extension]"
"""The default settings as saved when there were 83 of them."""


def test_defaults_need_no_file():
    assert load_config() == Config()


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid(name):
    load_config(preset=name)


def test_the_order_is_preset_then_file_then_set_then_seed(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 5\nmodels:\n  detector:\n    nu: 0.2\n")
    config = load_config(path, preset="paper-1mm", overrides=["models.guidance.weight=0"], seed=7)
    assert config.seed == 7
    assert config.models.detector.nu == 0.2, "the file takes precedence over the preset"
    assert config.models.detector.gamma == 0.01, "other settings are those of the preset"
    assert config.models.guidance.weight == 0


def test_the_number_of_seeds_is_a_setting():
    config = load_config(overrides=["models.ensemble.members=2"], seeds=3)
    assert config.models.ensemble.members == 3
    assert load_config(overrides=["models.ensemble.members=2"]).models.ensemble.members == 2


def test_the_saved_configuration_is_the_configuration(tmp_path):
    config = load_config(preset="paper-1mm", overrides=["preprocessing.modalities=[t1w, flair]"])
    save_config(tmp_path / "config.yaml", config)
    assert load_config(tmp_path / "config.yaml") == config


def test_a_problem_names_the_file_that_it_is_in(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model: unet\nmodels: {detector: {nu: 3}}\n")
    with pytest.raises(UserError) as caught:
        load_config(path, overrides=["models.detector.gamma=-1"])
    messages = for_terminal("\n".join(caught.value.problems))
    assert f"{path}: Setting model is not known. Did you mean models?" in messages
    assert f"{path}: Setting models.detector.nu is 3" in messages
    assert "\nSetting models.detector.gamma" in f"\n{messages}"
    with pytest.raises(UserError) as caught:
        load_config(path, overrides=["models.detector.nu=4", "model=1"])
    assert str(path) not in for_terminal("\n".join(caught.value.problems))


def test_all_problems_are_listed_with_the_nearest_name():
    overrides = ["models.detector.nuu=0.1", "models.detector.nu=3", "preprocesing.spacing_mm=1"]
    with pytest.raises(UserError) as caught:
        load_config(overrides=overrides)
    messages = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "models.detector.nuu is not known. Did you mean models.detector.nu?" in messages
    assert "models.detector.nu is 3, expected less than or equal to 1" in messages
    assert "preprocesing is not known. Did you mean preprocessing?" in messages


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("patch_size_mm", "models.encoder.patch_size_mm"),
        ("models.patch_size_mm", "models.encoder.patch_size_mm"),
        ("spacing", "preprocessing.spacing_mm"),
        ("patchsize_mm", "models.encoder.patch_size_mm"),
        ("nu", "models.guidance.nu or models.detector.nu"),
    ],
)
def test_a_name_without_its_section_is_completed(name, meant):
    with pytest.raises(UserError) as caught:
        load_config(overrides=[f"{name}=6"])
    assert str(caught.value) == f"Setting {name} is not known. Did you mean {meant}?"


def test_contradictory_settings_give_a_readable_message():
    with pytest.raises(UserError) as caught:
        load_config(overrides=["preprocessing.brain_extraction.smallest_ml=3000"])
    assert str(caught.value) == (
        "preprocessing.brain_extraction: smallest_ml (3000) must be less than largest_ml (2200)."
    )


def test_a_wrong_gamma_gives_a_readable_message():
    with pytest.raises(UserError, match='gamma is "wide", expected a number, "scale", "auto"'):
        load_config(overrides=["models.detector.gamma=wide"])


def _problems(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        load_config(overrides=overrides)
    return caught.value.problems


def test_a_scorer_without_its_derived_map_is_refused():
    assert list(_problems("models.ensemble.scorers=[intensity, detail]", "preprocessing.derived_maps=[junction]")) == [
        "models.ensemble.scorers names detail, but preprocessing.derived_maps is junction. Add detail to "
        "preprocessing.derived_maps, or remove the scorer."
    ]
    problems = _problems("models.ensemble.scorers=[detail]", "preprocessing.derived_maps=[]")
    assert "preprocessing.derived_maps is empty" in problems[0]
    load_config(overrides=["models.ensemble.scorers=[intensity, detail]"])
    problems = _problems("preprocessing.derived_maps=[]", SCORERS_OF_BEFORE)
    assert "names extension, but preprocessing.derived_maps is empty" in problems[0]
    load_config(overrides=["preprocessing.derived_maps=[]"])
    load_config(overrides=["preprocessing.derived_maps=[]", "models.ensemble.scorers=[derived_features]"])


def test_contradictory_settings_are_reported_without_a_dump_of_the_section():
    messages = _problems("preprocessing.quality.smallest_brain_ml=90", "preprocessing.quality.largest_brain_ml=10")
    assert messages[0] == "preprocessing.quality: smallest_brain_ml (90) must be less than largest_brain_ml (10)."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [1, 2", "not readable as YAML"),
        ("- a\n- b\n", "holds a list, expected sections"),
    ],
)
def test_a_broken_file_gives_one_message(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(path)


def test_missing_file_unknown_preset_and_bad_override(tmp_path):
    with pytest.raises(UserError, match="no such configuration file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r'Preset "papre" is not known. Choose one of: .*paper-1mm'):
        load_config(preset="papre")
    with pytest.raises(UserError, match="expected NAME=VALUE"):
        load_config(overrides=["seed"])


@given(st.floats(min_value=1e-3, max_value=1))
def test_an_override_reaches_its_setting(nu):
    assert load_config(overrides=[f"models.detector.nu={nu!r}"]).models.detector.nu == nu


def test_old_names_are_read_with_a_note(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(
        "preprocessing: {intensity: {method: landmarks}}\n"
        "models: {encoder: {code_size: 8}, detector: {read_out: raw},\n"
        "         fusion: {readers: [hand_made, ocsvm], patterns: 3}}\n"
    )
    overrides = ["models.fusion.power=3", "models.training.controls_per_location=5"]
    given = read_settings(path, preset="paper-1mm", overrides=overrides)
    models = given.config.models
    assert given.config.preprocessing.intensity.method == "nyul"
    assert (models.encoder.latent_size, models.detector.latent_scaling, models.training.controls_per_voxel) == (
        8,
        "raw",
        5,
    )
    assert models.ensemble.scorers == ("derived_features", "ocsvm")
    assert (models.ensemble.brain_components, models.ensemble.p_norm) == (3, 3)
    assert len(given.notes) == 9
    assert "setting models.fusion is now called models.ensemble" in given.notes
    assert "hand_made of models.ensemble.scorers is now called derived_features" in given.notes
    assert not read_settings(overrides=["models.ensemble.p_norm=3"]).notes


def test_the_names_that_the_user_gives(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 3\nmodels: {fusion: {power: 3}}\n")
    saved = read_settings(overrides=["models.detector.nu=0.3", "models.ensemble.p_norm=4"])
    given = read_settings(path, saved=saved, overrides=["evaluation.space=template"])
    assert given.named == {"seed", "models.ensemble.p_norm", "evaluation.space"}
    assert (given.config.models.detector.nu, given.config.models.ensemble.p_norm) == (0.3, 3)


def _removed(section: type[Section] = Config, prefix: str = "") -> dict[str, object]:
    """Return all names that are no longer settings, with the constants."""
    found = {f"{prefix}{name}": value for name, value in section.removed.items()}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= _removed(field.annotation, f"{prefix}{name}.")
    return found


def test_a_configuration_of_before_is_read_with_a_note():
    given = read_settings(BEFORE)
    assert given.config == load_config(overrides=[SCORERS_OF_BEFORE])
    (note,) = given.notes
    assert note == (
        "preprocessing.brain_extraction.smallest_overlap, preprocessing.bias_field.spline_mm, "
        "preprocessing.bias_field.levels and 23 more are no longer settings; the value given is always used"
    )
    assert read_settings(overrides=["models.detector.precision=float16"]).notes == (
        "models.detector.precision is no longer a setting; the value given is always used",
    )
    assert load_config(overrides=["preprocessing.bias_field.tolerance=1e-3"]) == Config(), "which YAML reads as text"


@pytest.mark.parametrize("name", _removed())
def test_another_value_of_what_is_no_longer_a_setting_is_refused(name):
    (problem,) = _problems(f"{name}=7")
    assert problem.startswith(f"{name} is no longer a setting: found 7, expected {_removed()[name]!r}, which")


def test_records_and_files_of_before_are_not_outdated():
    """A folder of before stays up to date: its records, encoders and scores name all 83 settings."""
    before = yaml.safe_load(BEFORE.read_text())
    now = flat_settings(load_config(overrides=[SCORERS_OF_BEFORE]).model_dump(mode="json"))
    new = (
        "settings.models.learned.",
        "settings.models.contrast.",
        "settings.models.ensemble.surroundings_mm",
        "settings.models.ensemble.age_years",
        "settings.models.ensemble.mirrored_controls",
        "settings.models.ensemble.prototypes_weight",
        "settings.evaluation.page_scan",
        "settings.evaluation.keep_scan_places",
    )
    now = {name: value for name, value in now.items() if not name.startswith(new)}
    record = StageRecord("fit", flat_settings(before) | {"the encoder": "a1"}, {})
    assert record.comparable_inputs == now | {"the encoder": "a1"}
    changed = StageRecord("fit", flat_settings(before) | {"settings.models.detector.shrinkage": 0.2}, {})
    assert changed.comparable_inputs == now | {"settings.models.detector.shrinkage": 0.2}
    trained_by = {name: before["models"][name] for name in TRAINED_BY - {"contrast"}}
    assert ModelSettings.model_validate(trained_by) == ModelSettings()
    assert EvaluationSettings(**before["evaluation"]) == EvaluationSettings()


def test_a_setting_that_was_added_and_changes_nothing_outdates_no_record():
    now = flat_settings(load_config().model_dump(mode="json"))
    name = "settings.models.ensemble.age_years"
    added = {f"settings.models.ensemble.{own}": value for own, value in EnsembleSettings.added.items()}
    before = {other: value for other, value in now.items() if other not in added}
    assert StageRecord("fit", before, {}).comparable_inputs == now | added
    # A stage that depends on a part of the section does not depend on what was added.
    part = {"settings.models.ensemble.covariates": []}
    assert StageRecord("extract", part, {}).comparable_inputs == part
    assert StageRecord("fit", now | {name: 15.0}, {}).comparable_inputs == now | {name: 15.0}


def test_a_saved_file_of_before_means_what_it_meant_then(tmp_path):
    """An older model is combined as it was calibrated, and a run that goes on does not change its method."""
    content = load_config().model_dump(mode="json")
    for name in EnsembleSettings.added:
        del content["models"]["ensemble"][name]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    found = read_settings(path, saved_file=True).config.models.ensemble
    assert {name: getattr(found, name) for name in EnsembleSettings.added} == EnsembleSettings.added
    assert found.weight_of("prototypes") == found.weight_of("ocsvm") == 1
    # A file of the user, which may name a few settings only, has the defaults of today for the others.
    assert read_settings(path).config.models.ensemble == EnsembleSettings()
    path.write_text("models: {ensemble: {smoothing_mm: 1.0}}")
    assert read_settings(path, saved_file=True).config.models.ensemble == EnsembleSettings(smoothing_mm=1.0)


def test_an_old_and_a_new_name_together_are_refused():
    with pytest.raises(
        UserError, match=r"models\.ensemble\.power is not known\. Did you mean models\.ensemble\.p_norm"
    ):
        load_config(overrides=["models.ensemble={power: 3, p_norm: 2}"])


@pytest.mark.parametrize("value", ["[[ocsvm]]", "[{ocsvm: 1}]", "{ocsvm: 1}", "3", "null"])
def test_a_value_of_another_kind_for_a_setting_with_old_values(value):
    """Regression: a list in the list of scorers ended in a TypeError."""
    for name in ("models.ensemble.scorers", "preprocessing.intensity.method"):
        with pytest.raises(UserError, match=name):
            load_config(overrides=[f"{name}={value}"])


def test_a_saved_file_may_hold_another_value_of_what_is_no_longer_a_setting(tmp_path):
    """Users cannot edit the folder of an earlier run. Results that depend on the value are recomputed."""
    path = tmp_path / "config.yaml"
    path.write_text("models: {detector: {shrinkage: 0.05, nu: 0.2}}\npreprocessing: {bias_field: {levels: 4}}\n")
    given = read_settings(path, saved_file=True)
    assert given.config.models.detector.nu == 0.2
    assert given.dropped == {"preprocessing.bias_field.levels": 4, "models.detector.shrinkage": 0.05}
    assert "models.detector.shrinkage was 0.05 and is no longer a setting; a constant is used" in given.notes
    changed = changes({"settings.models.detector.shrinkage": 0.05}, {})
    assert changed == ["models.detector.shrinkage was 0.05, is no longer a setting"]
    with pytest.raises(UserError, match="no longer a setting"):
        read_settings(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {detector: {nu: 0.3}}\nseed: 1\nmodels: {ensemble: {members: 2}}\n", "models is in line 1 and 3"),
        ("models:\n  detector:\n    nu: 0.3\n    nu: 0.2\n", "nu is in line 3 and 4, expected once"),
        ("{seed: 1, 'seed': 2}", "seed is in line 1 and 1"),
        ("seed: !!int 1_0", "1_0 is no decimal number"),
        ("seed: !!float 1:30", "1:30 is no decimal number"),
    ],
)
def test_what_yaml_reads_in_another_way_than_a_person_is_refused(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "run.yaml")


def test_numbers_are_decimal():
    assert load_config(overrides=["seed=010"]).seed == 10
    assert load_config(overrides=["models.detector.nu=1e-2"]).models.detector.nu == 0.01
    assert load_config(overrides=["models.detector.gamma=1e-2"]).models.detector.gamma == 0.01


@pytest.mark.parametrize(
    "override",
    [
        *("preprocessing.spacing_mm=yes", "preprocessing.spacing_mm=1:30", "preprocessing.spacing_mm=0x2"),
        *("preprocessing.spacing_mm=1_0e-1", "models.ensemble.members=1_0", "models.detector.gamma=on", "seed=off"),
        *("seed='1_0'", "models.encoder.patch_size_mm=[6, yes]", "evaluation.age_bands=[1_0]"),
        *("evaluation.false_clusters=.inf", "evaluation.smallest_cluster_mm3=.inf", "evaluation.age_bands=[.inf]"),
        *("evaluation.lesion_bands_ml=[1, .inf]", "models.ensemble.smoothing_mm=.inf", "models.detector.gamma=.nan"),
        *("models.training.learning_rate=1e999", "evaluation.bootstrap_draws=1000000000000"),
        *("models.encoder.latent_size=1000000000000", f"seed={2**200}", "models.learned.steps=1000000000000"),
    ],
)
def test_numbers_that_are_none_or_size_too_much_are_refused(override):
    name = override.partition("=")[0]
    assert all(problem.startswith(f"Setting {name}") for problem in _problems(override))
