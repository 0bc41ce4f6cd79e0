"""Compare what two runs computed, bit by bit, whatever their files and settings are called.

    python benchmarks/same_results.py OUT OTHER-OUT

Of every file in `prepared`, `encoder`, `detectors`, `maps` and `scores` the content is hashed: voxels and affine of
NIfTI files, every array of safetensors and npz files, every number of CSV and JSON files. A version of voxout that only
renames things gives the same hashes, in whatever order and under whatever names; the table shows how many are equal.
"""

import argparse
import csv
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from safetensors.numpy import load_file

FOLDERS = ("prepared", "encoder", "detectors", "maps", "scores")
_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?")
_NOT_COMPUTED = {"wall_s", "peak_memory_mb", "started", "made", "settings"}
"""Columns and keys that differ from one run, or one version, to the next."""


def contents(path: Path) -> Iterator[str]:
    """A hash for everything that was computed in a file; nothing for files of another kind."""
    if path.name.endswith((".nii", ".nii.gz")):
        image = nib.Nifti1Image.from_filename(path)
        yield _hash(np.asarray(image.dataobj))
        yield _hash(np.asarray(image.affine))
    elif path.suffix == ".safetensors":
        yield from map(_hash, load_file(path).values())
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            for name in stored.files:
                if stored[name].dtype.kind == "U":
                    yield _numbers(json.loads(str(stored[name])))
                else:
                    yield _hash(stored[name])
    elif path.suffix == ".npy":
        yield _hash(np.load(path, allow_pickle=False))
    elif path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                yield _numbers({name: value for name, value in row.items() if name not in _NOT_COMPUTED})
    elif path.suffix == ".json" and path.name not in ("record.json", "model.json"):
        yield _numbers(json.loads(path.read_text()))


def _hash(array: np.ndarray) -> str:
    array = np.ascontiguousarray(array)
    return hashlib.sha256(f"{array.dtype.str} {array.shape}".encode() + array.tobytes()).hexdigest()


def _numbers(value: object) -> str:
    """Of every number in nested values, in the order of their size: names and words do not count."""
    return hashlib.sha256(repr(sorted(_leaves(value))).encode()).hexdigest()


def _leaves(value: object) -> Iterator[float]:
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in _NOT_COMPUTED:
                yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, (int, float)) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        yield float(value)


def compare(one: Path, other: Path) -> tuple[list[str], bool]:
    """A table row for each folder, and whether all is the same."""
    rows, same, anything = [], True, False
    for folder in FOLDERS:
        found = [
            Counter(
                content
                for path in sorted((out / folder).rglob("*"))
                if path.is_file() and "tensorboard" not in path.parts
                for content in contents(path)
            )
            for out in (one, other)
        ]
        equal = sum((found[0] & found[1]).values())
        totals = [sum(counts.values()) for counts in found]
        digest = hashlib.sha256("".join(sorted(found[0].elements())).encode()).hexdigest()[:12]
        same &= totals[0] == totals[1] == equal
        anything |= equal > 0
        rows.append(f"| {folder} | {totals[0]} | {totals[1]} | {equal} | {digest} |")
    return rows, same and anything


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs=2, metavar="OUT")
    options = parser.parse_args()
    rows, same = compare(*options.runs)
    print("| folder | contents of the first | of the second | equal | SHA-256 of the first |\n|---|---|---|---|---|")
    print("\n".join(rows))
    print("\nThe same to the bit." if same else "\nNOT the same.")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
