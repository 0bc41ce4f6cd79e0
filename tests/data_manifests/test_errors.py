"""The errors that a user can cause."""

import pickle

from voxout.data_manifests.errors import SubjectError, UserError


def test_one_sentence_or_many():
    assert UserError("one").problems == ("one",)
    assert UserError(["one", "two"]).problems == ("one", "two")
    assert str(UserError(["one", "two"])) == "one\ntwo"


def test_errors_cross_process_borders_whole():
    for error in (UserError(["one", "two"]), SubjectError("sub-01: broken")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and again.problems == error.problems and str(again) == str(error)
