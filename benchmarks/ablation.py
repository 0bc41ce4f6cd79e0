"""Each part of the default off, one at a time: paired differences from the default on the cohort of docs/method.md.

    python benchmarks/ablation.py --data ../shared/data --out /tmp/method [--part validate] [--seeds 3]

Cohort, scans and fits are those of `method.py`: with its OUT, what is there is used. The rows that need a fit of their
own (whole-brain components, whitening, guidance, derived maps) take hours without it; ``--saved`` leaves them out,
prepares, trains and fits nothing, and needs no data. The tables are printed and saved as OUT/ablation-<part>.md.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from method import FIGURES, METHODS, Parts, Study, has_scans, prepare
from method_measures import MethodFigures, cell, overview, table
from method_subjects import ALL
from voxout.evaluation.metrics.bootstrap import Measure


@dataclass(frozen=True)
class Ablation:
    """The default without one of its parts.

    Attributes
    ----------
    parts : tuple of pairs of a fit and one of its scorers
    settings : mapping from name to number
        Changes to the settings of the ensemble.
    one_scale : bool
        Whether the smoothed and the combined scores have one scale for the whole brain, instead of one per voxel. The
        scores of each scorer keep theirs, in the saved fits.
    mirrored : bool
        Whether mirrored copies of the controls are fitted on, too.
    """

    parts: Parts = METHODS["ensemble"]
    settings: Mapping[str, float] = field(default_factory=dict)
    one_scale: bool = False
    mirrored: bool = True


def _with(**fits: str) -> Parts:
    """The default with other fits of some of its scorers."""
    return tuple((fits.get(scorer, fit), scorer) for fit, scorer in METHODS["ensemble"])


DEFAULT = "default"
ABLATIONS: Mapping[str, Ablation] = {
    DEFAULT: Ablation(),
    "without ocsvm": Ablation(METHODS["ensemble without OC-SVM"]),
    "without prototypes": Ablation(METHODS["ensemble without prototypes"]),
    "without learned": Ablation(METHODS["ensemble without learned"]),
    "Mahalanobis distance instead of ocsvm": Ablation(METHODS["ensemble, Mahalanobis instead of OC-SVM"]),
    "without smoothing": Ablation(settings={"smoothing_mm": 0.0}),
    "without comparison with surroundings": Ablation(settings={"surroundings_mm": 0.0}),
    "one scale for the whole brain": Ablation(one_scale=True),
    "without mirrored controls": Ablation(mirrored=False),
    "without whole-brain components": Ablation(
        _with(ocsvm="OgAE, without components", learned="learned, without components")
    ),
    "without whitening (standardised latents)": Ablation(_with(ocsvm="OgAE standardised, same gamma")),
    "without guidance": Ablation(_with(ocsvm="AE")),
    "without derived maps": Ablation(
        _with(ocsvm="OgAE, without derived maps", learned="learned, without derived maps")
    ),
}
"""The default and what is compared with it, by name."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("method_benchmark"))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=("validate", "test"), default="test")
    parser.add_argument("--rows", nargs="+", choices=ABLATIONS, metavar="NAME", help="names of rows; all by default")
    parser.add_argument("--saved", action="store_true", help="only rows whose fits are all saved in OUT")
    options = parser.parse_args(arguments)
    if not options.saved:
        if not has_scans(options.data):
            return 0
        if code := prepare(options.data, options.out, options.jobs):
            return code
    studies = {
        mirrored: AblationStudy(options.out, options.seeds, options.part, options.jobs, mirrored=mirrored)
        for mirrored in (True, False)
    }
    names = list(dict.fromkeys([DEFAULT, *(options.rows or ABLATIONS)]))
    missing = {name: fits for name in names if (fits := studies[ABLATIONS[name].mirrored].missing(ABLATIONS[name]))}
    for name, fits in missing.items():
        print(f"{name}: {'left out' if options.saved else 'to be fitted'}: {', '.join(fits)}", file=sys.stderr)
    if options.saved:
        names = [name for name in names if name not in missing]
    if DEFAULT not in names:
        print("stopped: a fit of the default is not saved, expected all of them. Leave out --saved.", file=sys.stderr)
        return 2
    text = report({name: studies[ABLATIONS[name].mirrored].figures(name, ABLATIONS[name]) for name in names})
    print(text)
    (options.out / f"ablation-{options.part}.md").write_text(text)
    return 0


class AblationStudy(Study):
    """Study of the default without its parts."""

    def missing(self, ablation: Ablation) -> list[str]:
        """Folders of the fits that a row needs and that are not saved."""
        needed = {self.folder(fit, seed).name: (fit, seed) for fit, _ in ablation.parts for seed in range(self.seeds)}
        return [name for name, fit in needed.items() if not self.is_fitted(*fit)]

    def figures(self, name: str, ablation: Ablation) -> list[MethodFigures]:
        """Metrics of a row for each seed."""
        self.shrinkage = 1.0 if ablation.one_scale else None
        # Scores that were smoothed or calibrated in another way.
        self.cache.clear()
        return self.by_seed(name, ablation.parts, **ablation.settings)


# -- the tables ------------------------------------------------------------------------------------------------------
def report(figures: Mapping[str, Sequence[MethodFigures]]) -> str:
    """Tables of all rows: their values, and for each metric their differences from the default.

    Parameters
    ----------
    figures : mapping from name to sequence of MethodFigures
        One per seed; with `DEFAULT`.
    """
    values = [_mean(each, name) for name, each in figures.items()]
    by_seed = {
        name: [one.minus(default) for one, default in zip(each, figures[DEFAULT], strict=True)]
        for name, each in figures.items()
        if name != DEFAULT
    }
    text = [table(values, ALL)]
    if by_seed:
        text += [differences(by_seed, figure) for figure in FIGURES]
        means = [_mean(each, name) for name, each in by_seed.items()]
        text += ["Differences by kind of lesion:\n", *(overview(means, figure) for figure in FIGURES)]
    return "\n".join(text)


def differences(by_seed: Mapping[str, Sequence[MethodFigures]], figure: str) -> str:
    """Markdown table of the differences of one metric, largest loss first, and which are certain.

    A difference is certain if its 95 % interval excludes 0; this is not adjusted for the number of rows.
    """
    rows = []
    for name, each in by_seed.items():
        measure = getattr(_mean(each, name).kinds[ALL], figure)
        seeds = [getattr(one.kinds[ALL], figure).value for one in each]
        rows.append((name, measure, seeds, _side(measure)))
    # An undefined difference comes last.
    rows.sort(key=lambda row: np.nan_to_num(row[1].value, nan=np.inf))
    lines = [f"| {figure.replace('_', ' ')} | difference from the default | each seed | certain |", "|---|---|---|---|"]
    for name, measure, seeds, side in rows:
        lines.append(f"| {name} | {cell(measure)} | {', '.join(f'{seed:+.4f}' for seed in seeds)} | {side or 'no'} |")
    worse, better = ([name for name, _, _, side in rows if side == wanted] for wanted in ("worse", "better"))
    lines += ["", f"Certainly worse: {', '.join(worse) or 'none'}. Certainly better: {', '.join(better) or 'none'}."]
    return "\n".join(lines) + "\n"


def _side(measure: Measure) -> str:
    """Whether a difference from the default is certainly "worse" or "better"; empty if neither."""
    estimate = measure.estimate()
    if estimate.ci_low is None or estimate.ci_high is None:
        return ""
    return "better" if estimate.ci_low > 0 else "worse" if estimate.ci_high < 0 else ""


def _mean(each: Sequence[MethodFigures], name: str) -> MethodFigures:
    first, *others = each
    return first.averaged_with(*others, name=name)


if __name__ == "__main__":
    sys.exit(main())
