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


PEOPLE = [
    participant(0, 20, "F", "Lyon"),
    participant(1, 40, "F", "Lyon"),
    participant(2, 60, "M", "Lyon"),
    participant(3, 40, "M", "Bern"),
]
LEARNT = Covariates.learn(NAMES, PEOPLE)


def test_by_hand():
    """Age in standard deviations from the mean, 40 and 14.1; then F, M, Bern, Lyon less their shares."""
    sd = np.sqrt(200)
    np.testing.assert_allclose(LEARNT.values(PEOPLE[0]), [-20 / sd, 0.5, -0.5, -0.25, 0.25])
    np.testing.assert_allclose(LEARNT.values(PEOPLE[3]), [0, -0.5, 0.5, 0.75, -0.75])
    np.testing.assert_allclose(np.mean([LEARNT.values(p) for p in PEOPLE], axis=0), 0, atol=1e-12)
    assert LEARNT.size == 5


def test_what_is_not_known_is_read_at_the_mean_and_said():
    stranger = participant(9)
    np.testing.assert_array_equal(LEARNT.values(stranger), np.zeros(5))
    assert LEARNT.warnings(stranger) == (
        "age is not given, so the map is adjusted to the controls' mean age",
        "sex is not given, so the map is not adjusted for it",
        "site is not given, so the map is not adjusted for it",
    )


@pytest.mark.parametrize(("age", "end"), [(85, 60), (12, 20)])
def test_an_age_outside_the_controls_is_held_to_their_range_and_said(age, end):
    old = participant(9, age, "F", "Oslo")
    np.testing.assert_array_equal(LEARNT.values(old)[0], LEARNT.values(participant(8, end))[0])
    assert LEARNT.warnings(old) == (
        f"age {age} lies outside the controls' (20 to 60), so the map is adjusted as for {end}",
        "site Oslo is not among the controls' (Bern, Lyon), so the map is not adjusted for it",
    )
    np.testing.assert_array_equal(LEARNT.values(old)[3:], [0, 0])


def test_whoever_is_like_the_controls_gives_no_doubt():
    assert not [doubt for p in PEOPLE for doubt in LEARNT.warnings(p)]


def test_a_missing_age_among_the_controls_changes_nothing_for_the_others():
    again = Covariates.learn(("age",), [*PEOPLE, participant(4)])
    assert again.age == LEARNT.age


def test_a_covariate_that_tells_nothing_is_refused():
    with pytest.raises(
        UserError,
        match=r"models.ensemble.covariates names sex, and sex is F in all of them \(2 training controls\), expected "
        "values that differ. Fill in column sex of the manifest, or leave the covariate out.",
    ):
        Covariates.learn(("age", "sex"), PEOPLE[:2])
    with pytest.raises(UserError, match=r"names site, and site is not given for any of them \(1 training controls\)"):
        Covariates.learn(("site",), [participant(0, age=3)])


def test_none_is_none(tmp_path):
    nobody = Covariates.learn((), PEOPLE)
    assert (
        nobody == Covariates()
        and nobody.size == 0
        and not nobody.warnings(participant())
        and nobody.values(participant()).size == 0
    )
    nobody.save(tmp_path)
    assert not list(tmp_path.iterdir())
    assert Covariates.load(tmp_path, ()) == nobody


def test_saved_and_loaded(tmp_path):
    LEARNT.save(tmp_path)
    assert Covariates.load(tmp_path, NAMES) == LEARNT
    for damage in ("", "[]", json.dumps({"age": {"mean": 3}, "shares": {}})):
        (tmp_path / "covariates.json").write_text(damage)
        with pytest.raises(UserError, match=r"covariates.json\W: .*expected a description of the covariates"):
            Covariates.load(tmp_path, NAMES)
