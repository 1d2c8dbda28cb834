"""Prediction: any image, any size, any callable; the network is left as it was. The everyday path is checked in nbs/16_predict.ipynb."""
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cmunext_nb.data import SegmentationData
from cmunext_nb.files import read_mask
from cmunext_nb.model import create_model
from cmunext_nb.predict import Prediction, _core, average_views, network_channels, predict, resize, turn, view_sizes, views
from cmunext_nb.train import evaluate
from cmunext_nb.weights import preprocess

TINY = dict(dims=(4, 8, 8), depths=(1, 1, 1), kernel_sizes=(3, 3, 5))


def tiny(seed=0, **overrides):
    "A network whose answer varies over the image: random weights, running statistics of random images, a head that decides."
    torch.manual_seed(seed)
    model = create_model("cmunext_s", **{**TINY, **overrides}).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms: m.momentum = 1.0
    x = nn.functional.interpolate(torch.randn(8, model.config["in_channels"], 8, 8), size=(48, 48), mode="bilinear")
    with torch.no_grad():
        out = model(x)
        model.head.weight *= 2 / out.std()
        model.head.bias.fill_(0)
        model.head.bias -= model(x).median()
    return model.eval()


def picture(h=40, w=56, seed=0, channels=0):
    "Smooth random grey values (H, W), or (H, W, channels)."
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, max(channels, 1)), dtype=np.uint8)
    pixels = np.stack([np.asarray(Image.fromarray(coarse[..., c]).resize((w, h), Image.Resampling.BILINEAR)) for c in range(coarse.shape[-1])], -1)
    return pixels if channels else pixels[..., 0]


def bright(x):
    "A `network` that calls bright pixels lesion, sharply: normalised grey 0 is the edge."
    return 50 * x.mean(1, keepdim=True)


def test_the_network_of_these_tests_says_something():
    p = predict(tiny(), picture(), size=None).probability
    assert p.std() > 0.1 and 0.1 < (p > 0.5).mean() < 0.9


# sizes

@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (15, 17), (16, 16), (33, 47), (301, 20), (512, 512)])
@pytest.mark.parametrize("tta", [False, True, "flips", "d4", "scales", "zoom"])
def test_the_result_has_the_image_s_size(shape, tta):
    r = predict(tiny(), picture(*shape), size=32, tta=tta)
    assert r.mask.shape == r.probability.shape == shape and r.image.shape == (1, *shape)
    assert r.mask.dtype == bool and r.probability.dtype == np.float32 and 0 <= r.probability.min() <= r.probability.max() <= 1
    assert (r.spread is None) == (tta is False) and (r.spread is None or r.spread.shape == shape)


@pytest.mark.parametrize("shape", [(16, 16), (17, 31), (45, 16), (64, 48)])
def test_native_size_is_the_network_s_own_answer(shape):
    model, image = tiny(), picture(*shape)
    with torch.no_grad(): expected = torch.sigmoid(model(preprocess(torch.tensor(image)[None, None].repeat(1, 3, 1, 1))))[0, 0]
    assert np.allclose(predict(model, image, size=None).probability, expected, atol=1e-4)


def test_size_may_be_a_pair():
    model, image = tiny(), picture(64, 48)
    assert np.allclose(predict(model, image, size=(64, 48)).probability, predict(model, image, size=None).probability, atol=1e-6)
    assert predict(model, image, size=[32, 80]).mask.shape == (64, 48)


@pytest.mark.parametrize("size", [64, 100, 256])
@pytest.mark.parametrize("axis", [0, 1])
def test_nothing_is_shifted(size, axis):
    "An edge at the middle of an image stays at the middle, on the way to the network and back."
    image = np.zeros((200, 200), np.uint8)
    image[:100] = 255
    mask = predict(bright, image.T if axis else image, size=size, preprocess="imagenet").mask
    rows = (mask.T if axis else mask).mean(1)
    assert (rows[:98] == 1).all() and (rows[102:] == 0).all() and abs(mask.mean() - 0.5) <= 0.01


def test_resize_agrees_with_the_reader_of_training_images():
    from cmunext_nb.files import resize_square
    image = picture(130, 170)
    assert np.abs(resize(torch.tensor(image)[None, None].float(), (64, 64))[0, 0].numpy() - resize_square(image, 64)).max() <= 1


def test_predict_counts_what_evaluate_counts():
    model = tiny()
    images = torch.stack([torch.tensor(picture(48, 48, seed=i))[None] for i in range(5)])
    masks = (images > 120).byte()
    scores = [r.score(m) for r, m in zip(predict(model, images, size=48), masks)]
    expected = evaluate(model, (images, masks))
    assert np.mean([s["iou"] for s in scores]) == pytest.approx(expected["iou"], abs=1e-3)
    assert np.mean([s["f1"] for s in scores]) == pytest.approx(expected["f1"], abs=1e-3)


# sources

def as_file(pixels, **options):
    f = io.BytesIO()
    Image.fromarray(pixels).save(f, options.pop("format", "PNG"), **options)
    f.seek(0)
    return f


GREY = picture()
KINDS = dict(
    array=GREY, one_channel=GREY[..., None], first_channel=GREY[None], three=np.stack([GREY] * 3, -1), four=np.stack([GREY] * 3 + [np.full_like(GREY, 255)], -1),
    deep=GREY.astype(np.uint16) * 257, floats=GREY / 255, float32=(GREY / 255).astype(np.float32), tensor=torch.tensor(GREY), tensor_chw=torch.tensor(GREY)[None],
    tensor_rgb=torch.tensor(GREY)[None].repeat(3, 1, 1), tensor_float=torch.tensor(GREY)[None] / 255, pil=Image.fromarray(GREY), pil_rgb=Image.fromarray(GREY).convert("RGB"),
    pil_rgba=Image.fromarray(GREY).convert("RGBA"), pil_palette=Image.fromarray(GREY).convert("P"), pil_deep=Image.fromarray(GREY.astype(np.uint16) * 257), file=as_file(GREY),
    needs_grad=(torch.tensor(GREY)[None] / 255).requires_grad_(), flipped_view=np.ascontiguousarray(GREY[:, ::-1])[:, ::-1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_every_kind_of_image_gives_the_same(kind, in_channels):
    model = tiny(in_channels=in_channels)
    r = predict(model, KINDS[kind], size=32)
    assert isinstance(r, Prediction) and np.allclose(r.probability, predict(model, GREY, size=32).probability, atol=1e-2)


def test_paths(tmp_path):
    path = tmp_path / "ä scan (1).png"
    path.write_bytes(as_file(GREY).read())
    a, b = predict(tiny(), path, size=32), predict(tiny(), str(path), size=32)
    assert a.source == b.source == str(path) and np.array_equal(a.probability, b.probability)
    assert path.name in repr(a) and str(tmp_path) not in repr(a)
    assert predict(tiny(), Image.open(path), size=32).source == str(path)


def test_colour_reaches_the_network():
    rgb = picture(channels=3)
    chw = torch.tensor(rgb.transpose(2, 0, 1).copy())
    with torch.no_grad(): expected = torch.sigmoid(tiny()(preprocess(chw[None])))[0, 0]
    for image in (rgb, chw, Image.fromarray(rgb), np.ascontiguousarray(rgb.transpose(2, 0, 1))):
        assert np.allclose(predict(tiny(), image, size=None).probability, expected, atol=1e-4)
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    one = tiny(in_channels=1)
    assert np.array_equal(predict(one, rgb, size=32).probability, predict(one, grey, size=32).probability)


def test_stacks_of_other_numbers_of_channels():
    model, stack = tiny(in_channels=5), torch.tensor(picture(channels=5)).permute(2, 0, 1)
    with torch.no_grad(): expected = torch.sigmoid(model(preprocess(stack[None].contiguous())))[0, 0]
    r = predict(model, stack, size=None)
    assert np.allclose(r.probability, expected, atol=1e-4) and r.image.shape == (5, 40, 56) and r.figure()
    assert predict(model, GREY, size=32).image.shape == (1, 40, 56)
    assert len(predict(model, stack[None].repeat(2, 1, 1, 1), size=32)) == 2


# many at once

def test_lists_keep_order_and_names(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(as_file(GREY).read())
    images = [path, picture(20, 30, 1), torch.tensor(picture(25, 25, 2))[None].repeat(2, 1, 1, 1), Image.fromarray(picture(90, 17, 3))]
    many = predict(tiny(), images, size=32)
    assert [r.mask.shape for r in many] == [(40, 56), (20, 30), (25, 25), (25, 25), (90, 17)]
    assert [r.source for r in many] == [str(path), "image 2 of 4", "image 1 of 2", "image 2 of 2", "image 4 of 4"]
    for r, one in zip(many, [path, images[1], images[2][0], images[2][1], images[3]]):
        assert np.allclose(r.probability, predict(tiny(), one, size=32).probability, atol=1e-5)


@pytest.mark.parametrize("size", [32, None])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batches_do_not_matter(size, batch_size):
    images, seen = [picture(*s, i) for i, s in enumerate([(32, 40)] * 3 + [(48, 32)] * 2 + [(32, 40)])], []
    model = tiny()
    def spy(x): seen.append(len(x)); return model(x)
    spy.preprocess, spy.config = model.preprocess, model.config
    for r, image in zip(predict(spy, images, size=size, batch_size=batch_size), images):
        assert np.allclose(r.probability, predict(model, image, size=size).probability, atol=1e-5)
    assert sum(seen) == 6 and max(seen) == min(batch_size, 6 if size else 3)


def test_data_sets_and_nothing():
    images = torch.stack([torch.tensor(picture(32, 32, i))[None] for i in range(3)])
    data = SegmentationData(images, torch.zeros_like(images), ["x", "y", "z"])
    assert [r.source for r in predict(tiny(), data, size=32)] == ["x", "y", "z"]
    assert predict(tiny(), []) == [] and isinstance(predict(tiny(), [images[0]], size=32), list)
    assert predict(tiny(), data[[]], size=32) == []
    with pytest.raises(TypeError, match="pair"): predict(tiny(), data[0])


# the network

def test_the_network_is_left_as_it_was():
    model = tiny().train()
    model.stem.norm.eval()
    model.head.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    predict(model, GREY, size=32, tta="d4")
    with pytest.raises(ValueError): predict(model, np.full((9, 9), np.nan))
    assert modes == [m.training for m in model.modules()] and not model.stem.norm.training and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.is_grad_enabled() and not model.head.weight.requires_grad and model.stem.conv.weight.requires_grad
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert model.stem.conv.weight.grad is not None


def test_an_error_inside_the_network_restores_its_mode():
    class Fails(nn.Module):
        def __init__(self): super().__init__(); self.conv = nn.Conv2d(3, 1, 1)
        def forward(self, x): raise RuntimeError("mine")
    model = Fails().train()
    with pytest.raises(RuntimeError, match="^mine$"): predict(model, GREY)
    assert model.training and model.conv.training and not torch.is_inference_mode_enabled()


def test_evaluation_mode_is_used():
    model = tiny()
    assert np.array_equal(predict(model.train(), GREY, size=32).probability, predict(model.eval(), GREY, size=32).probability)


def test_preprocessing_belongs_to_the_weights():
    model, results = tiny(), {}
    for how in ("imagenet", "unit", "upstream"):
        model.preprocess = how
        results[how] = predict(model, GREY, size=32).probability
        assert np.array_equal(results[how], predict(tiny(), GREY, size=32, preprocess=how).probability)
    assert len({r.tobytes() for r in results.values()}) == 3


def test_wrapped_networks():
    class Wrapper(nn.Module):
        def __init__(self, module): super().__init__(); self.module = module
        def forward(self, x): return self.module(x)
    model = tiny(in_channels=1)
    model.preprocess = "unit"
    assert network_channels(Wrapper(model)) == 1
    for wrapped in (nn.DataParallel(model), torch.compile(nn.DataParallel(model)), torch.optim.swa_utils.AveragedModel(model), Wrapper(model)):
        assert _core(wrapped).preprocess == "unit"
    own = Wrapper(tiny())
    own.preprocess = "upstream"
    assert _core(own) is own  # it says itself how its images are prepared
    assert np.array_equal(predict(Wrapper(model), GREY, size=32).probability, predict(model, GREY, size=32).probability)


def test_other_number_formats():
    model = tiny()
    expected = predict(model, GREY, size=32).probability
    assert np.allclose(predict(model.double(), GREY, size=32).probability, expected, atol=1e-4)
    assert predict(model, GREY, size=32).probability.dtype == np.float32


@pytest.mark.parametrize("kind", ["tensor", "array", "half"])
def test_any_callable(kind):
    give = dict(tensor=bright, array=lambda x: bright(x).numpy(), half=lambda x: bright(x).half())[kind]
    r = predict(give, GREY, size=None)
    assert np.array_equal(r.mask, preprocess(torch.tensor(GREY)[None, None].repeat(1, 3, 1, 1)).mean(1)[0].numpy() > 0)


def test_a_callable_may_give_a_coarser_map():
    r = predict(lambda x: nn.functional.avg_pool2d(bright(x), 4), GREY, size=64)
    assert r.mask.shape == GREY.shape and 0.1 < r.area < 0.9


def test_several_classes(tmp_path):
    model = tiny(num_classes=3)
    r = predict(model, GREY, size=32, tta=True)
    assert r.mask.shape == r.probability.shape == r.spread.shape == (3, 40, 56) and len(r.area) == 3 and "area [" in repr(r)
    paths = r.save(tmp_path / "m.png")
    assert [p.name for p in paths] == ["m_0.png", "m_1.png", "m_2.png"]
    for p, m in zip(paths, r.mask): assert np.array_equal(np.asarray(Image.open(p)) > 0, m)
    truth = r.mask.copy(); truth[2] = ~truth[2]
    assert r.score(truth)["iou"] == pytest.approx(2 / 3) and r.score(truth, classes=True)["iou"] == pytest.approx([1, 1, 0])
    assert len(r.figure().axes) >= 4 and r.figure(truth).axes


# views

@pytest.mark.parametrize("tta", [True, "flips", "d4"])
def test_the_average_has_the_symmetry(tta):
    model, x = tiny(), torch.tensor(picture(48, 48))[None]
    r = predict(model, x, size=48, tta=tta).probability
    for view in views(tta):
        turned = predict(model, turn(x, view), size=48, tta=tta).probability
        assert np.allclose(turned, turn(torch.tensor(r), view), atol=1e-5)
    assert not np.allclose(predict(model, x, size=48).probability, predict(model, x.flip(-1), size=48).probability[:, ::-1], atol=1e-3)


def test_views_are_a_group():
    x = torch.arange(9).view(3, 3)
    seen = {tuple(turn(x, v).flatten().tolist()): v for v in views("d4")}
    assert len(seen) == 8 and all(tuple(turn(turn(x, a), b).flatten().tolist()) in seen for a in views("d4") for b in views("d4"))
    y = torch.rand(2, 1, 4, 7)
    assert all(torch.equal(turn(turn(y, v), v, back=True), y) for v in views("d4"))


def test_spread_is_zero_where_nothing_changes():
    image = np.concatenate([GREY, GREY[:, ::-1]], 1)
    assert predict(tiny(), image, size=None, tta=True).spread.max() > 0
    assert predict(bright, image, size=None, tta="d4").spread.max() < 1e-6


@pytest.mark.parametrize("size, wanted", [((256, 256), [(256, 256), (224, 224), (192, 192)]), ((40, 330), [(40, 330), (32, 288), (32, 256)]), ((32, 32), [(32, 32)])])
def test_sizes_are_multiples_of_32_and_each_once(size, wanted):
    assert view_sizes("scales", size) == wanted and view_sizes("flips", size) == [size]


@pytest.mark.parametrize("size, wanted", [((128, 128), [(128, 128), (144, 144), (112, 112)]), ((256, 192), [(256, 192), (288, 224), (224, 160)]), ((64, 64), [(64, 64)])])
def test_zoomed_sizes_are_multiples_of_16_around_the_own(size, wanted): assert view_sizes("zoom", size) == wanted


@pytest.mark.parametrize("tta, sizes", [("scales", [(128, 160), (128, 128), (96, 128)]), ("zoom", [(128, 160), (144, 176), (112, 144)])])
def test_scales_are_the_mean_over_sizes_and_the_mirror(tta, sizes):
    model, x = tiny().eval(), torch.randn(2, 3, 128, 160)
    with torch.no_grad():
        assert view_sizes(tta, (128, 160)) == sizes
        small = [resize(x, s) for s in sizes]
        by_hand = torch.stack([resize(y, (128, 160)).sigmoid() for v in small for y in (model(v), model(v.flip(-1)).flip(-1))])
        mean, spread = average_views(model, x, tta)
    torch.testing.assert_close(mean, by_hand.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(spread, by_hand.std(0, unbiased=False), atol=1e-4, rtol=0)


def test_mean_and_spread():
    steps = iter([0.2, 0.8])
    mean, spread = average_views(lambda x: torch.logit(torch.full((1, 1, 4, 4), next(steps))), torch.zeros(1, 3, 4, 4), tta=True)
    assert torch.allclose(mean, torch.tensor(0.5)) and torch.allclose(spread, torch.tensor(0.3))


# the result

def test_thresholds():
    model = tiny()
    r = predict(model, GREY, size=32)
    middle = float(np.median(r.probability))
    assert np.array_equal(r.at(middle).mask, predict(model, GREY, size=32, threshold=middle).mask) and r.threshold == 0.5
    assert r.at(0).area == 1 and r.at(1).area == 0 and r.at(middle).area == pytest.approx(0.5, abs=0.01)
    for bad in (-0.1, 1.1, 50, float("nan")):
        with pytest.raises(ValueError, match="threshold"): r.at(bad)
        with pytest.raises(ValueError, match="threshold"): predict(model, GREY, threshold=bad)


def test_saved_masks_come_back(tmp_path):
    r = predict(bright, GREY, size=None)
    path = r.save(tmp_path / "new folder" / "mask.PNG")
    assert np.array_equal(read_mask(path) > 0, r.mask) and Image.open(path).format == "PNG" and r.score(path)["iou"] == 1
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError, match="mask.png"): r.save(tmp_path / "mask.jpg")
    assert not (tmp_path / "mask.jpg").exists()


def test_scores_by_hand():
    truth, probability = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.float32)
    truth[:2], probability[1:3] = 1, 0.9
    s = Prediction(np.zeros((1, 4, 4), np.uint8), probability).score(truth)
    assert s == pytest.approx(dict(iou=1 / 3, f1=0.5, precision=0.5, recall=0.5))
    empty = Prediction(np.zeros((1, 4, 4), np.uint8), np.zeros((4, 4), np.float32))
    assert empty.score(np.zeros((4, 4), np.uint8))["iou"] == 1 and empty.score(truth)["iou"] == 0
    with pytest.raises(ValueError, match=r"\(5, 4\).*own size"): empty.score(np.zeros((5, 4), np.uint8))


def test_pictures_leave_no_trace():
    import matplotlib
    import matplotlib.pyplot as plt
    before, open_before = dict(matplotlib.rcParams), plt.get_fignums()
    r = predict(tiny(), picture(60, 30, channels=3), size=32, tta=True)
    png = r._repr_png_()
    assert Image.open(io.BytesIO(png)).size[0] > 300 and len(r.figure(r.mask).axes) >= 4
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == open_before
    assert Prediction(r.image, np.zeros((60, 30), np.float32)).figure() and Prediction(r.image, np.ones((60, 30), np.float32)).figure()


def test_results_are_ordinary_arrays():
    r = predict(tiny(), GREY, size=32)
    r.probability[0, 0] = 0.25
    assert torch.from_numpy(r.mask).sum() == r.mask.sum() and torch.from_numpy(r.image).shape == (1, 40, 56)
    source = GREY.copy()
    predict(tiny(), source, size=32).image[:] = 0
    assert np.array_equal(source, GREY)


# what is refused

@pytest.mark.parametrize("arguments, words", [
    (dict(image=None), "NoneType.*path"), (dict(image=7), "int.*path"), (dict(image=[GREY, 3.5]), "image 2 of 2.*float"), (dict(image=(GREY, GREY)), "tuple.*list"),
    (dict(image=np.zeros((0, 5))), "no pixels"), (dict(image=np.zeros((5, 6, 2))), "shape.*channels"), (dict(image=-np.ones((4, 4))), "negative"),
    (dict(image=np.full((4, 4), 1e6)), "0..1"), (dict(image=[GREY, np.full((4, 4), np.inf)]), "image 2 of 2.*NaN or infinite"), (dict(image=np.zeros((2, 3, 4, 5, 6))), "shape"),
    (dict(image=GREY, size=8), "8 x 8.*16"), (dict(image=GREY[:9, :9], size=None), "9 x 9.*enlarged"), (dict(image=GREY, size=0.5), "size=0.5"),
    (dict(image=GREY, size=(1, 2, 3)), "height, width"), (dict(image=GREY, size="ab"), "size='ab'"), (dict(image=GREY, size=True), "size"), (dict(image=GREY, batch_size=0), "batch_size"),
    (dict(image=GREY, tta="mirrors"), "tta='mirrors'.*'mirror'"), (dict(image=GREY, preprocess="imagnet"), "imagnet.*imagenet"), (dict(image=GREY, model="net.pt"), "load_weights"),
    (dict(image=GREY, model=lambda x: [x]), "list.*logits"), (dict(image=GREY, model=lambda x: x.sum()), "shape.*logits"), (dict(image=GREY, model=lambda x: x[:0]), "shape"),
    (dict(image=GREY, model=lambda x: x * float("nan")), "NaN.*weights")])
def test_refused(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words): predict(**{**dict(model=tiny(), size=32), **arguments})


def test_a_pil_image_that_breaks_while_it_is_decoded(tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(as_file(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).read()[:2000])
    with pytest.raises((ValueError, OSError), match="cut.png"): predict(tiny(), Image.open(path))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_and_back():
    model = tiny()
    here, there = predict(model, GREY, size=32), predict(model, GREY, size=32, device="cuda")
    assert next(model.parameters()).device.type == "cpu" and np.allclose(here.probability, there.probability, atol=1e-3)


# the size of the training

def test_a_network_knows_the_size_of_its_training(tmp_path):
    "`fit` writes it on the network, files keep it, `predict` and engines use it; where nobody did, it is 256."
    from cmunext_nb.deploy import deploy, export_onnx, fold
    from cmunext_nb.train import fit
    from cmunext_nb.weights import load_weights, save_weights
    model, seen = tiny(), []
    model.register_forward_hook(lambda m, inputs, out: seen.append(tuple(inputs[0].shape[-2:])))
    predict(model, picture())
    assert seen == [(256, 256)]
    images = torch.randint(0, 256, (4, 3, 24, 32), dtype=torch.uint8)
    fit(model, (images, (images[:, :1] > 128).byte()), recipe="fast", epochs=1, sizes=None, batch_size=4, progress=False, device="cpu")
    assert model.trained_size == (24, 32)
    seen.clear()
    expected = predict(model, picture())
    assert seen == [(24, 32)] and np.array_equal(expected.probability, predict(model, picture(), size=(24, 32)).probability)
    again = load_weights(save_weights(model, tmp_path / "own.safetensors"))
    assert again.trained_size == (24, 32) and np.array_equal(predict(again, picture()).probability, expected.probability)
    wrapped = nn.DataParallel(again)
    assert np.array_equal(predict(wrapped, picture()).probability, expected.probability)
    engines = [fold(again), deploy(again, "torch")]
    if all(import_is_there(p) for p in ("onnx", "onnxscript", "onnxruntime")): engines.append(deploy(export_onnx(again, tmp_path / "own.onnx")))
    for engine in engines:
        assert engine.trained_size == (24, 32)
        np.testing.assert_allclose(predict(engine, picture()).probability, expected.probability, atol=1e-4)
    load_weights(save_weights(tiny(), tmp_path / "untrained.safetensors"), again)
    assert again.trained_size is None  # what the old weights were trained on says nothing about the new ones


def import_is_there(name):
    from importlib.util import find_spec
    return find_spec(name) is not None


@pytest.mark.parametrize("size", ["Trained", "256", ""])
def test_a_size_in_words_is_refused(size):
    with pytest.raises(ValueError, match="'trained', a side in pixels"): predict(tiny(), picture(), size=size)


def test_training_leaves_a_networks_own_image_size_alone():
    "torchvision's ViT and others check their input against an attribute `image_size` of their own."
    from cmunext_nb.train import fit
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.image_size, self.conv = 32, nn.Conv2d(3, 1, 3, padding=1)
        def forward(self, x):
            assert x.shape[-1] == self.image_size
            return self.conv(x)
    model, images = Own(), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    fit(model, (images, (images[:, :1] > 128).byte()), recipe="fast", epochs=1, sizes=None, augment="none", batch_size=2, progress=False, device="cpu")
    assert model.image_size == 32 and model.trained_size == (32, 32) and predict(model, picture()).mask.shape == (40, 56)


def test_upstreams_weights_say_no_size(tmp_path):
    "What a network was trained on before says nothing about weights of the authors that are loaded into it."
    from cmunext_nb.weights import load_upstream, upstream_name
    model = create_model("cmunext_s")
    model.trained_size = (64, 64)
    torch.save({upstream_name(k): v for k, v in model.state_dict().items()}, tmp_path / "upstream.pth")
    assert load_upstream(model, tmp_path / "upstream.pth").trained_size is None and model.preprocess == "upstream"


# How sure a mask is

def _said(p, **more): return Prediction(np.zeros((1, *np.shape(p)[-2:]), np.uint8), np.asarray(p, np.float32), **more)


def test_stability_by_hand():
    p = np.repeat([0.9, 0.6, 0.4, 0.1], 4).reshape(4, 4)
    assert _said(p).stability == pytest.approx(1 / 3)  # above 0.73: one row; above 0.27: three
    assert _said(p, threshold=0.9).stability == pytest.approx(0)  # 0.96 and 0.77
    assert _said(0.5 * np.ones((4, 4))).stability == 0 and _said(0 * p).stability == _said(0 * p + 1).stability == 1
    assert _said([p, 0 * p]).stability == pytest.approx([1 / 3, 1])


@pytest.mark.parametrize("threshold", [0, 1e-12, 0.3, 1 - 1e-12, 1])
def test_stability_at_any_threshold(threshold):
    value = _said(np.linspace(0, 1, 16).reshape(4, 4), threshold=threshold).stability
    assert 0 <= value <= 1


def test_stability_shrinks_nothing_that_is_sure():
    p = np.where(np.arange(16).reshape(4, 4) < 6, 0.99, 0.01)
    assert _said(p).stability == 1 and _said(0.5 + 0.3 * (p - 0.5)).stability == 0  # the same mask, said with less


# several classes, and the picture

def guess(shape, classes=1, seed=0, **more):
    "A prediction of soft blobs that no network made."
    coarse = torch.from_numpy(np.random.default_rng(seed).random((classes, 1, 6, 6), dtype=np.float32))
    p = nn.functional.interpolate(coarse, shape, mode="bilinear")[:, 0].numpy()
    return Prediction(np.zeros((1, *shape), np.uint8), p if classes > 1 else p[0], **more)


def test_the_truth_of_several_classes(tmp_path):
    r = guess((40, 56), 3)
    paths = r.save(tmp_path / "m.png")
    for truth in (paths, tuple(paths), list(r.mask), r.mask, torch.from_numpy(r.mask), torch.from_numpy(r.mask)[:, None], [Image.open(p) for p in paths]):
        assert r.score(truth)["iou"] == 1 and len(r.score(truth, classes=True)["iou"]) == 3
    for wrong, said in ((str(paths[0]), "one str"), (paths[0], r"one \w*Path"), (Image.open(paths[0]), "one PngImageFile"), (r.mask[0], r"\(40, 56\)"), (torch.zeros(40, 56), "map == k"),
                        (paths[:2], r"2\.$"), (r.mask[:2], r"\(2, 40, 56\)"), (r.mask[None], r"\(1, 3, 40, 56\)"), (None, "one NoneType")):
        for call in (r.score, r.figure)[:1 if wrong is None else 2]:
            with pytest.raises(ValueError, match=f"3 classes: give a list of 3 masks, or an array .3, H, W., not.*{said}"): call(wrong)
    with pytest.raises(ValueError, match=r"shape \(9, 9\), the prediction \(40, 56\)"): r.score([*r.mask[:2], np.zeros((9, 9))])


def test_a_class_map_as_the_error_says():
    r = guess((40, 56), 3)
    map = np.random.default_rng(1).integers(0, 3, (40, 56))
    assert r.score([(map == k) for k in range(3)]) == r.score(np.stack([map == 0, map == 1, map == 2]))


def test_the_truth_of_an_image_that_exif_turned(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(picture()).save(tmp_path / "turned.jpg", exif=exif)
    r = predict(tiny(), tmp_path / "turned.jpg", size=32)
    assert r.mask.shape == (56, 40) and np.array_equal(predict(tiny(), Image.open(tmp_path / "turned.jpg"), size=32).mask, r.mask)
    with pytest.raises(ValueError, match="stored as 56 x 40 pixels and turned by its EXIF"): r.score(np.zeros((40, 56)))
    with pytest.raises(ValueError, match="own size.$"): predict(tiny(), picture(), size=32).score(np.zeros((56, 40)))


@pytest.mark.parametrize("shape", [(64, 64), (300, 90), (90, 300), (400, 20), (150, 100)])
@pytest.mark.parametrize("classes", [1, 2, 3, 5])
@pytest.mark.parametrize("threshold", [0.5, 0])  # with 0 the mask covers 100.0%
def test_titles_neither_meet_nor_leave_the_picture(shape, classes, threshold):
    r = guess(shape, classes, threshold=threshold)
    r.spread = r.probability / 2
    figure = r.figure()
    figure.draw_without_rendering()
    boxes = [ax._left_title.get_window_extent() for ax in figure.axes if ax.get_title(loc="left")]
    assert len(boxes) == (3 if classes == 1 else classes + 1)
    assert all(figure.bbox.x0 <= b.x0 and b.x1 <= figure.bbox.x1 and b.y1 <= figure.bbox.y1 for b in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
