"""Tests of user errors and private names in messages."""

import ast
import pickle
from pathlib import Path

from voxout.data_manifests.errors import SubjectError, UserError, for_terminal, kept, merged, private, without_names

ROOT = Path(__file__).parents[2]
TOP = ("data_manifests", "preprocessing", "models", "evaluation", "pipeline")


def test_one_or_several_messages():
    assert UserError("one").problems == ("one",)
    assert UserError(["one", "two"]).problems == ("one", "two")
    assert str(UserError(["one", "two"])) == "one\ntwo"


def test_a_message_of_several_subjects_is_said_once():
    messages = [("sub-1", "sub-1: is empty."), ("sub-2", "sub-2: is empty."), ("sub-2", "sub-2: has no brain.")]
    assert merged(messages, 2) == ("all 2 subjects: is empty.", "sub-2: has no brain.")
    assert merged(messages, 3) == ("sub-1, sub-2: is empty.", "sub-2: has no brain.")
    assert merged([("", "No controls.")], 3) == ("No controls.",)


def test_errors_can_be_pickled():
    for error in (UserError(["one", "two"]), SubjectError("sub-01: broken")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and again.problems == error.problems and str(again) == str(error)


def test_names_are_shown_in_the_terminal_and_not_stored():
    message = f"sub-01: {private('DOE_JANE_T1.nii.gz')}: is empty."
    assert for_terminal(message) == "sub-01: DOE_JANE_T1.nii.gz: is empty."
    assert without_names(message) == "sub-01: the file: is empty."
    assert without_names(message, {"DOE_JANE_T1.nii.gz": "its t1w"}) == "sub-01: its t1w: is empty."


def test_stored_messages_contain_the_role_of_a_name():
    message = f"{private('/home/DOE_JANE/out', 'the output folder')}: is full."
    assert for_terminal(message) == "/home/DOE_JANE/out: is full."
    assert without_names(message) == "the output folder: is full."
    assert without_names(message, {"/home/DOE_JANE/out": "OUT"}) == "OUT: is full."
    assert kept({message: [message, 1, None]}) == {without_names(message): [without_names(message), 1, None]}


def test_marks_in_a_name_and_truncated_messages_reveal_no_name():
    message = private("a\u2069DOE\u2063\u2068\x1b[2J\udcff.nii") + ": is empty."
    assert without_names(message) == "the file: is empty."
    assert "\x1b" not in message and message.encode()
    assert "DOE" not in without_names(private("/data/DOE_JANE/t1.nii")[:12])


_PLACES = {"path", "folder", "out", "root", "file", "saved", "dataset", "run", "place"}
_SENTENCES = {
    "StageResult",
    "UserError",
    "SubjectError",
    "MachineError",
    "_refused",
    "say",
    "warn",
    "problem",
    "append",
}


def _last_name(value: ast.expr) -> str | None:
    return getattr(value, "id", None) or getattr(value, "attr", None)


def _is_place(value: ast.expr) -> bool:
    """Whether an expression is a path by its name: ``path``, ``folder / "x"``, ``path.name``, ``out.root``."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Div):
        return _is_place(value.left)
    if isinstance(value, ast.Attribute):
        if _last_name(value.value) == "out":
            return True
        return value.attr in _PLACES or (value.attr in ("name", "parent") and _is_place(value.value))
    return isinstance(value, ast.Name) and value.id in _PLACES


def _unmarked_places(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        is_sentence = isinstance(node, ast.Call) and _last_name(node.func) in _SENTENCES
        is_summary = isinstance(node, ast.Assign) and [_last_name(target) for target in node.targets] == ["summary"]
        if not (is_sentence or is_summary):
            continue
        for part in ast.walk(node):
            if isinstance(part, ast.FormattedValue) and _is_place(part.value):
                found.append(f"{file.name}:{part.lineno}: {{{ast.unparse(part.value)}}}")
    return found


def test_all_paths_in_messages_are_marked_private():
    files = [file for top in TOP for file in (ROOT / top).rglob("*.py") if "mnist_c" not in file.parts]
    assert len(files) > 100
    assert [place for file in files for place in _unmarked_places(file)] == []
