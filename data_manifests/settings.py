"""Settings of the `data_manifests` section of a configuration."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A section of the configuration: frozen, and a misspelt name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSettings(Section):
    """Who trains and who is held out."""

    held_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the controls that no detector is fitted on. Column `split` of a manifest goes before it."""
