import numpy as np
from PIL import Image
from voxout.preprocessing.quality.picture import quality_picture
from voxout.preprocessing.registration.template import load_template

TEMPLATE = load_template(4.0)


def test_picture_is_small_and_shows_all_images(tmp_path):
    template = load_template(2.0)
    prepared = {"t1w": template.t1w, "flair": template.grey}
    path = quality_picture(
        tmp_path / "figures" / "q.png", template.t1w, template.brain_mask, prepared, template, title="sub-01: pass"
    )
    assert path.stat().st_size < 200_000
    with Image.open(path) as picture:
        width, height = picture.size
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert width > 800 and height > 350
    for third in np.array_split(pixels, 3):
        assert (third.max(axis=-1) > 150).mean() > 0.02  # a brain
        assert ((third[..., 0] > 150) & (third[..., 2] < 60)).sum() > 100  # outlines in red or yellow


def test_radiological_convention(tmp_path):
    # The right half of the template is four times as bright.
    right = np.arange(TEMPLATE.brain_mask.voxels.shape[0]) > TEMPLATE.brain_mask.voxels.shape[0] // 2
    voxels = np.where(right[:, None, None], 1.0, 0.25) * TEMPLATE.brain_mask.voxels
    head = TEMPLATE.brain_mask.with_voxels(voxels.astype(np.float32))
    path = quality_picture(tmp_path / "q.png", head, TEMPLATE.brain_mask, {"t1w": head}, TEMPLATE, title="sub-01")
    picture = np.asarray(Image.open(path).convert("L"), dtype=float)
    panels = np.array_split(picture[40:], 7, axis=1)
    for coronal_or_axial in panels[2:]:
        left_half, right_half = np.array_split(coronal_or_axial, 2, axis=1)
        assert left_half.mean() > 2 * right_half.mean()
