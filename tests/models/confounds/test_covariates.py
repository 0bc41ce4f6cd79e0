import json
from pathlib import Path

import numpy as np
import pytest
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.data_manifests.errors import UserError
from voxout.models.confounds.covariates import Covariates

NAMES = ("age", "sex", "site")


def participant(number=0, age=None, sex=None, site=None):
    return SubjectRecord(f"{number:02}", "control", {"t1w": Path("/t1.nii")}, age=age, sex=sex, site=site)


PARTICIPANTS = [
    participant(0, 20, "F", "Lyon"),
    participant(1, 40, "F", "Lyon"),
    participant(2, 60, "M", "Lyon"),
    participant(3, 40, "M", "Bern"),
]
LEARNT = Covariates.learn(NAMES, PARTICIPANTS)


def test_by_hand():
    """Age in standard deviations (14.1) from the mean (40); then F, M, Bern, Lyon minus their shares."""
    sd = np.sqrt(200)
    np.testing.assert_allclose(LEARNT.values(PARTICIPANTS[0]), [-20 / sd, 0.5, -0.5, -0.25, 0.25])
    np.testing.assert_allclose(LEARNT.values(PARTICIPANTS[3]), [0, -0.5, 0.5, 0.75, -0.75])
    np.testing.assert_allclose(np.mean([LEARNT.values(p) for p in PARTICIPANTS], axis=0), 0, atol=1e-12)
    assert LEARNT.size == 5


def test_missing_covariates_are_at_the_mean_and_give_warnings():
    unknown = participant(9)
    np.testing.assert_array_equal(LEARNT.values(unknown), np.zeros(5))
    assert LEARNT.warnings(unknown) == (
        "age is not given, so the map is adjusted to the controls' mean age",
        "sex is not given, so the map is not adjusted for it",
        "site is not given, so the map is not adjusted for it",
    )


@pytest.mark.parametrize(("age", "end"), [(85, 60), (12, 20)])
def test_an_age_outside_the_controls_is_clipped_and_gives_a_warning(age, end):
    old = participant(9, age, "F", "Oslo")
    np.testing.assert_array_equal(LEARNT.values(old)[0], LEARNT.values(participant(8, end))[0])
    assert LEARNT.warnings(old) == (
        f"age {age} lies outside the controls' range (20 to 60), so the map is adjusted for age {end}",
        "site Oslo does not occur among the controls (Bern, Lyon), so the map is not adjusted for it",
    )
    np.testing.assert_array_equal(LEARNT.values(old)[3:], [0, 0])


def test_the_controls_themselves_give_no_warnings():
    assert not [message for p in PARTICIPANTS for message in LEARNT.warnings(p)]


def test_a_missing_age_among_the_controls_changes_nothing_for_the_others():
    again = Covariates.learn(("age",), [*PARTICIPANTS, participant(4)])
    assert again.age == LEARNT.age


def test_a_covariate_that_does_not_vary_is_refused():
    with pytest.raises(
        UserError,
        match=r"models.ensemble.covariates names sex, and sex is F in all of the 2 training controls, expected "
        "values that differ. Fill in column sex of the manifest, or remove the covariate.",
    ):
        Covariates.learn(("age", "sex"), PARTICIPANTS[:2])
    with pytest.raises(UserError, match=r"names site, and site is not given for any of the 1 training controls"):
        Covariates.learn(("site",), [participant(0, age=3)])


def test_no_covariates(tmp_path):
    none = Covariates.learn((), PARTICIPANTS)
    assert (
        none == Covariates()
        and none.size == 0
        and not none.warnings(participant())
        and none.values(participant()).size == 0
    )
    none.save(tmp_path)
    assert not list(tmp_path.iterdir())
    assert Covariates.load(tmp_path, ()) == none


def test_saved_and_loaded(tmp_path):
    LEARNT.save(tmp_path)
    assert Covariates.load(tmp_path, NAMES) == LEARNT
    for damage in ("", "[]", json.dumps({"age": {"mean": 3}, "shares": {}})):
        (tmp_path / "covariates.json").write_text(damage)
        with pytest.raises(UserError, match=r"covariates.json\W: .*expected a description of the covariates"):
            Covariates.load(tmp_path, NAMES)
