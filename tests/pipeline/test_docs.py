"""The documents agree with the code."""

import re
from pathlib import Path

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
