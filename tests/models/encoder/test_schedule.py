import numpy as np
import pytest
from voxout.data_manifests.errors import UserError
from voxout.models.encoder.schedule import (
    Schedule,
    controls_for,
    fewest_controls,
    guidance_nu,
    require_enough_controls,
    support_size,
)
from voxout.models.settings import ModelSettings


def settings_of(**sections):
    return ModelSettings.model_validate(sections)


def test_phases_and_routes():
    schedule = Schedule.from_settings(settings_of(training={"pretraining_steps": 10, "guided_steps": 8}))
    assert schedule.steps == 18
    assert [schedule.is_guided(step) for step in (0, 9, 10, 17)] == [False, False, True, True]
    assert [schedule.routes(step) for step in (10, 13, 14, 17)] == [(1, 0), (1, 0), (1, 1), (1, 1)]
    assert [schedule.ends_phase(done) for done in (9, 10, 11, 17, 18)] == [False, True, False, False, True]


def test_learning_rate_rises_to_its_peak_and_decays_in_each_phase():
    schedule = Schedule(100, 60, 30, 1e-2, 1e-3)
    rates = np.array([schedule.rate(step) for step in range(160)])
    for phase, peak in ((rates[:100], 1e-2), (rates[100:], 1e-3)):
        assert phase.max() == pytest.approx(peak)
        top = phase.argmax()
        assert (np.diff(phase[: top + 1]) >= 0).all()
        assert (np.diff(phase[top:]) <= 0).all()
        assert 0 < phase[-1] < 0.01 * peak


def test_without_weights_there_are_no_guided_steps():
    assert Schedule.from_settings(settings_of(guidance={"weight": 0})).guided_steps == 0
    assert (
        Schedule.from_settings(settings_of(guidance={"weight": 0}, training={"siamese_weight": 0.1})).guided_steps
        == 600
    )


@pytest.mark.parametrize(("n", "m"), [(3, 2), (4, 2), (20, 10), (75, 38)])
def test_support_size(n, m):
    assert support_size(n) == m


def test_enough_controls():
    require_enough_controls(3, settings_of(guidance={"nu": 0.1}))
    require_enough_controls(3, settings_of(guidance={"weight": 0}, training={"siamese_weight": 1}))
    require_enough_controls(1, settings_of(guidance={"weight": 0}))  # no guided steps
    require_enough_controls(1, settings_of(training={"guided_steps": 0}))
    with pytest.raises(UserError, match=r"found 2 training controls, expected at least 3\. Add controls"):
        require_enough_controls(2, settings_of())


@pytest.mark.parametrize("n", [3, 4, 13, 18, 19, 20, 21, 60])
@pytest.mark.parametrize("nu", [0.5, 0.1, 0.03])
def test_few_controls_raise_nu_so_that_there_can_be_an_outlier(n, nu):
    raised = guidance_nu(nu, n)
    assert raised * support_size(n) >= 1 - 1e-12 and raised <= 1
    if nu * support_size(n) >= 1:
        assert raised == nu, "as it is set"
    else:
        assert raised * support_size(n) == pytest.approx(1), "no more than needed"


def test_incomplete_brain_mask_of_one_control_does_not_exclude_voxels():
    settings = settings_of(guidance={"nu": 0.1}, training={"controls_per_voxel": 96})
    assert controls_for(np.full(1000, 60), settings) == 60
    assert controls_for(np.repeat([59, 60], [300, 700]), settings) == 59
    assert controls_for(np.repeat([30, 60], [20, 980]), settings) == 60, "up to 5 % of the voxels may be excluded"
    assert controls_for(np.full(1000, 200), settings) == 96


def test_more_voxels_are_left_unguided_if_the_number_of_controls_requires_it():
    settings = settings_of()
    assert fewest_controls(settings) == 3
    assert controls_for(np.repeat([2, 3], [300, 700]), settings) == 3
    with pytest.raises(UserError, match="brain masks of at most 2 training controls, expected at least 3"):
        controls_for(np.repeat([2, 3], [600, 400]), settings)
    assert controls_for(np.full(10, 2), settings_of(training={"guided_steps": 0})) == 2
