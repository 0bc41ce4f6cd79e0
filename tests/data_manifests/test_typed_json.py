import json
import os

import pytest
from voxout.data_manifests.errors import UserError, for_terminal
from voxout.data_manifests.typed_json import Content, read_json


class Point(Content):
    x: float
    name: str


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("\xff", "not JSON"),
        ("[]", "input should be an object"),
        ("null", "input should be an object"),
        ('{"x": 1}', "name: field required"),
        ('{"x": "1", "name": "a"}', "x: input should be a valid number"),
        ('{"x": true, "name": "a"}', "x is True: input should be a valid number"),
        ('{"x": NaN, "name": "a"}', "x is nan: input should be a finite number"),
        ('{"x": 1e999, "name": "a"}', "x is inf: input should be a finite number"),
        ('{"x": 1, "name": 2}', "name is 2: input should be a valid string"),
        ('{"x": 1, "name": "a", "more": "Mr Smith"}', "more: extra inputs are not permitted"),
    ],
)
def test_first_problem_is_reported_in_one_line(tmp_path, text, found):
    path = tmp_path / "point.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read_json(path, Point, "a point", "Draw it again.")
    sentence = for_terminal(str(caught.value))
    assert sentence.startswith(f"{path}: {found}") and sentence.endswith(", expected a point. Draw it again.")
    assert "\n" not in sentence and "Smith" not in sentence


def test_valid_file_is_read(tmp_path):
    (tmp_path / "point.json").write_text(json.dumps({"x": 1, "name": "a"}))
    assert read_json(tmp_path / "point.json", Point, "a point", "") == Point(x=1.0, name="a")


def test_missing_irregular_and_huge_files_are_errors(tmp_path):
    for name, found in {"none": "No such file", "folder": "not a regular file", "pipe": "not a regular file"}.items():
        path = tmp_path / name
        {"none": lambda p: None, "folder": os.mkdir, "pipe": os.mkfifo}[name](path)
        with pytest.raises(UserError, match=rf"{name}\W: not readable .*{found}"):
            read_json(path, Point, "a point", "Draw it again.")
    with (tmp_path / "giant").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"giant\W: not readable .it has 1,099,511,627,776 bytes"):
        read_json(tmp_path / "giant", Point, "a point", "Draw it again.")
