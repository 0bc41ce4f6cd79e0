"""The wheel holds all modules, and ``--help`` imports no heavy libraries."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("data_manifests", "preprocessing", "models", "evaluation", "pipeline")
FRONT_DOOR = ("voxout/__init__.py", "voxout/metrics.py", "voxout/ocsvm.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    # Built from a copy, since the build writes to its source folder.
    copy = tmp_path_factory.mktemp("source") / "voxout"
    unwanted = shutil.ignore_patterns("__pycache__", ".*", "demo", "*.egg-info", "build", "tests", "benchmarks")
    shutil.copytree(ROOT, copy, ignore=unwanted)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def _expected_files() -> set[str]:
    wanted = {".py", ".yaml", ".csv", ".html", ".css", ".js", ".txt"}
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.suffix in wanted]
    return {f"voxout/{file.relative_to(ROOT)}" for file in files if "__pycache__" not in file.parts} | set(FRONT_DOOR)


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    inside = {name for name in wheel if ".dist-info/" not in name}
    assert inside == _expected_files()


def test_the_wheel_contains_the_licence(wheel):
    assert any(name.endswith("LICENSE") for name in wheel)


def test_setup_lists_every_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {init.parent.relative_to(ROOT) for folder in FOLDERS for init in (ROOT / folder).rglob("__init__.py")}
    assert listed == {"voxout." + ".".join(path.parts) for path in found} | {"voxout"}
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "voxout").glob("*.py")} == set(FRONT_DOOR)


def test_a_container_is_built_from_what_an_installation_needs_and_no_more():
    lines = (ROOT / ".containerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = {
        "requirements.lock",
        "pyproject.toml",
        "setup.cfg",
        "README.md",
        *config["metadata"]["license_files"].split(),
    }
    needed |= {line.partition("=")[2].strip() for line in config["options"]["package_dir"].strip().splitlines()}
    assert rules[0] == "*" and {rule[1:] for rule in rules if rule.startswith("!")} == needed
    # docker reads it under this name.
    assert (ROOT / ".dockerignore").read_text().splitlines() == lines


def test_every_package_has_a_docstring():
    for folder in FOLDERS:
        for init in (ROOT / folder).rglob("__init__.py"):
            assert init.read_text().startswith('"""'), init


def test_help_does_not_import_heavy_libraries():
    code = (
        "import sys; from voxout.pipeline.cli.main import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'monai', 'ants', 'numpy', 'pandas', 'dask', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "COHORT" in result.stdout
