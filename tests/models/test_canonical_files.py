"""Files with the same content have the same bytes, whichever process writes them."""

import os
import subprocess
import sys

import numpy as np
from voxout.models.tensor_file import opened_tensors

WRITE = """
import sys
from pathlib import Path
import numpy as np
from voxout.models.tensor_file import write_tensors
order = slice(None, None, int(sys.argv[2]))
kinds = [("a", "f4"), ("b", "f8"), ("c", "f4"), ("d", "f2")][order]
tensors = {name: np.arange(3, dtype=dtype) for name, dtype in kinds}
metadata = {f"word{n}": str(n) for n in range(12)}
write_tensors(Path(sys.argv[1]), tensors, **dict(list(metadata.items())[order]))
"""


def test_the_same_tensors_and_metadata_give_the_same_bytes(tmp_path):
    files = []
    for seed, order in (("0", "1"), ("1", "-1"), ("2", "1")):
        files.append(tmp_path / f"{seed}.safetensors")
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", WRITE, files[-1], order], env=environment, check=True, timeout=120)
    assert len({file.read_bytes() for file in files}) == 1
    with opened_tensors(files[0], "numbers") as file:
        assert file.metadata == {f"word{n}": str(n) for n in range(12)}
        for name in "abcd":
            assert np.array_equal(file.array(name, file.header[name].dtype.name, 1), np.arange(3))
