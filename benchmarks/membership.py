"""Can one tell from a model whether a head was among its training controls?

    python benchmarks/membership.py MODEL COHORT PREPARED [--packed model.voxout] [--most 20]

MODEL is the output folder of a run, COHORT the manifest of healthy scans of one source of which the model was trained
on some, and PREPARED an output folder in which they were prepared (often MODEL). Each attack gives a head a number that
is expected to be higher for members. The table shows the AUC of members against the others, with a 95 % bootstrap
interval over heads: 0.5 is chance, 1 is certainty. It is computed for the model in its folder and for the packed one,
which is made if it is not given.

The attacks know the head, prepared in the same way, and all parts of the model:

- mean score: minus the mean -log10 p of all scorers;
- mean distance: minus the mean score of the one-class SVMs, or of another scorer;
- nearest latent: minus the median distance of a latent of the head to the nearest support vector of its voxel;
- equal latents: share of the voxels at which a support vector is (nearly) the head's own latent;
- components: share of the head's deviation from the mean that the whole-brain components explain.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import voxout
from scipy.stats import rankdata
from voxout.data_manifests.cohort.manifest import read_manifest
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.data_manifests.cohort.subject import SubjectRecord
from voxout.models.anomaly.calibrated_scorer import CalibratedScorer
from voxout.models.anomaly.scorers import OneClassSvms
from voxout.models.confounds.brain_components import BrainComponents, sampled
from voxout.pipeline.model.anomaly_model import AnomalyModel
from voxout.pipeline.model.model_files import read_trained_on
from voxout.pipeline.model.pack import pack
from voxout.pipeline.workflow.records import file_fingerprint
from voxout.preprocessing.prepared_images import PreparedImages

_VOXELS = 5000
"""Voxels at which latents are compared."""
_EQUAL = 0.1
"""Distance of whitened latents that counts as equal."""
_DRAWS = 2000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--packed", type=Path)
    parser.add_argument("--most", type=int, default=1000, help="heads of each kind")
    options = parser.parse_args(arguments)
    prepared = OutputFolder(options.prepared)
    trained_on = read_trained_on(OutputFolder(options.model))
    groups: tuple[list[SubjectRecord], list[SubjectRecord]] = ([], [])
    for head in read_manifest(options.cohort).controls:
        if prepared.subject_record(head).is_file():
            groups[file_fingerprint(head.images["t1w"]) in trained_on].append(head)
    heads = [head for group in groups for head in group[: options.most]]
    member = np.arange(len(heads)) >= min(len(groups[0]), options.most)
    print(f"{member.sum()} members, {(~member).sum()} other heads\n")
    with tempfile.TemporaryDirectory() as folder:
        packed = options.packed or Path(folder) / "model.voxout"
        if not packed.exists():
            pack(OutputFolder(options.model), packed)
        models = {name: voxout.load_model(path) for name, path in (("folder", options.model), ("packed", packed))}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for number, head in enumerate(heads, start=1):
        print(f"\r{number} of {len(heads)} heads", end="", file=sys.stderr, flush=True)
        shared = Shared.of(models["folder"], head, prepared)
        for name, model in models.items():
            found[name].append(dict(attacks(model, head, shared)))
    print("| attack | " + " | ".join(f"AUC, {name}" for name in found) + " |")
    print("|---|" + "---|" * len(found))
    for attack in found["folder"][0]:
        cells = []
        for values in found.values():
            if attack not in values[0]:
                cells.append("not possible")
                continue
            scores = np.array([each[attack] for each in values])
            cells.append("{:.2f} [{:.2f}, {:.2f}]".format(auc(scores, member), *interval(scores, member)))
        print(f"| {attack} | {' | '.join(cells)} |")
    return 0


@dataclass(frozen=True)
class Shared:
    """What both models compute of a head alike.

    Attributes
    ----------
    channels : ndarray, (C, X, Y, Z)
    inside : ndarray of bool, (P,)
    features : dict of str to ndarray, (P, d)
        By the name of the scorer.
    """

    channels: np.ndarray
    inside: np.ndarray
    features: dict[str, np.ndarray]

    @classmethod
    def of(cls, model: AnomalyModel, head: SubjectRecord, prepared: OutputFolder) -> "Shared":
        """Compute it from the prepared images."""
        images = PreparedImages.from_record(head, prepared, model.config.preprocessing.modalities)
        channels = model.source.channels.read(images, model.mask.grid)
        inside = model.mask.transform(images.read_brain_mask(model.mask.grid).voxels)
        features = {scorer.name: scorer.features.compute(channels) for scorer in model.ensemble.scorers}
        return cls(channels, inside, features)


def attacks(model: AnomalyModel, head: SubjectRecord, shared: Shared) -> Iterator[tuple[str, float]]:
    """Yield the number that each attack gives a head; higher: more likely a member."""
    ensemble, inside = model.ensemble, shared.inside
    confounds = ensemble.confounds.values(shared.channels, inside, head)
    means = []
    for scorer in ensemble.scorers:
        features = shared.features[scorer.name]
        if scorer.regression is not None:
            features = scorer.regression.residualise(features, confounds)
        scores = scorer.scorer.score(features, inside=inside)
        means.append(float(scorer.calibration.neg_log10_p(scores)[inside].mean()))
        yield f"mean distance, {scorer.name}", -float(scores[inside].mean())
        if isinstance(scorer.scorer, OneClassSvms) and (scorer.scorer.field.n_support > 1).any():
            distances = nearest(scorer, features, inside)
            yield "nearest latent", -float(np.median(distances))
            yield "equal latents", float(np.mean(distances < _EQUAL))
    yield "mean score", -float(np.mean(means))
    if ensemble.confounds.brain_components is not None:
        yield "components", explained(ensemble.confounds.brain_components, shared.channels, inside)


def nearest(scorer: CalibratedScorer, features: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Distance of a head's whitened latents to the nearest support vector, at some voxels inside the brain."""
    svms = scorer.scorer
    assert isinstance(svms, OneClassSvms)
    white = features if svms.whitening is None else svms.whitening.whiten(features)
    voxels = np.flatnonzero(inside)
    chosen = voxels[np.linspace(0, len(voxels) - 1, min(_VOXELS, len(voxels))).astype(int)]
    return np.array([np.linalg.norm(svms.field.support(v)[0] - white[v], axis=1).min() for v in chosen])


def explained(components: BrainComponents, channels: np.ndarray, inside: np.ndarray) -> float:
    """Share of the standardised deviation of a head that the components explain."""
    brain = sampled(components.features.compute(channels), inside)
    deviation = np.nan_to_num((brain - components.mean) * components.scale).ravel()
    rest = deviation - components.weights(brain).astype(np.float32) @ components.maps
    return 1 - float(rest @ rest) / float(deviation @ deviation)


def auc(scores: np.ndarray, member: np.ndarray) -> float:
    """Probability that a member has a higher score than another head."""
    positives, negatives = member.sum(), (~member).sum()
    return float((rankdata(scores)[member].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def interval(scores: np.ndarray, member: np.ndarray, draws: int = _DRAWS) -> tuple[float, float]:
    """95 % bootstrap interval of the AUC, over members and others."""
    random, groups = np.random.default_rng(0), (np.flatnonzero(member), np.flatnonzero(~member))
    drawn = (np.concatenate([random.choice(group, len(group)) for group in groups]) for _ in range(draws))
    low, high = np.percentile([auc(scores[index], member[index]) for index in drawn], [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    sys.exit(main())
