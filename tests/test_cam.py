"""Grad-CAM on anybody's network: the library's maps without the library's habits. The everyday path is checked in nbs/21_gradcam.ipynb."""
import contextlib, copy, io, sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cmunext_nb.cam import (FILLS, METHODS, _deletions, control_cam, deletion_curve, find_region, grad_cam, rank_correlation, seg_cam, stretch)
from cmunext_nb.layers import as_images, as_logits, find_layer, randomized, untouched, watch
from cmunext_nb.model import create_model
from cmunext_nb.phantom import make_phantom
from cmunext_nb.predict import predict

TINY = dict(dims=(4, 8, 8), depths=(1, 1, 1), kernel_sizes=(3, 3, 5))
has_library = pytest.mark.skipif(not __import__("importlib.util").util.find_spec("pytorch_grad_cam"), reason="needs grad-cam")


def tiny(seed=0, **options):
    "Random weights, and running statistics that are not the factory's."
    torch.manual_seed(seed)
    model = create_model("cmunext_s", **{**TINY, **options}).train()
    with torch.no_grad(): model(torch.randn(4, model.config["in_channels"], 48, 48))
    return model.eval()


def picture(h=48, w=64, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BILINEAR))


def spot(h=48, w=64):
    mask = np.zeros((h, w), bool)
    mask[10:24, 20:40] = True
    return mask


class Answer(nn.Module):
    "A small net that answers in a dict, after an in-place ReLU; with a pooled layer, an auxiliary head and a layer that never runs."
    def __init__(self, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 5, stride=4, padding=2), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.pool, self.unused, self.aux, self.head = nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 1, 1), nn.Conv2d(6, classes, 1)

    def forward(self, x):
        y = self.body(x)
        z = self.head(y * self.pool(y).sigmoid())
        return dict(out=nn.functional.interpolate(z, size=x.shape[-2:], mode="bilinear"), aux=self.aux(y))


def answer(classes=3):
    torch.manual_seed(1)
    return Answer(classes).eval()


class Plain(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x): return as_logits(self.model(x))


def library(name, model, x, layer, region, channel=0):
    "The raw map and the final one, by the library alone and in full."
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget
    tool, raws = getattr(pytorch_grad_cam, name)(Plain(model), [find_layer(model, layer)[1]]), []
    formula = tool.get_cam_image
    tool.get_cam_image = lambda *a: raws.append(formula(*a)) or raws[-1]
    final = tool(x.clone().requires_grad_(), [SemanticSegmentationTarget(channel, region.astype(np.float32))])[0]
    tool.activations_and_grads.release()
    return raws[0][0], final


def check_equal(ours, raw, final):
    "To 1e-5, where stretching a map of little contrast does not enlarge the rounding."
    raw = np.maximum(raw, 0)
    if raw.max() == 0: return np.testing.assert_array_equal(ours.map, 0)  # nothing speaks for the region
    assert np.abs(ours.raw - raw).max() <= 1e-5 * raw.max() and np.abs(ours.map - final).max() < 1e-5 * raw.max() / (raw.max() - raw.min())


# the library's maps

@has_library
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "gradcamelementwise", "layercam", "gradcam++", "xgradcam", "eigengradcam", "eigencam"])
@pytest.mark.parametrize("layer", ["encoder.0", "encoder.2", "decoder.0"])
def test_each_method_equals_the_library(method, layer):
    model, image, region = tiny(), picture(), spot()
    ours = seg_cam(model, image, layer, region, method)
    raw, final = library(METHODS[method] or "GradCAM", model, as_images(model, image)[1], layer, region)
    sides = [np.maximum(side, 0) for side in ((raw, -raw) if "eigen" in method else (raw,))]  # a principal component has no sign
    assert min(np.abs(ours.raw - side).max() for side in sides) <= 1e-3 * np.abs(raw).max()
    if method == "gradcam": check_equal(ours, raw, final)


@has_library
def test_torchvision_and_segmentation_models():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    deeplab = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    image, region = picture(64, 64), spot(64, 64)
    deeplab = randomized(deeplab, [picture(64, 64, seed) for seed in range(3)]).double()  # norms that let the signal through; rounding apart
    for layer in ("backbone.6", "backbone.16", "classifier.0", "classifier.1"):
        ours = seg_cam(deeplab, image, layer, region, channel=1)
        raw, final = library("GradCAM", deeplab, as_images(deeplab, image)[1], layer, region, 1)
        check_equal(ours, raw, final)
    assert np.isfinite(control_cam(deeplab, image, ours).map).all()


def test_a_unet_of_another_library():
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=2).eval()
    cam = seg_cam(model, picture(64, 96), region=spot(64, 96), channel=1)
    assert cam.map.shape == (64, 96) and cam.raw.shape == (2, 3)
    assert seg_cam(model, picture(64, 96), model.decoder.blocks[1], spot(64, 96), channel=1).raw.shape == (8, 12)


def test_a_layer_before_an_in_place_relu():
    "Its output and its gradient, not those of the ReLU that overwrites it."
    model, region = answer(), spot()
    cam = seg_cam(model, picture(), "body.1", region, "gradcam")
    x = as_images(model, picture())[1]
    norm = model.body[1](model.body[0](x)).detach().requires_grad_()
    y = norm.relu()
    z = nn.functional.interpolate(model.head(y * model.pool(y).sigmoid()), size=x.shape[-2:], mode="bilinear")
    g, = torch.autograd.grad(z[0, 0][torch.from_numpy(region)].sum(), norm)
    assert norm.min() < 0 and np.allclose(cam.raw, grad_cam(norm[0].detach(), g[0]), rtol=1e-4, atol=1e-5)


# methods that run the network themselves

@has_library
@pytest.mark.parametrize("method", ["ablationcam", "scorecam"])
def test_methods_with_passes_of_their_own_leave_the_network_alone(method):
    for model, layer in ((tiny(), "encoder.1"), (tiny(), "decoder.0"), (answer(), "body.2")):
        module, before, names = find_layer(model, layer)[1], model.state_dict(), [n for n, _ in model.named_modules()]
        with contextlib.redirect_stderr(io.StringIO()) as said: cam = seg_cam(model, picture(), layer, spot(), method)
        assert find_layer(model, layer)[1] is module and [n for n, _ in model.named_modules()] == names and not said.getvalue()
        assert np.isfinite(cam.map).all() and cam.raw_max < 1e6 and not module._forward_hooks
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@has_library
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scorecam_of_a_network_in_half_precision(dtype):
    model, layer, region = tiny(), "decoder.0", spot()
    wanted, cam = seg_cam(model, picture(), layer, region, "scorecam").map, seg_cam(copy.deepcopy(model).to(dtype), picture(), layer, region, "scorecam").map
    assert np.abs(cam - wanted).mean() < 0.1


@has_library
def test_ablation_is_the_fall_of_the_target_also_where_it_is_negative():
    model, region = answer(), spot()
    x, where = as_images(model, picture())[1], torch.from_numpy(spot())
    for shift in (5.0, -5.0):
        with torch.no_grad(): model.head.bias.fill_(shift)
        with untouched(model), torch.no_grad(), watch(model, "body") as seen: whole = model(x)["out"][0, 0][where].mean()
        a, falls = seen["body"], []
        for k in range(a.shape[1]):
            hook = model.body.register_forward_hook(lambda m, i, o: o.index_fill(1, torch.tensor([k]), 0))
            with torch.no_grad(): falls.append((whole - model(x)["out"][0, 0][where].mean()).item())
            hook.remove()
        wanted = (torch.tensor(falls).view(-1, 1, 1) * a[0]).sum(0).relu() / whole.abs()
        assert np.allclose(seg_cam(model, picture(), "body", region, "ablationcam").raw, wanted, rtol=1e-3, atol=1e-4)


@has_library
def test_a_layer_is_put_back_after_an_error(monkeypatch):
    import pytorch_grad_cam
    model = tiny()
    module = model.encoder[1]
    def fail(self, *args):
        self.model.model.encoder[1] = nn.Identity()
        raise RuntimeError("in between")
    monkeypatch.setattr(pytorch_grad_cam.AblationCAM, "get_cam_image", fail)
    with pytest.raises(RuntimeError, match="in between"): seg_cam(model.train(), picture(), "encoder.1", spot(), "ablationcam")
    assert model.encoder[1] is module and model.training


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    assert seg_cam(tiny(), picture(), region=spot()).map.shape == (48, 64)
    with pytest.raises(ImportError, match=r'pip install "cmunext_nb\[explain\]"'): seg_cam(tiny(), picture(), region=spot(), method="layercam")


def test_unknown_method_lists_all():
    with pytest.raises(ValueError, match="layercam.*scorecam"): seg_cam(tiny(), picture(), method="grad-cam")


@has_library
def test_principal_components_of_a_fine_layer_are_refused():
    with pytest.raises(ValueError, match="64 x 64"): seg_cam(tiny(), picture(96, 96), "stem", spot(96, 96), "eigencam")


@has_library
def test_components_have_the_side_of_the_region_s_gradient():
    "eigencam knows nothing else about the region; the sign that the library happens to give decides nothing."
    model, maps = tiny(), []
    for sign in (1, -1):
        with torch.no_grad(): model.head.weight *= sign
        maps.append({m: seg_cam(model, picture(), "encoder.1", spot(), m).raw for m in ("eigencam", "eigengradcam")})
    assert all((np.minimum(*(v[m] for v in maps)) < 1e-6).all() and min(v[m].max() for v in maps) > 0 for m in maps[0])


# state

def test_nothing_is_left_behind():
    model = tiny().train()
    model.head.bias.requires_grad_(False)
    marks = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    for n, p in model.named_parameters(): p.grad = marks[n]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    def check():
        assert all(m.training for m in model.modules()) and not any(m._forward_hooks for m in model.modules())
        assert all(p.grad is marks[n] for n, p in model.named_parameters()) and not model.head.bias.requires_grad and model.stem.conv.weight.requires_grad
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    cam = seg_cam(model, picture(), region=spot())
    check()
    for wrong in (dict(region=(500, 3)), dict(layer="nowhere"), dict(channel=9), dict(region=np.zeros((48, 64), bool)), dict(region="true")):
        with pytest.raises(ValueError): seg_cam(model, picture(), **{"region": spot(), **wrong})
        check()
    deletion_curve(model, picture(), cam, shares=(0, 0.5))
    control_cam(model, picture(), cam)
    check()


def test_no_grad_outside_does_not_matter():
    with torch.no_grad(): assert seg_cam(tiny(), picture(), region=spot()).raw_max > 0


# networks of all kinds

@pytest.mark.parametrize("channels, classes", [(1, 1), (3, 1), (1, 4), (5, 2)])
def test_channels_and_classes(channels, classes):
    model = tiny(in_channels=channels, num_classes=classes)
    cams = [seg_cam(model, picture(), region=spot(), channel=c) for c in range(classes)]
    assert all(c.map.shape == (48, 64) and c.map.dtype == np.float32 and c.channel == i for i, c in enumerate(cams))
    assert classes == 1 or not np.allclose(cams[0].raw, cams[1].raw)
    for wrong in (classes, -1):
        with pytest.raises(ValueError, match=f"0 to {classes - 1}"): seg_cam(model, picture(), region=spot(), channel=wrong)


def test_a_double_precision_network():
    cam = seg_cam(tiny().double(), picture(), region=spot())
    assert cam.map.dtype == np.float32 and np.allclose(cam.map, seg_cam(tiny(), picture(), region=spot()).map, atol=1e-4)


def test_coarse_logits_are_brought_to_the_image_s_size():
    model = nn.Sequential(nn.Conv2d(3, 6, 5, stride=4, padding=2), nn.ReLU(), nn.Conv2d(6, 1, 1))
    assert seg_cam(model, picture(), "0", spot()).map.shape == (48, 64)


@pytest.mark.parametrize("layer, word", [("pool", "no map"), ("unused", "no part"), ("aux", "no part"), ("nowhere", "Unknown layer"), (nn.ReLU(), "no part of this")])
def test_layers_that_cannot_be_explained(layer, word):
    with pytest.raises(ValueError, match=word): seg_cam(answer(), picture(), layer, spot())


def test_answers_that_are_no_logits():
    with pytest.raises(ValueError, match="expected logits"): seg_cam(nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), picture(), "0", spot())
    broken = tiny()
    nn.init.constant_(broken.head.weight, float("nan"))
    with pytest.raises(ValueError, match="NaN"): seg_cam(broken, picture(), region=spot())


# images and sizes

def test_all_kinds_of_images(tmp_path):
    model, grey = tiny(), picture()
    Image.fromarray(grey).save(tmp_path / "scan.png")
    maps = [seg_cam(model, image, region=spot()).map for image in (grey, torch.tensor(grey)[None], np.stack([grey] * 3, -1), Image.fromarray(grey), tmp_path / "scan.png", [grey])]
    assert all(np.array_equal(m, maps[0]) for m in maps)
    with pytest.raises(ValueError, match="one image"): seg_cam(model, [grey, grey])


@pytest.mark.parametrize("shape, size", [((33, 47), None), ((20, 90), 48), ((70, 50), (32, 64)), ((300, 20), 32)])
def test_maps_have_the_image_s_size(shape, size):
    cam = seg_cam(tiny(), picture(*shape), region=(shape[0] - 1, shape[1] - 1), size=size)
    assert cam.map.shape == cam.region.shape == cam.probability.shape == shape
    curve = deletion_curve(tiny(), picture(*shape), cam, shares=(0, 0.3, 1))
    assert abs(curve.probability[0] - cam.mean_probability) < 1e-4


class Coarse(nn.Module):
    "One logit for each 4 x 4 pixels: what comes first, the sigmoid or the enlarging, is seen in the mask."
    trained_size = (48, 32)
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.body, self.head = nn.Conv2d(3, 4, 5, stride=4, padding=2), nn.Conv2d(4, 1, 1)

    def forward(self, x): return 6 * self.head(self.body(x).relu())


@pytest.mark.parametrize("make", [Coarse, lambda: create_model("cmunext_s", pretrained="phantom")])
@pytest.mark.parametrize("size", ["trained", np.int64(64), (96, 64), None])
def test_region_and_probability_are_those_of_predict(make, size):
    model, image = make().eval(), np.asarray(make_phantom(1, size=160, seed=4)[0][0, 0, :, 30:121])
    drawn = predict(model, image, 0.4, size=size)
    cam = seg_cam(model, image, threshold=0.4, size=size)
    assert drawn.mask.any() and np.array_equal(cam.region, drawn.mask) and np.array_equal(cam.probability, drawn.probability)
    assert cam.size in (None, (256, 256), (48, 32), (64, 64), (96, 64)) and np.array_equal(control_cam(model, image, cam).region, cam.region)
    assert abs(deletion_curve(model, image, cam, shares=(0, 0.5)).probability[0] - drawn.probability[drawn.mask].mean()) < 1e-6


@pytest.mark.parametrize("size, word", [(0, "16 x 16"), ("train", "expected 'trained'"), (True, "expected 'trained'"), ((64,), "expected 'trained'"), (64.0, "expected 'trained'")])
def test_sizes_that_are_none(size, word):
    with pytest.raises(ValueError, match=word): seg_cam(tiny(), picture(), region=spot(), size=size)


@pytest.mark.parametrize("shares", [(0, 10, 50), (0, 0.5, 0.5), (0.5, 0.1), (0.1,), (), 0.3, (-0.1, 0.5), (0, float("nan"))])
def test_shares_that_are_none(shares):
    model = tiny()
    cam = seg_cam(model, picture(), region=spot())
    with pytest.raises(ValueError, match="from 0 to 1, rising"): deletion_curve(model, picture(), cam, shares=shares)


# regions

def test_regions_by_name(tmp_path):
    p = np.zeros((6, 8), np.float32)
    p[:3], truth = 0.9, np.zeros((6, 8), np.uint8)
    truth[2:5] = 255
    count = {r: int(find_region(r, p, truth)[0].sum()) for r in ("predicted", "true", "fp", "fn")}
    assert count == dict(predicted=24, true=24, fp=16, fn=16)
    Image.fromarray(truth).save(tmp_path / "own.png")
    for own in (truth, truth > 0, torch.from_numpy(truth), tmp_path / "own.png", Image.fromarray(truth), np.ones((6, 8), bool)):
        assert find_region(own, p)[1] == "a mask of your own"
    assert find_region([np.int64(2), 3], p)[0].sum() == 1 and find_region((2, 3), p)[0][2, 3]
    assert find_region("predicted", p, threshold=0)[0].sum() == 24


@pytest.mark.parametrize("region, truth, word", [("predicted", None, "predicted mask has no pixel.*highest is 0.4"), ("true", 0, "true mask has no pixel"), ("fp", 0, "no false positives"),
    ("fn", 0, "no false negatives"), (np.zeros((6, 8)), None, "your mask has no pixel"), ("fp", None, "needs the true mask"), ("truth", None, "Did you mean 'true'"),
    ((6, 0), None, "rows 0 to 5"), ((0, -1), None, "columns 0 to 7"), (np.ones((3, 3), bool), None, "own size"), ("true", np.ones((3, 3)), "true mask has shape")])
def test_regions_that_are_empty_or_wrong(region, truth, word):
    p = np.full((6, 8), 0.4, np.float32)
    with pytest.raises(ValueError, match=word): find_region(region, p, np.zeros((6, 8)) if isinstance(truth, int) else truth)


# numbers

def test_stretch():
    assert not stretch(torch.zeros(3, 4), (9, 12)).any() and not stretch(torch.full((3, 4), 0.1), (31, 17)).any()
    m = stretch(torch.tensor([[0.0, 1e-9], [0.0, 0.0]]), (8, 8))
    assert m.min() == 0 and m.max() == 1


def test_rank_correlation_equals_scipy():
    from scipy.stats import spearmanr
    rng = np.random.default_rng(0)
    for a, b in ((rng.random((9, 9)), rng.random((9, 9))), (rng.integers(0, 3, (9, 9)), rng.integers(0, 3, (9, 9))), (np.maximum(rng.normal(size=(9, 9)), 0), rng.random((9, 9)))):
        assert np.isclose(rank_correlation(a, b), spearmanr(a.ravel(), b.ravel())[0])


def test_the_raw_maximum_scales_with_the_logits_and_the_map_does_not():
    model = tiny()
    whole = seg_cam(model, picture(), "encoder.1", spot())
    with torch.no_grad(): model.head.weight *= 1e-3
    part = seg_cam(model, picture(), "encoder.1", spot())
    assert np.isclose(part.raw_max, 1e-3 * whole.raw_max, rtol=1e-3) and np.allclose(part.map, whole.map, atol=1e-4)


def test_control_asks_the_same_question():
    model = tiny()
    cam = seg_cam(model, picture(), "encoder.1", (20, 30), channel=0, size=32)
    twin, again, other = (control_cam(model, picture(), cam, seed) for seed in (0, 0, 1))
    assert np.array_equal(twin.map, again.map) and not np.array_equal(twin.map, other.map)
    assert (twin.layer, twin.method, twin.size, twin.channel) == (cam.layer, cam.method, (32, 32), 0) and np.array_equal(twin.region, cam.region)


# deletion

def test_the_brightest_go_first_and_ties_are_broken_by_chance():
    image, order = torch.full((1, 1, 20, 20), 200, dtype=torch.uint8), np.zeros((20, 20), np.float32)
    image[..., :2, :] = 0
    order[10, 5:10] = 1
    gone = _deletions(image, order, (0, 5 / 400, 0.5), "mean")
    assert torch.equal(gone[0], image[0]) and (gone[1] != image[0]).nonzero()[:, 1:].tolist() == [[10, c] for c in range(5, 10)]
    rows = (gone[2] != image[0])[0].float().mean(1)
    assert 0.2 < rows[2:10].mean() < 0.8 and rows[11:].mean() > 0.2, "the flat part was deleted from the top"


@pytest.mark.parametrize("fill", FILLS)
def test_fills(fill):
    image = torch.tensor(picture())[None, None].expand(1, 3, 48, 64)
    out = _deletions(image, np.random.default_rng(0).random((48, 64)), (0, 0.3, 1), fill)
    assert out.dtype == torch.uint8 and out.shape == (3, 3, 48, 64) and torch.equal(out[0], image[0])
    assert 0.6 < (out[1] == image[0]).float().mean() < 0.9


def test_surroundings_close_a_hole_without_a_trace():
    image = torch.full((1, 1, 64, 64), 120, dtype=torch.uint8)
    image[..., 20:40, 20:40] = 10
    order = np.zeros((64, 64))
    order[20:40, 20:40] = 1
    assert (_deletions(image, order, (400 / 4096,), "surroundings") == 120).all()


def test_curves():
    model = tiny()
    cam = seg_cam(model, picture(), region=spot())
    one, two = (deletion_curve(model, picture(), cam, "random", seed=s, batch_size=b) for s, b in ((0, 2), (0, 8)))
    assert np.allclose(one.probability, two.probability, atol=1e-5) and one.order == "random" and len(one.share) == 9 and 0 <= one.area <= 1
    assert deletion_curve(model, picture(), cam, cam).probability.tolist() == deletion_curve(model, picture(), cam).probability.tolist()
    assert deletion_curve(model, picture(), cam, np.zeros((48, 64)), shares=(0, 1)).order == "another map"
    for wrong, word in ((dict(order="left"), "random"), (dict(order=np.zeros((3, 3))), "own size"), (dict(fill="white"), "surroundings")):
        with pytest.raises(ValueError, match=word): deletion_curve(model, picture(), cam, **wrong)


# pictures

@pytest.mark.parametrize("region", [spot(), (5, 6)])
def test_the_figure_belongs_to_nobody(region):
    plt = pytest.importorskip("matplotlib.pyplot")
    cam = seg_cam(tiny(), picture(), region=region)
    assert len(cam.figure(control_cam(tiny(), picture(), cam)).axes) == 5 and len(cam.figure().axes) == 3
    assert cam._repr_png_()[:4] == b"\x89PNG" and not plt.get_fignums() and "raw maximum" in repr(cam)


# a mask for each class

@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_of_a_mask_for_each_class_the_explained_one_is_taken(kind):
    stack = np.zeros((3, 48, 64), np.uint8)
    stack[2] = spot()
    stack[1, 5:9, 5:9] = 255
    for k in (1, 2):
        for options in (dict(region="true", mask=kind(stack)), dict(region=kind(stack)), dict(region="true", mask=list(kind(stack))), dict(region=list(kind(stack)))):
            assert np.array_equal(seg_cam(answer(3), picture(), "body.0", channel=k, **options).region, stack[k] > 0)
    with pytest.raises(ValueError, match="true mask has no pixel"): seg_cam(answer(3), picture(), "body.0", region="true", mask=kind(stack))


@pytest.mark.parametrize("shape", [(2, 48, 64), (4, 48, 64), (48, 64, 3)])
def test_other_stacks_are_refused_where_there_are_several_classes(shape):
    for options in (dict(region="true", mask=np.ones(shape)), dict(region=np.ones(shape))):
        with pytest.raises(ValueError, match=r"\d\), and this network 3 classes: give a mask \(H, W\), or one for each class, \(3, H, W\)"): seg_cam(answer(3), picture(), "body.0", **options)


def test_single_masks_are_taken_as_before(tmp_path):
    Image.fromarray(spot()).convert("RGB").save(tmp_path / "m.png")
    for mask in (spot(), spot()[None], spot()[..., None], torch.from_numpy(spot())[None], tmp_path / "m.png", Image.open(tmp_path / "m.png")):
        assert np.array_equal(seg_cam(answer(3), picture(), "body.0", region="true", mask=mask, channel=1).region, spot())
    assert np.array_equal(seg_cam(tiny(), picture(), region=np.stack([spot()] * 3) * 255).region, spot())  # one class: grey in three channels


def test_inside_inference_mode():
    "Gradients are computed all the same; weights made inside of it know none, and that is said."
    model, image = tiny(), picture()
    wanted = seg_cam(model, image, region=spot()).map
    with torch.inference_mode():
        for given in (image, torch.from_numpy(image.copy())[None]): assert np.array_equal(seg_cam(model, given, region=spot()).map, wanted)
        assert torch.is_inference_mode_enabled()
        control_cam(model, image, seg_cam(model, image, region=spot()))
        inside = create_model("cmunext_s", **TINY)
        with pytest.raises(ValueError, match="made under torch.inference_mode"): seg_cam(inside, image, region=spot())
    with pytest.raises(ValueError, match="made under torch.inference_mode"): seg_cam(inside, image, region=spot())
