"""Methods of the benchmark: fitted on normal digits only, they score any digit, higher = more anomalous.

A method is one training with one or more read-outs (anomaly scores computed from it); each read-out is a row of the
table. The variants of OgAE differ from it in single settings, to measure their effect: the routes of the gradient, the
scale of the latents, gamma, the siamese term.

Each network has one hyperparameter, chosen from four values on normal validation digits only (`choose_settings`), so
that all have the same budget.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from voxout.data_manifests.errors import UserError

from .objectives import Guidance, Siamese, Sphere, compactor_only, expander_only, full
from .read_outs import FIXED_GAMMA, NU
from .training import Recipe

KAPPA = 1.0
"""Weight of the siamese term with guidance, as for the siamese auto-encoder."""
BEST_ON_VALIDATION = ("ogae-compactor", "ogae-fixed")
"""Best variants of OgAE on the same normal validation digits: 0.811 and 0.809; the next has 0.751."""

READ_OUTS: Mapping[str, str] = {
    "reconstruction": "reconstruction error",
    "ocsvm": "OC-SVM on the latents",
    "ocsvm-fixed": "OC-SVM on the latents, gamma fixed",
    "last-10": "mean of the last 10 OC-SVMs",
    "distance": "distance to the centre",
    "pixels": "raw pixels",
}


@dataclass(frozen=True)
class Choice:
    """Hyperparameter of a method that is chosen.

    Attributes
    ----------
    name : str
        Name of the hyperparameter.
    value : float
        Chosen value.
    tried : tuple of float
    recipe : callable
        Returns the recipe of the method for a value.
    """

    name: str
    value: float
    tried: tuple[float, ...]
    recipe: Callable[[float], Recipe]


@dataclass(frozen=True)
class Method:
    """Method: one or more rows of the table.

    Attributes
    ----------
    name : str
        Name on the command line.
    title : str
    read_outs : tuple of str
    choice : Choice or None
        None for methods on raw pixels, without a network.
    """

    name: str
    title: str
    read_outs: tuple[str, ...]
    choice: Choice | None = None

    @property
    def recipe(self) -> Recipe | None:
        return self.choice.recipe(self.choice.value) if self.choice else None


_DECOUPLED = ("reconstruction", "ocsvm", "ocsvm-fixed")
_GUIDED = ("last-10", "ocsvm")


def _rate(value: float, **recipe: Any) -> Choice:
    return Choice("learning rate", value, (0.0005, 0.002, 0.005, 0.01), lambda v: Recipe(rate=v, **recipe))


def _sphere(value: float, *, variational: bool) -> Choice:
    return Choice(
        "weight of the sphere",
        value,
        (0.0001, 0.001, 0.01, 0.1),
        lambda v: Recipe(variational=variational, terms=(Sphere(v),)),
    )


def _soft(value: float) -> Choice:
    return Choice("nu", value, (0.01, 0.03, 0.1, 0.3), lambda v: Recipe(reconstructs=False, terms=(Sphere(nu=v),)))


def _siamese(value: float) -> Choice:
    return Choice("kappa", value, (0.001, 0.01, 0.1, 1.0), lambda v: Recipe(terms=(Siamese(v),)))


def _vae(value: float) -> Choice:
    return Choice(
        "weight of the KL divergence",
        value,
        (0.00002, 0.0002, 0.001, 0.005),
        lambda v: Recipe(variational=True, variational_weight=v),
    )


def _guided(value: float, *also: Siamese, **changes: Any) -> Choice:
    return Choice(
        "lambda",
        value,
        (0.00001, 0.0001, 0.001, 0.01),
        lambda v: Recipe(terms=(*also, Guidance(weight=v, nu=NU, **changes))),
    )


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("pixels-ocsvm", "OC-SVM", ("pixels",)),
        Method("isolation-forest", "Isolation forest", ("pixels",)),
        Method("ae", "AE", _DECOUPLED, _rate(0.005)),
        Method("vae", "VAE", _DECOUPLED, _vae(0.00002)),
        Method("sae", "Siamese AE", _DECOUPLED, _siamese(1.0)),
        Method("svdd-hard", "Deep SVDD, hard", ("distance",), _rate(0.01, reconstructs=False, terms=(Sphere(),))),
        Method("svdd-soft", "Deep SVDD, soft", ("distance",), _soft(0.3)),
        Method("svdd-ae", "Deep SVDD with AE", ("distance",), _sphere(0.1, variational=False)),
        Method("svdd-vae", "Deep SVDD with VAE", ("distance",), _sphere(0.1, variational=True)),
        Method("ogae", "OgAE", _GUIDED, _guided(0.00001)),
        Method("ogae-expander", "OgAE, expander only", _GUIDED, _guided(0.00001, routes=expander_only)),
        Method("ogae-compactor", "OgAE, compactor only", _GUIDED, _guided(0.01, routes=compactor_only)),
        Method("ogae-full", "OgAE, both from the start", _GUIDED, _guided(0.00001, routes=full)),
        Method("ogae-standardised", "OgAE, standardised", _GUIDED, _guided(0.01, standardised=True)),
        Method("ogae-fixed", "OgAE, gamma fixed", _GUIDED, _guided(0.001, gamma=FIXED_GAMMA)),
        Method(
            "ogae-standardised-fixed",
            "OgAE, standardised, gamma fixed",
            _GUIDED,
            _guided(0.00001, standardised=True, gamma=FIXED_GAMMA),
        ),
        Method(
            "ogae-standardised-compactor",
            "OgAE, standardised, compactor only",
            _GUIDED,
            _guided(0.001, standardised=True, routes=compactor_only),
        ),
        Method("ogae-siamese", "OgAE, siamese", _GUIDED, _guided(0.00001, Siamese(KAPPA))),
    )
}


def chosen_methods(names: Sequence[str] | None) -> tuple[Method, ...]:
    """Select methods by name, in the order of the table; None selects all.

    Raises
    ------
    UserError
        A name is unknown.
    """
    unknown = sorted(set(names or ()) - set(METHODS))
    if unknown:
        raise UserError(
            f"--methods: found {', '.join(unknown)}, expected names of {', '.join(METHODS)}. Correct the names."
        )
    return tuple(method for method in METHODS.values() if names is None or method.name in names)


PixelScorer = Callable[[np.ndarray], np.ndarray]


def fit_pixels(name: str, images: np.ndarray, seed: int) -> PixelScorer:
    """Fit the one-class SVM or isolation forest of scikit-learn on images (N, 28, 28) in [0, 1]; return the scorer."""
    from sklearn.ensemble import IsolationForest
    from sklearn.svm import OneClassSVM

    model = OneClassSVM(nu=NU, gamma="scale") if name == "pixels-ocsvm" else IsolationForest(random_state=seed)
    model.fit(images.reshape(len(images), -1))
    return lambda others: -model.decision_function(others.reshape(len(others), -1))
