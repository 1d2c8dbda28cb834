"Measures of masks against shapes whose sizes are known. The everyday path is checked in nbs/24_measure.ipynb."
import numpy as np
import pytest
import torch

from cmunext_nb.measure import diameters, mask_measures, outline_length


def ellipse(a, b, angle=0.0, size=200, centre=None):
    y, x = np.indices((size, size))
    cy, cx = centre or ((size - 1) / 2,) * 2
    t = np.deg2rad(angle)
    u, v = (x - cx) * np.cos(t) - (y - cy) * np.sin(t), (x - cx) * np.sin(t) + (y - cy) * np.cos(t)
    return (u / a)**2 + (v / b)**2 <= 1


@pytest.mark.parametrize("angle", [0, 15, 45, 80])
@pytest.mark.parametrize("a, b", [(60, 60), (60, 30), (80, 20)])
def test_ellipses(a, b, angle):
    part, = mask_measures(ellipse(a, b, angle))
    perimeter = np.pi * (3 * (a + b) - np.sqrt((3 * a + b) * (a + 3 * b)))
    assert part["area"] == pytest.approx(np.pi * a * b, rel=0.01) and part["outline"] == pytest.approx(perimeter, rel=0.035)
    assert part["diameter"] == pytest.approx(2 * a, abs=1.6) and part["across"] == pytest.approx(2 * b, abs=2.5)


@pytest.mark.parametrize("size", [0.1, (0.1, 0.1), 3])
def test_square_pixels_only_scale(size):
    mask, s = ellipse(50, 20, 30), np.max(size)
    plain, scaled = mask_measures(mask)[0], mask_measures(mask, size)[0]
    assert scaled["area"] == pytest.approx(plain["area"] * s * s) and scaled["share"] == plain["share"] and scaled["box"] == plain["box"]
    for key in ("outline", "diameter", "across"): assert scaled[key] == pytest.approx(plain[key] * s), key


@pytest.mark.parametrize("step", [(2, 1), (1, 2), (3, 1)])
def test_oblong_pixels(step):
    "The same disc, sampled coarser along one axis, has the same measures in millimetres."
    coarse = ellipse(60, 60)[::step[0], ::step[1]]
    part, = mask_measures(coarse, step)
    assert part["area"] == pytest.approx(np.pi * 3600, rel=0.02) and part["outline"] == pytest.approx(2 * np.pi * 60, rel=0.04)
    assert part["diameter"] == pytest.approx(120, abs=4)


def test_parts_are_sorted_and_placed():
    mask = ellipse(10, 10, centre=(30, 40)) | ellipse(25, 25, centre=(120, 100)) | ellipse(3, 3, centre=(180, 180))
    parts = mask_measures(mask)
    assert [p["area"] for p in parts] == sorted((p["area"] for p in parts), reverse=True) and len(parts) == 3
    assert parts[0]["centre"] == pytest.approx((120, 100)) and parts[1]["box"] == (20, 30, 41, 51)
    assert sum(p["area"] for p in parts) == mask.sum() and sum(p["share"] for p in parts) == pytest.approx(mask.mean())


def test_the_diameter_ends_lie_on_the_mask():
    for (y, x) in mask_measures(ellipse(70, 20, 33))[0]["diameter_ends"]:
        assert ellipse(72, 22, 33)[round(y), round(x)] and not ellipse(66, 16, 33)[round(y), round(x)]


@pytest.mark.parametrize("mask", [np.eye(6), np.eye(6)[:, ::-1]])
def test_corner_to_corner_is_one_part(mask): assert len(mask_measures(mask)) == 1


@pytest.mark.parametrize("mask", [np.ones((1, 1)), np.ones((1, 7)), np.ones((9, 9)), np.eye(1)])
def test_masks_that_fill_the_image(mask):
    part, = mask_measures(mask)
    assert part["share"] == 1 and part["diameter"] == pytest.approx(np.hypot(*mask.shape))


@pytest.mark.parametrize("kind", [lambda m: m, lambda m: m.astype(np.uint8) * 255, lambda m: m.astype(float), lambda m: torch.from_numpy(m)[None]])
def test_masks_of_any_kind(kind): assert mask_measures(kind(ellipse(20, 10, size=60)))[0] == mask_measures(ellipse(20, 10, size=60))[0]


def test_an_empty_mask():
    assert mask_measures(np.zeros((5, 5))) == [] and outline_length(np.zeros((5, 5))) == 0
    with pytest.raises(ValueError, match="empty.*threshold"): diameters(np.zeros((5, 5)))


@pytest.mark.parametrize("size", [0, -0.1, float("nan"), float("inf"), (1, 0)])
def test_impossible_pixels_are_named(size):
    for call in (mask_measures, outline_length):
        with pytest.raises(ValueError, match="pixel_size"): call(np.ones((4, 4)), size)
