"""The documents agree with the code."""

import re
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
from voxout.data_manifests.images.grid import Grid
from voxout.data_manifests.images.volume import Volume, write_volume
from voxout.evaluation.scoring.metric_labels import METRICS
from voxout.evaluation.scoring.score_cohort import ORACLES
from voxout.evaluation.scoring.tables import FIELDS
from voxout.pipeline.cli.arguments import make_parser
from voxout.pipeline.config.config import preset_names
from voxout.pipeline.config.settings_page import current_page
from voxout.pipeline.workflow.stage_titles import STAGE_TITLES

ROOT = Path(__file__).parents[2]
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
SCORES = (ROOT / "docs" / "scores.md").read_text()
README = (ROOT / "README.md").read_text()
BEFORE = (ROOT / "docs" / "before-you-start.md").read_text()


def test_the_page_of_the_settings_is_current():
    assert current_page(SETTINGS) == SETTINGS, "run `make docs`"


def test_every_preset_is_documented():
    for name in preset_names():
        assert f"`{name}`" in SETTINGS


def test_commands_and_links_of_the_readme_exist():
    known = re.findall(r"^    (\w+)", make_parser().format_help(), flags=re.MULTILINE)
    assert set(STAGE_TITLES) < set(known)
    for command in re.findall(r"^voxout (\w+)", README, flags=re.MULTILINE):
        assert command in known
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_links_and_tests_in_documents_exist():
    documents = [ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
    assert ROOT / "docs" / "privacy.md" in documents
    for document in documents:
        text = document.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(((?!http)[^)#]+)", text):
            assert (document.parent / link).exists(), (document.name, link)
        for test in re.findall(r"`(tests/[\w/.]+)", text):
            assert (ROOT / test).exists(), (document.name, test)


def test_every_score_of_scores_json_is_documented():
    keys = re.findall(r"^\| (`[^|]*`) \| [^|]* \| [^|]* \|$", SCORES.split("## scores.json")[1], flags=re.MULTILINE)
    documented = [name for cell in keys for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(documented) == sorted(METRICS)
    assert all(f'"{field}"' in SCORES for field in FIELDS)
    for name in ORACLES:
        assert f"| `{name}` | **oracle**" in SCORES


def test_every_path_of_the_architecture_exists():
    text = (ROOT / "docs" / "architecture.md").read_text()
    paths = re.findall(r"`([a-z_]+/[a-z_/]+(?:\.py)?)/?`", text)
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_plot_with_nilearn_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    random = np.random.default_rng(0)
    grid = Grid((20, 20, 20), np.diag([2.0, 2, 2, 1]))
    write_volume(Path("patient_T1w.nii.gz"), Volume(random.random(grid.size_vox, np.float32), grid))
    z_map = Volume(random.normal(size=grid.size_vox).astype(np.float32), grid)
    names: dict[str, object] = {"result": SimpleNamespace(z_map=z_map, threshold=3.0)}
    (code,) = re.findall(r"^```python\n(.*?)^```", BEFORE, flags=re.MULTILINE | re.DOTALL)
    exec(code, names)
    assert isinstance(names["z_map"], nib.nifti1.Nifti1Image)
    assert Path("patient_map.png").stat().st_size > 0 and Path("patient_map.html").stat().st_size > 0
