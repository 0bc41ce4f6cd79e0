"""Types and values shared by all packages: modalities, groups and splits."""

from typing import Literal, get_args

Modality = Literal["t1w", "flair"]
Group = Literal["control", "patient"]
Split = Literal["train", "held_out"]

MODALITIES: tuple[Modality, ...] = get_args(Modality)
GROUPS: tuple[Group, ...] = get_args(Group)
SPLITS: tuple[Split, ...] = get_args(Split)

BIDS_SUFFIX: dict[Modality, str] = {"t1w": "T1w", "flair": "FLAIR"}
