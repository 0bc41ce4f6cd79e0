"""The scripts of benchmarks/ import each other by name. They come last on the path, behind the packages."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
