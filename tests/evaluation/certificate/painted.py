"""Heads with lesions whose probability of being found is known."""

import numpy as np
from voxout.data_manifests.synthetic.lesion_kinds import KINDS
from voxout.evaluation.certificate.certificate import About, Certificate
from voxout.evaluation.certificate.detection_curve import expit
from voxout.evaluation.certificate.painted_heads import PaintedHead, TriedLesion

ABOUT = About(3.7, 30.0, 2.0, ("ocsvm", "prototypes", "learned"), 50, "0.1.0", ("shift", "blur"))


def logit_of(kind: str, ml: float, strength: float, y_mm: float) -> float:
    """Half of the lesions of 0.4 ml of usual strength; harder to find behind y = -60 mm."""
    return 1.5 * np.log(ml / 0.4) + 1.5 * np.log(strength / KINDS[kind].usual) - 2.0 * (y_mm < -60)


def painted_heads(heads: int = 10, each: int = 320, seed: int = 0, sd: float = 0.3) -> tuple[PaintedHead, ...]:
    random = np.random.default_rng(seed)
    made = []
    for number in range(heads):
        easier, lesions = random.normal(0, sd), []
        for index in range(each):
            kind = list(KINDS.values())[index % len(KINDS)]
            ml, strength = (
                float(np.exp(random.uniform(np.log(low), np.log(high))))
                for low, high in ((0.03, 10.0), (kind.weakest, kind.strongest))
            )
            x, y, z = (round(float(mm), 1) for mm in random.uniform([-60, -90, -40], [60, 60, 70]))
            lesions.append(
                TriedLesion(
                    copy_number=index // 8 + 1,
                    kind=kind.name,
                    ml=ml,
                    strength=strength,
                    x_mm=x,
                    y_mm=y,
                    z_mm=z,
                    lobe="occipital lobe" if y < -60 else "frontal lobe",
                    tissue=("grey matter", "white matter", "both")[index % 3],
                    found=bool(random.random() < expit(np.array(logit_of(kind.name, ml, strength, y) + easier))),
                    highest_score=3.0,
                )
            )
        made.append(
            PaintedHead(
                key=f"sub-{number:02}", participant=f"{number}", false_clusters=number % 3, lesions=tuple(lesions)
            )
        )
    return tuple(made)


def certificate(**more) -> Certificate:
    return Certificate(ABOUT, painted_heads(**more), draws=60)
