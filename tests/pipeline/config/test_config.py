import pytest
from hypothesis import given
from hypothesis import strategies as st
from voxout.data_manifests.errors import UserError
from voxout.pipeline.config.config import Config, load_config, notes_on_names, preset_names, save_config


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


def test_all_problems_are_listed_with_the_nearest_name():
    overrides = ["models.detector.nuu=0.1", "models.detector.nu=3", "preprocesing.spacing_mm=1"]
    with pytest.raises(UserError) as caught:
        load_config(overrides=overrides)
    messages = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "models.detector.nuu is not known. Did you mean models.detector.nu?" in messages
    assert "models.detector.nu is 3, expected less than or equal to 1" in messages
    assert "preprocesing is not known. Did you mean preprocessing?" in messages


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
    assert "names extension, but preprocessing.derived_maps is empty" in _problems("preprocessing.derived_maps=[]")[0]
    load_config(overrides=["preprocessing.derived_maps=[]", "models.ensemble.scorers=[derived_features]"])


def test_more_components_than_values_of_a_patch_are_refused():
    patches = "models.ensemble.scorers=[patches]"
    assert list(_problems("models.ensemble.patch_components=28", patches)) == [
        "models.ensemble.patch_components is 28, but a patch of 3x3x3 voxels of t1w has 27 values. "
        "Lower it to 27 or less."
    ]
    load_config(overrides=["models.ensemble.patch_components=54", "preprocessing.modalities=[t1w, flair]", patches])
    load_config(overrides=["models.ensemble.patch_components=28"])


def test_contradictory_settings_are_reported_without_a_dump_of_the_section():
    messages = _problems("models.training.pretraining_steps=0", "models.training.guided_steps=0")
    assert messages[0].startswith("models: training.pretraining_steps is 0 and there is no guided training"), messages
    messages = _problems("preprocessing.intensity.low_percent=90", "preprocessing.intensity.high_percent=10")
    assert messages[0] == "preprocessing.intensity: low_percent (90) must be less than high_percent (10)."


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
    overrides = ["models.fusion.power=3", "models.training.locations_per_step=5"]
    config = load_config(path, preset="paper-1mm", overrides=overrides)
    models = config.models
    assert config.preprocessing.intensity.method == "nyul"
    assert (models.encoder.latent_size, models.detector.latent_scaling, models.training.voxels_per_step) == (
        8,
        "raw",
        5,
    )
    assert models.ensemble.scorers == ("derived_features", "ocsvm")
    assert (models.ensemble.brain_components, models.ensemble.p_norm) == (3, 3)
    notes = notes_on_names(path, overrides)
    assert len(notes) == 9
    assert "setting models.fusion is now called models.ensemble" in notes
    assert "hand_made of models.ensemble.scorers is now called derived_features" in notes
    assert not notes_on_names(None, ["models.ensemble.p_norm=3"])


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
