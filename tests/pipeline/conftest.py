"""Commands within the test process, with workers that stay: a command of its own takes seconds only to start."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.pipeline import certify, run
from voxout.pipeline.workflow.engine import Engine


@pytest.fixture(scope="session")
def warm_workers() -> Iterator[None]:
    """Let all commands of a test process share the workers that the first one starts, but on clusters."""
    with Engine(2) as engine, pytest.MonkeyPatch.context() as patch:
        # Started here, not in the scratch folder of the first command, which is deleted with it.
        engine.map(str, [(SubjectRecord("1", "control", {}),)], stage="check")

        def warm(jobs: int | None, **cluster: Any) -> Any:
            return Engine(jobs, **cluster) if cluster else nullcontext(engine)

        for module in (run, certify):
            patch.setattr(module, "Engine", warm)
        yield
