"""The errors that a user can cause."""

import pickle

from voxout.data_manifests.errors import SubjectError, UserError, for_terminal, private, without_names


def test_one_sentence_or_many():
    assert UserError("one").problems == ("one",)
    assert UserError(["one", "two"]).problems == ("one", "two")
    assert str(UserError(["one", "two"])) == "one\ntwo"


def test_errors_cross_process_borders_whole():
    for error in (UserError(["one", "two"]), SubjectError("sub-01: broken")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and again.problems == error.problems and str(again) == str(error)


def test_a_name_reaches_the_terminal_and_nothing_that_is_kept():
    told = f"sub-01: {private('DOE_JANE_T1.nii.gz')}: is empty."
    assert for_terminal(told) == "sub-01: DOE_JANE_T1.nii.gz: is empty."
    assert without_names(told) == "sub-01: the file: is empty."
    assert without_names(told, {"DOE_JANE_T1.nii.gz": "its t1w"}) == "sub-01: its t1w: is empty."


def test_marks_in_a_name_and_half_a_sentence_let_nothing_out():
    told = private("a\u2069DOE\u2068\x1b[2J\udcff.nii") + ": is empty."
    assert without_names(told) == "the file: is empty."
    assert "\x1b" not in told and told.encode()
    assert "DOE" not in without_names(private("/data/DOE_JANE/t1.nii")[:12])
