"""Parts of a training that every trainer shares: reproducible algorithms, and the state of Adam as named tensors."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch


@contextmanager
def deterministic() -> Iterator[None]:
    """Use deterministic algorithms of torch where available."""
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


def optimiser_tensors(optimiser: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the state of an optimiser as tensors named ``<parameter>.<quantity>``.

    Parameters
    ----------
    optimiser : Optimizer
    names : sequence of str
        Of its parameters, in its order.
    """
    state = optimiser.state_dict()["state"]
    return {f"{names[i]}.{what}": value for i, entry in state.items() for what, value in entry.items()}


def load_optimiser(optimiser: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> None:
    """Restore what `optimiser_tensors` returned."""
    names, state = list(names), optimiser.state_dict()
    for name, value in tensors.items():
        parameter, what = name.rsplit(".", 1)
        state["state"].setdefault(names.index(parameter), {})[what] = value
    optimiser.load_state_dict(state)
