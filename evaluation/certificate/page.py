"""Page of a certificate: one self-contained file, as all pages."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from ...data_manifests.images.volume import Volume
from ...data_manifests.synthetic.lesion_kinds import KINDS
from ..figures.colour_scale import ColourScale, colour_bar
from ..figures.mosaic import subject_mosaic
from ..figures.slices import Head
from ..report.embedded_plots import embedded
from ..report.html import picture_uri, write_page
from .agreement import FEWEST
from .certificate import REFERENCE, Certificate
from .plots import agreement_plot, iso_plot, overview_plot

_PICTURE_BYTES = 120_000


@dataclass(frozen=True, eq=False)
class CertificatePage:
    """What the page shows.

    Attributes
    ----------
    certificate : Certificate
    created : datetime
    versions : mapping from package to version
    template, brain_mask : Volume
        Scan under the map of blind spots, and its brain.
    blind_spots : Volume or None
        Size found at each place, in ml; None without a curve of `REFERENCE`.
    warnings : tuple of str
    """

    certificate: Certificate
    created: datetime
    versions: Mapping[str, str]
    template: Volume
    brain_mask: Volume
    blind_spots: Volume | None
    warnings: tuple[str, ...] = ()


def write_certificate_page(path: Path, page: CertificatePage) -> Path:
    """Write the page atomically, with ``figures`` (SVG, PNG) in a folder next to it."""
    certificate = page.certificate
    curves = [iso_plot(certificate, name) for name in certificate.curves]
    if curves:
        curves.insert(0, overview_plot(certificate))
    agreement = agreement_plot(certificate)
    for plot in (*curves, agreement):
        plot.save(path.parent / "figures")
    cells = [cell for cell in certificate.cells if cell.lesions >= FEWEST]
    usual = [limit for kind in certificate.curves if (limit := certificate.limit_of(kind)) is not None]
    return write_page(
        path,
        "certificate.html",
        styles=("report.css",),
        scripts=("report.js",),
        report=page,
        certificate=certificate,
        kinds=KINDS,
        usual=usual,
        reference=KINDS[REFERENCE],
        curves=[embedded(plot) for plot in curves],
        agreement=embedded(agreement),
        cells=cells,
        agreeing=sum(cell.agrees for cell in cells),
        left_out=sum(head.left_out for head in certificate.heads),
        blind_spots=_blind_spots(page),
    )


@dataclass(frozen=True)
class _Picture:
    """Slices of the map of blind spots, and their colour bar, as data URIs."""

    slices: str
    alt: str
    bar: str
    scale: ColourScale


def _blind_spots(page: CertificatePage) -> _Picture | None:
    sizes = page.blind_spots
    if sizes is None:
        return None
    inside = sizes.voxels > 0
    low, high = (float(size) for size in np.percentile(sizes.voxels[inside], [50, 99]))
    scale = ColourScale(low, max(high, 1.01 * low))
    covered = sizes.with_voxels(inside)
    head = Head.from_volumes(page.template, sizes, scale, brain_mask=page.brain_mask, covered=covered)
    picture, alt = subject_mosaic(head, scan_row=False)
    alt = alt.replace("the anomaly map over the scan", "smallest size found, over the template")
    return _Picture(picture_uri(picture, _PICTURE_BYTES), alt, picture_uri(colour_bar(scale), 10_000), scale)
