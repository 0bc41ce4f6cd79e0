"""Weights of the controls by their likeness to a patient."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.errors import UserError
from voxout.models.anomaly.matching import Matching, match

MATCHING = Matching()


def person(number=0, **about) -> SubjectRecord:
    return SubjectRecord(f"{number:02}", "control", {}, **about)


def controls_of(ages, **about) -> list[SubjectRecord]:
    return [person(number, age=float(age), **about) for number, age in enumerate(ages)]


COHORT = controls_of(np.linspace(20, 80, 50))


def test_the_weights_are_the_gaussian_of_the_distance_in_age():
    found = match(COHORT, person(age=50.0), MATCHING)
    ages = np.linspace(20, 80, 50)
    expected = np.exp(-((ages - 50) ** 2) / 200)
    np.testing.assert_allclose(found.weights, np.maximum(expected / expected.max(), 1e-6), rtol=1e-9)
    assert found.effective == pytest.approx(sum(found.weights) ** 2 / sum(w**2 for w in found.weights))
    assert found.years == 10 and not found.warnings and not found.is_equal


@pytest.mark.parametrize(("name", "own", "other"), [("sex", "F", "M"), ("site", "A", "B")])
def test_another_sex_or_site_multiplies(name, own, other):
    cohort = [person(number, age=50.0, **{name: own if number % 2 else other}) for number in range(20)]
    found = match(cohort, person(age=50.0, **{name: own}), MATCHING)
    assert found.weights == tuple(1.0 if number % 2 else 0.5 for number in range(20))
    assert match(cohort, person(age=50.0), MATCHING).is_equal, "not known of the patient"
    unknown = match(cohort, person(age=50.0, **{name: "another"}), MATCHING)
    assert unknown.is_equal, "a scanner that no control was on tells none from another"


def test_what_is_not_known_of_the_patient_weighs_all_the_same():
    found = match(COHORT, person(), MATCHING)
    assert found.is_equal and found.effective == 50 and found.years is None
    assert found.warnings == ("age is not given, so controls of all ages weigh the same",)


@pytest.mark.parametrize(
    ("age", "sentence"), [(95.125, "older than all controls"), (8.125, "younger than all controls")]
)
def test_a_patient_beyond_every_control_is_told_and_gets_enough_of_them(age, sentence):
    found = match(COHORT, person(age=age), MATCHING)
    assert any(sentence in warning and "extrapolated" in warning for warning in found.warnings)
    assert found.effective >= 10 and found.years is not None and found.years > 10
    assert any("fewer than 10, so that controls of more other ages count" in warning for warning in found.warnings)
    assert np.argmax(found.weights) == (49 if age > 50 else 0)
    assert not any("5.125" in warning or "8.125" in warning for warning in found.warnings), "the age itself is not told"


def test_too_few_controls_are_told():
    found = match(controls_of(np.linspace(30, 60, 6)), person(age=45.0), MATCHING)
    assert found.effective == pytest.approx(6, abs=0.1)
    assert any("6.0 effective controls, fewer than 10: single controls decide" in text for text in found.warnings)


def test_controls_without_an_age_are_one_sentence():
    cohort = [*COHORT, person(50), person(51)]
    with pytest.raises(UserError, match=r"2 of 52 training controls have no age \(sub-50, sub-51\), expected the age"):
        match(cohort, person(age=50.0), MATCHING)


@pytest.mark.parametrize("years", [0.0, -3.0, float("nan"), float("inf")])
def test_years_that_are_no_standard_deviation(years):
    with pytest.raises(UserError, match="standard deviation of .* years in age, expected one above 0"):
        Matching(years)


@given(
    st.lists(st.floats(0, 110), min_size=10, max_size=60),
    st.floats(0, 110),
    st.sampled_from(["F", "M", None]),
    st.floats(0.1, 50),
)
def test_laws(ages, age, sex, years):
    cohort = [person(number, age=own, sex="FM"[number % 2]) for number, own in enumerate(ages)]
    found = match(cohort, person(age=age, sex=sex), Matching(years))
    weights = np.array(found.weights)
    assert weights.max() == 1 and weights.min() >= 1e-6 and 1 <= found.effective <= len(ages) + 1e-9
    assert found.years is not None and (found.effective >= 10 or any("decide the map" in w for w in found.warnings))
    # Of two controls of the same sex, the one that is nearer in age weighs no less.
    distance = np.abs(np.array(ages) - age)
    for first in (0, 1):
        order = np.argsort(distance[first::2])
        assert (np.diff(weights[first::2][order]) <= 1e-12).all()
