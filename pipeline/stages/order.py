"""The stages in the order in which a run does them."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from ..workflow.runner import Stage
from ..workflow.stage_titles import STAGE_TITLES

if TYPE_CHECKING:
    from ...models.anomaly.learn import LabelSettings
    from ..model.matched_model import MatchedControls

APPLIED = ("check", "prepare", "map", "score", "report")
"""Stages that apply a fitted model to new subjects."""

ADAPTED = ("check", "prepare", "fit", "map")
"""Stages that adapt a fitted model to another scanner or to labels; the last two are those of `adapt` or `labels`."""


class _Stages(Mapping[str, Stage]):
    """Stages by name; the module of a stage, with the libraries it needs, is imported when the stage is first used."""

    def __getitem__(self, name: str) -> Stage:
        if name not in STAGE_TITLES:
            raise KeyError(name)
        return import_module(f".{name}", __package__).STAGE

    def __iter__(self) -> Iterator[str]:
        return iter(STAGE_TITLES)

    def __len__(self) -> int:
        return len(STAGE_TITLES)


STAGES = _Stages()


def adapting_stages() -> dict[str, Stage]:
    """Return the stages that adapt a fitted model to another scanner, by name."""
    from .adapt import ADAPT, THRESHOLD

    return {"check": STAGES["check"], "prepare": STAGES["prepare"], "fit": ADAPT, "map": THRESHOLD}


def learning_stages(settings: "LabelSettings") -> dict[str, Stage]:
    """Return the stages that adapt a fitted model to labelled patients, by name."""
    from .labels import label_stages

    return {"check": STAGES["check"], "prepare": STAGES["prepare"], **label_stages(settings)}


def matched_stages(matched: "MatchedControls") -> dict[str, Stage]:
    """Return the stages that apply a model, fitted anew for each subject with its controls, by name."""
    from .map import map_stage

    return {name: STAGES[name] for name in APPLIED} | {"map": map_stage(matched)}
