"""Corner cases of augmentation, loss and metrics that would clutter their notebooks."""
import itertools, math

import numpy as np
import pytest
import torch

from cmunext_nb.augment import (Augment, affine_matrices, apply_changes, apply_curves, augment, augmentations, draw_changes, rotate_flip,
                                sampling_grid, warp)
from cmunext_nb.loss import BCEDiceLoss, bce_loss, dice_loss
from cmunext_nb.metrics import (COUNT_METRICS, binarize, f1, hd95, iou, mask_counts, mask_hd95, reduce_counts, rim, rim_distances,
                                segmentation_counts)


def seeded(seed=0): return torch.Generator().manual_seed(seed)


# Augmentation

def coordinates(n, height, width):
    "Images whose two channels are each pixel's own row and column, and masks by a rule of them."
    images = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).to(torch.uint8).repeat(n, 1, 1, 1)
    return images, rule(images)


def rule(images):
    y, x = images[:, :1].int(), images[:, 1:].int()
    return torch.cat([(3 * y + 5 * x) % 11 < 4, (7 * y + 2 * x) % 5 < 2], 1).to(torch.uint8)


@pytest.mark.parametrize("height, width", [(64, 64), (33, 33), (48, 32), (31, 47), (1, 1), (1, 9)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moves_keep_every_pixel_with_its_mask(height, width, layout):
    images, masks = coordinates(96, height, width)
    moved, moved_masks = augment(images.contiguous(memory_format=layout), masks, Augment(turn=1, flip=0.75, mirror=0.5), seeded(height))
    assert torch.equal(rule(moved), moved_masks)
    assert torch.equal(moved.flatten(2).sort(2).values, images.flatten(2).sort(2).values)
    assert moved.is_contiguous(memory_format=layout)
    if height == width > 1:
        kinds = {x.contiguous().numpy().tobytes() for x in moved}
        assert len(kinds) == 8, "all eight positions of a square occur"
    if height != width and min(height, width) > 1: assert len({x.contiguous().numpy().tobytes() for x in moved}) == 4


def test_turns_are_those_of_torch():
    x = torch.randint(0, 256, (8, 3, 7, 7), dtype=torch.uint8, generator=seeded())
    for turn, mirror, upside in itertools.product(range(4), (False, True), (False, True)):
        expected = x.rot90(turn, (2, 3))
        if mirror: expected = expected.flip(3)
        if upside: expected = expected.flip(2)
        made = rotate_flip(x, torch.full((8,), turn), torch.full((8,), mirror), torch.full((8,), upside))
        assert torch.equal(made, expected)


@pytest.mark.parametrize("size", [8, 9, 64, 255])
def test_affine_quarter_turns_are_exact(size):
    x = torch.randint(0, 256, (4, 2, size, size), dtype=torch.uint8, generator=seeded(size))
    turns, no = torch.arange(4), torch.zeros(4, dtype=torch.bool)
    grid = sampling_grid(affine_matrices(90. * turns, torch.ones(4), torch.zeros(4, 2), torch.zeros(4)), size, size)
    for mode, padding in itertools.product(("bilinear", "nearest"), ("reflection", "border", "zeros")):
        assert torch.equal(warp(x, grid, mode, padding), rotate_flip(x, turns, no, no))


def test_whole_pixel_shifts_of_a_picture_that_is_not_square():
    x = torch.randint(0, 256, (1, 1, 20, 50), dtype=torch.uint8, generator=seeded())
    grid = sampling_grid(affine_matrices(torch.zeros(1), torch.ones(1), torch.tensor([[0.1, -0.2]]), torch.zeros(1)), 20, 50)
    assert torch.equal(warp(x, grid, padding="zeros")[..., :16, 5:], x[..., 4:, :-5])  # 5 to the right, 4 up


def test_angles_are_true_in_a_picture_that_is_not_square():
    y, x = torch.meshgrid(torch.arange(60.), torch.arange(120.), indexing="ij")
    bar = ((y - 29.5).abs() < 2).to(torch.uint8)[None, None] * 255
    turned = warp(bar, sampling_grid(affine_matrices(torch.tensor([45.]), *still()), 60, 120), "nearest", "zeros")[0, 0]
    rows, columns = turned.nonzero(as_tuple=True)
    slope = np.polyfit(columns.numpy(), rows.numpy(), 1)[0]
    assert abs(slope + 1) < 0.05, "counter-clockwise by 45 degrees: one up for each one to the right"


def still(): return torch.ones(1), torch.zeros(1, 2), torch.zeros(1)


@pytest.mark.parametrize("recipe", [augmentations["fast"], Augment(rotate=180, scale=0.5, shift=0.3, shear=20), Augment(rotate=30, padding="zeros")])
def test_affine_masks_differ_from_their_images_at_the_outline_only(recipe):
    y, x = torch.meshgrid(torch.arange(96.), torch.arange(96.), indexing="ij")
    masks = torch.stack([torch.hypot(x - c, y - 40) <= r for c, r in ((30, 20), (50, 9), (70, 25), (48, 3))])[:, None].to(torch.uint8).repeat(8, 1, 1, 1)
    geometry = Augment(**{k: getattr(recipe, k) for k in ("turn", "flip", "mirror", "rotate", "scale", "shift", "shear", "padding")})
    as_image, as_mask = augment(255 * masks, masks, geometry, seeded(3))
    # The nearest of the four pixels around a place has at least a quarter of the weight; one grey level is for rounding.
    assert (as_mask[as_image > 192] == 1).all() and (as_mask[as_image < 63] == 0).all()
    assert ((as_image > 127) != (as_mask > 0)).float().mean() < 0.005
    assert set(as_mask.unique().tolist()) == {0, 1}


def test_same_seed_same_result_and_the_global_generator_is_left_alone():
    images, masks = coordinates(8, 32, 32)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b = augment(images, masks, "fast", seeded(1), noise=0.3), augment(images, masks, "fast", seeded(1), noise=0.3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a, b))
    c = augment(images, masks, "fast", seeded(2), noise=0.3)
    assert not torch.equal(a[0], c[0])


def test_generator_state_continues_a_run():
    images, masks = coordinates(8, 32, 32)
    one = seeded(5)
    run = [augment(images, masks, "fast", one)[0] for _ in range(4)]
    two = seeded(5)
    for _ in range(2): augment(images, masks, "fast", two)
    three = torch.Generator()
    three.set_state(two.get_state())
    assert all(torch.equal(a, augment(images, masks, "fast", three)[0]) for a in run[2:])


def test_inputs_are_not_changed_in_place():
    images, masks = coordinates(8, 32, 32)
    kept = images.clone(), masks.clone()
    for recipe in (*augmentations, Augment(1, 1, 1, 20, 0.2, 0.1, 5, 0.3, 0.2, 0.1, 1, 0.3)): augment(images, masks, recipe, seeded())
    assert torch.equal(images, kept[0]) and torch.equal(masks, kept[1])


def test_a_rectangle_brings_its_mask_along():
    masks = torch.randint(0, 2, (8, 1, 32, 32), dtype=torch.uint8, generator=seeded())
    images = torch.cat([7 * masks, 255 - masks], 1)
    new, new_masks = augment(images, masks, Augment(cutmix=1.0), seeded(4))
    assert torch.equal(new, torch.cat([7 * new_masks, 255 - new_masks], 1)) and not torch.equal(new_masks, masks)
    boxes = draw_changes(4000, Augment(cutmix=0.3), seeded())["boxes"]
    used = boxes[boxes[:, 2] > 0]
    assert abs(len(used) / 4000 - 0.3) < 0.03 and (used[:, :2] >= 0).all() and (used[:, :2] + used[:, 2:] <= 1).all()
    assert 0.25 <= used[:, 2:].min() < 0.27 and 0.73 < used[:, 2:].max() <= 0.75
    alone = augment(images[:1], masks[:1], Augment(cutmix=1.0), seeded())  # no other image: nothing to lay on it
    assert torch.equal(alone[0], images[:1])


def test_changes_of_grey_leave_masks_alone():
    images, masks = coordinates(8, 32, 32)
    new, new_masks = augment(images, masks, Augment(gamma=0.5, contrast=0.5, brightness=0.2, blur=1, noise=0.3), seeded())
    assert torch.equal(new_masks, masks) and not torch.equal(new, images)


def test_drawn_changes_stay_within_the_recipe():
    r = Augment(rotate=20, scale=0.25, shift=0.1, shear=5, gamma=0.4, contrast=0.3, brightness=0.1, blur=0.5, noise=0.2)
    c = draw_changes(20_000, r, seeded())
    for key, low, high in (("angle", -20, 20), ("scale", 0.8, 1.25), ("shift", -0.1, 0.1), ("shear", -5, 5), ("gamma", 1 / 1.4, 1.4),
                           ("contrast", 1 / 1.3, 1.3), ("brightness", -0.1, 0.1), ("blur", 0, 0.5), ("noise", 0, 0.2)):
        width = high - low
        assert low - 1e-5 <= c[key].min() < low + 0.01 * width and high - 0.01 * width < c[key].max() <= high + 1e-5, key
    assert not c["turns"].any() and not c["mirror"].any() and not c["upside_down"].any()


def test_curves_map_each_grey_level():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    curves = torch.stack([torch.arange(256), 255 - torch.arange(256)]).to(torch.uint8)
    made = apply_curves(images, curves)
    assert torch.equal(made[0], images[0]) and torch.equal(made[1], 255 - images[1])


@pytest.mark.parametrize("name, value", [("mirror", 1.1), ("rotate", -1), ("gamma", float("nan")), ("blur", 2), ("rotate", None), ("rotate", "20"), ("shear", 90), ("shift", math.inf)])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"Augment\({name}=.*expected a number"): Augment(**{name: value})


def test_unknown_names_are_refused():
    images, masks = coordinates(2, 8, 8)
    with pytest.raises(ValueError, match="fast"): augment(images, masks, "fsat")
    with pytest.raises(ValueError, match="border"): Augment(padding="boarder")
    with pytest.raises(TypeError, match="rotation"): augment(images, masks, "fast", rotation=3)


@pytest.mark.parametrize("images, masks", [
    (torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)),
    (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 9, dtype=torch.uint8)),
    (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)),
    (torch.zeros(1, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 8, dtype=torch.uint8)),
    (np.zeros((2, 1, 8, 8), np.uint8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8))])
def test_batches_that_do_not_belong_together_are_refused(images, masks):
    with pytest.raises(ValueError): augment(images, masks)


def test_precision_of_the_grid_under_autocast():
    images, masks = coordinates(4, 64, 64)
    with torch.autocast("cpu", torch.bfloat16): inside = augment(images, masks, "fast", seeded())
    outside = augment(images, masks, "fast", seeded())
    assert torch.equal(inside[0], outside[0]) and torch.equal(inside[1], outside[1])


def test_empty_changes_return_the_batch_itself():
    images, masks = coordinates(3, 8, 8)
    same = apply_changes(images, masks, draw_changes(3, augmentations["none"], seeded()))
    assert same[0] is images and same[1] is masks


# Loss

def random_pair(n=3, classes=1, size=24, seed=0):
    generator = seeded(seed)
    logits = 3 * torch.randn(n, classes, size, size, generator=generator)
    return logits, (torch.rand(n, classes, size, size, generator=generator) > 0.7).to(torch.uint8)


def equation_7(logits, masks, smooth=1e-5):
    "0.5 BCE + Dice with numpy in float64."
    z, t = logits.double().numpy(), masks.double().numpy()
    p = 1 / (1 + np.exp(-z))
    bce = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    p, t = p.reshape(-1, z[0, 0].size), t.reshape(-1, z[0, 0].size)
    dice = (2 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)
    return 0.5 * bce + 1 - dice.mean()


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_loss_is_equation_7(classes, kind):
    logits, masks = random_pair(classes=classes)
    assert abs(BCEDiceLoss()(logits, masks.to(kind)).item() - equation_7(logits, masks)) < 1e-6


def test_loss_gradient_is_right():
    logits, masks = random_pair(2, 2, 5)
    z = logits.double().requires_grad_()
    # The terms work in float32: differences must be large enough to be seen.
    gradient, = torch.autograd.grad(BCEDiceLoss()(z, masks), z)
    for place in ((0, 0, 1, 2), (1, 1, 4, 0)):
        up, down = z.detach().clone(), z.detach().clone()
        up[place] += 1e-3
        down[place] -= 1e-3
        assert abs((equation_7(up, masks) - equation_7(down, masks)) / 2e-3 - gradient[place].item()) < 1e-6


def test_loss_in_half_precision_does_not_overflow():
    masks = torch.ones(1, 1, 300, 300)
    for kind in (torch.float16, torch.bfloat16):
        loss = BCEDiceLoss()(torch.full((1, 1, 300, 300), 12., dtype=kind), masks)
        assert loss.dtype == torch.float32 and loss < 1e-4


def test_loss_of_extreme_logits_is_finite():
    masks = torch.zeros(1, 1, 4, 4)
    for value in (-1e4, 1e4):
        z = torch.full((1, 1, 4, 4), value, requires_grad=True)
        loss = BCEDiceLoss()(z, masks)
        loss.backward()
        assert loss.isfinite() and z.grad.isfinite().all()


def test_loss_weights_and_best_value():
    logits, masks = random_pair()
    assert torch.allclose(BCEDiceLoss(bce_weight=2)(logits, masks), 2 * bce_loss(logits, masks) + dice_loss(logits, masks))
    assert BCEDiceLoss()(40. * masks - 20, masks) < 1e-5
    assert BCEDiceLoss()(20 - 40. * masks, masks) > 10


def test_nan_is_passed_on():
    logits, masks = random_pair()
    logits[1, 0, 2, 3] = float("nan")
    assert BCEDiceLoss()(logits, masks).isnan()


@pytest.mark.parametrize("masks", [torch.zeros(3, 24, 24), torch.zeros(3, 2, 24, 24), torch.zeros(3, 1, 24, 25), torch.full((3, 1, 24, 24), 255),
                                   torch.full((3, 1, 24, 24), -1.), torch.full((3, 1, 24, 24), float("nan"))])
def test_wrong_masks_are_refused(masks):
    with pytest.raises(ValueError, match="masks"): BCEDiceLoss()(random_pair()[0], masks)


@pytest.mark.parametrize("one, other", [((1, 8, 8), (1, 8, 8)), ((2, 1, 8, 8), (1, 1, 8, 8)), ((2, 1, 8, 8), (2, 2, 8, 8)), ((8, 8), (8, 8))], ids=str)
def test_shapes_that_torch_would_stretch_are_refused(one, other):
    with pytest.raises(ValueError, match="must both be"): dice_loss(torch.zeros(one), torch.zeros(other))
    with pytest.raises(ValueError, match="must both be"): mask_counts(torch.zeros(one, dtype=torch.bool), torch.zeros(other))


def test_logits_are_no_mask():
    with pytest.raises(TypeError, match="float32.*segmentation_counts"): mask_counts(torch.full((1, 1, 8, 8), -4.), torch.zeros(1, 1, 8, 8))


def test_dice_does_not_look_at_values():
    "On a GPU each look would wait for the device, once a step."
    class Unread(torch.Tensor):
        def item(self): raise AssertionError("the loss waited for a value")
        __float__ = __bool__ = item
    logits, masks = (x.as_subclass(Unread) for x in random_pair())
    assert torch.isfinite(dice_loss(logits, masks).as_subclass(torch.Tensor))


def test_the_look_at_the_values_can_be_left_out():
    logits, masks = random_pair()
    assert BCEDiceLoss(validate=False)(logits, 255 * masks).isfinite()


# Metrics

def brute_counts(p, t):
    pairs = list(zip(p.flatten().tolist(), t.flatten().tolist()))
    return tuple(sum(a == x and b == y for a, b in pairs) for x, y in ((1, 1), (1, 0), (0, 1), (0, 0)))


@pytest.mark.parametrize("threshold", [0.5, 0.1, 0.93])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_counts_against_counting(threshold, kind):
    logits, masks = random_pair(3, 2, 9)
    logits = logits.to(kind)
    counts = segmentation_counts(logits, masks, threshold)
    predictions = logits.double().sigmoid() > threshold
    for n, c in itertools.product(range(3), range(2)):
        assert tuple(int(x[n, c]) for x in counts) == brute_counts(predictions[n, c].int(), masks[n, c])
    assert all(x.dtype == torch.int64 and x.shape == (3, 2) for x in counts)


def test_scores_against_sets():
    logits, masks = random_pair(5, 2, 16)
    p, t = logits > 0, masks > 0
    both, either = (p & t).sum((2, 3)).double(), (p | t).sum((2, 3)).double()
    assert torch.equal(iou(logits, masks, "none"), both / either)
    assert math.isclose(iou(logits, masks), (both / either).mean().item())
    assert math.isclose(iou(logits, masks, "pooled"), (both.sum(0) / either.sum(0)).mean().item())
    assert torch.allclose(f1(logits, masks, "none"), 2 * both / (both + either))
    assert math.isclose(f1(logits, masks, "pooled"), (2 * both.sum(0) / (both + either).sum(0)).mean().item())


def test_batches_do_not_matter():
    logits, masks = random_pair(7, 1, 16)
    whole = segmentation_counts(logits, masks)
    parts = [torch.cat(c) for c in zip(*(segmentation_counts(logits[i:j], masks[i:j]) for i, j in ((0, 3), (3, 4), (4, 7))))]
    for metric, reduce in itertools.product(COUNT_METRICS, ("image", "pooled")):
        assert reduce_counts(*whole, metric, reduce) == reduce_counts(*parts, metric, reduce)


def test_pooled_is_the_image_score_of_one_image():
    counts = segmentation_counts(*random_pair(1))
    for metric in COUNT_METRICS: assert reduce_counts(*counts, metric, "pooled") == reduce_counts(*counts, metric, "image")


def test_large_counts_do_not_lose_a_pixel():
    tp, one = torch.tensor([[2**40]]), torch.tensor([[1]])
    assert reduce_counts(tp, one, one * 0, one * 0, "precision") < 1  # float32 would say 1


@pytest.mark.parametrize("metric", list(COUNT_METRICS))
def test_empty_rule(metric):
    zero, some = torch.zeros(1, 1, 8, 8, dtype=torch.bool), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    some[..., :4] = True
    score = lambda p, t, **k: reduce_counts(*mask_counts(p, t), metric, **k)
    if metric != "specificity":  # there the background is what counts, and it is not empty
        for empty in (1., 0., 0.3): assert score(zero, zero, empty=empty) == empty
        assert math.isnan(score(zero, zero, empty=float("nan")))
        assert score(some, zero) == 0 and score(zero, some) == 0
    else:
        assert score(zero, zero, empty=0.) == 1 and score(~zero, ~zero, empty=0.3) == 0.3 and score(some, ~zero) == 0
    assert score(some, some) == 1


def test_left_out_images_do_not_count():
    zero, one = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    logits, masks = torch.cat([zero - 4, 4 * one, zero - 4]), torch.cat([zero, one, one])
    assert iou(logits, masks, empty=float("nan")) == 0.5 and iou(logits, masks, empty=1.) == 2 / 3


def test_metrics_refuse_what_they_cannot_score():
    logits, masks = random_pair()
    for bad in (masks[:, 0], 255 * masks.int(), masks * 0.5, masks[:2]):
        with pytest.raises(ValueError): segmentation_counts(logits, bad)
        with pytest.raises(ValueError): hd95(logits, bad)
    logits[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"): iou(logits, masks)
    with pytest.raises(ValueError, match="threshold"): binarize(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), 1.)
    with pytest.raises(ValueError, match="iou"): reduce_counts(*segmentation_counts(*random_pair()), "iuo")


def brute_distances(a, b, spacing=(1, 1)):
    def edge(m):
        inside = lambda i, j: 0 <= i < m.shape[0] and 0 <= j < m.shape[1] and m[i, j]
        return [(i, j) for i, j in np.argwhere(m) if not all(inside(*q) for q in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)))]
    pa, pb = edge(a), edge(b)
    gap = lambda p, q: math.hypot((p[0] - q[0]) * spacing[0], (p[1] - q[1]) * spacing[1])
    return [min(gap(p, q) for q in pb) for p in pa] + [min(gap(q, p) for p in pa) for q in pb]


@pytest.mark.parametrize("seed", range(6))
def test_outline_distances_against_measuring_every_pair(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 14, 17)) > rng.uniform(0.3, 0.95)
    a[0, 0] = b[3, 4] = True
    spacing = (0.7, 1.9)
    expected = brute_distances(a, b, spacing)
    assert np.allclose(np.sort(rim_distances(a, b, spacing)), np.sort(expected))
    assert math.isclose(mask_hd95(a, b, spacing), np.percentile(expected, 95))


def test_full_hausdorff_is_that_of_scipy():
    from scipy.spatial.distance import directed_hausdorff
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 20, 20)) > 0.9
    pa, pb = np.argwhere(rim(a)), np.argwhere(rim(b))
    expected = max(directed_hausdorff(pa, pb)[0], directed_hausdorff(pb, pa)[0])
    assert math.isclose(mask_hd95(a, b, percentile=100), expected)


def test_hd95_of_discs():
    y, x = np.indices((128, 128))
    disc = lambda r, i=64, j=64: np.hypot(y - i, x - j) <= r
    for r in (10, 20, 40): assert abs(mask_hd95(disc(50), disc(r)) - (50 - r)) < 0.75
    assert mask_hd95(disc(20), disc(20, 64, 71), percentile=100) == 7
    assert mask_hd95(disc(20), disc(20, 64, 71)) <= 7
    assert mask_hd95(disc(20), disc(20, 64, 71)) == mask_hd95(disc(20, 64, 71), disc(20))
    assert math.isclose(mask_hd95(disc(50), disc(20), spacing=0.2), 0.2 * mask_hd95(disc(50), disc(20)))


def test_hd95_of_batches_and_of_nothing():
    zero, one = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    one[..., 4:9, 4:9] = 1
    logits, masks = 8 * torch.cat([zero, one, zero, one]) - 4, torch.cat([zero, zero, one, one])
    assert hd95(logits, masks, "none").flatten().tolist() == [0, math.inf, math.inf, 0]
    assert hd95(logits, masks) == math.inf and hd95(logits, masks, missing=float("nan")) == 0
    assert hd95(logits, masks, missing=16 * 2**0.5) == 8 * 2**0.5
    with pytest.raises(ValueError, match="image, none"): hd95(logits, masks, reduce="pooled")
    with pytest.raises(ValueError): mask_hd95(zero[0, 0], one[0])
