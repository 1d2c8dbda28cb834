"""Receptive fields: the travelling numbers against the support of gradients, other people's networks, and bad input.
The oracles and the everyday path are checked in nbs/20_receptive_field.ipynb."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cmunext_nb.layers import as_logits, randomized, watch
from cmunext_nb.model import create_model
from cmunext_nb.receptive_field import (area_ratios, effective_receptive_field, radial_decay, receptive_field, receptive_fields, run_to)

TINY = dict(dims=(4, 4, 4, 4, 4), depths=(1, 1, 1, 1, 1), kernel_sizes=(3, 3, 7, 7, 9))
LINEAR = (nn.ReLU, nn.GELU, nn.BatchNorm2d, nn.Dropout, nn.Dropout2d, nn.Hardswish, nn.SiLU)


def positive(model):
    "The other exact way: a copy with positive weights, without norms and activations, with mean for maximum, in double precision."
    model = copy.deepcopy(model).double().eval()
    for name, module in list(model.named_modules()):
        parent = model.get_submodule(name.rpartition(".")[0]) if name else None
        if isinstance(module, LINEAR): setattr(parent, name.rpartition(".")[2], nn.Identity())
        if isinstance(module, nn.MaxPool2d):
            pool = nn.AvgPool2d(module.kernel_size, module.stride, module.padding, ceil_mode=module.ceil_mode)
            setattr(parent, name.rpartition(".")[2], pool)
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None: nn.init.zeros_(module.bias)
    return model


def support(model, layer, size, pixel, channels=3):
    "The box (top, left, bottom, right) of the gradient's non-zero pixels."
    x = torch.ones(1, channels, *size, dtype=torch.float64, requires_grad=True)
    g, = torch.autograd.grad(run_to(positive(model), layer, x)[0, :, pixel[0], pixel[1]].sum(), x)
    rows, columns = (g[0].abs().sum((0, d)).nonzero().flatten() for d in (2, 1))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def agree(model, layer, size, pixels):
    fields = receptive_fields(model, layer, size)
    for pixel in pixels:
        pixel = tuple(p % s for p, s in zip(pixel, fields.map_size))
        assert fields.at(pixel).box == support(model, layer, size, pixel), (layer, size, pixel)


@pytest.mark.parametrize("layer", ["stem", "encoder.0", "encoder.2.blocks.0.mix_space", "encoder.4", "decoder.0", "decoder.1.up", "decoder.2.fusion.grouped", "decoder.3", None])
def test_our_network_layer_by_layer(layer):
    agree(create_model("cmunext_s", **TINY), layer, (256, 256), [(0, 0), (-1, -1), (5, 9), (100, 13)])


@pytest.mark.parametrize("size", [(61, 90), (16, 16), (97, 250), (33, 300)])
def test_odd_sizes(size):
    agree(create_model("cmunext_s", **TINY), None, size, [(0, 0), (-1, -1), (20, 31), (15, 255)])
    agree(create_model("cmunext_s", **TINY), "encoder.4", size, [(0, 0), (-1, -1), (1, 2)])


def test_unclipped_against_a_canvas_that_holds_everything():
    model, margin = create_model("cmunext_s", dims=(4, 4, 4), depths=(1, 1, 1), kernel_sizes=(3, 5, 9)), 64
    for pixel in ((0, 0), (32, 63), (31, 8), (3, 30)):
        far = support(model, None, (64 + 2 * margin,) * 2, tuple(p + margin for p in pixel))
        assert receptive_field(model, image_size=64, pixel=pixel).unclipped == tuple(e - margin for e in far)


class Mixed(nn.Module):
    "Functions in place of modules, odd strides, dilation, transposed convolution, padding by hand, slices, a product, two ways of pooling."
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 5, stride=3, padding=2), nn.Conv2d(6, 12, 3, padding=6, dilation=6, groups=3)
        self.c, self.up = nn.Conv2d(12, 8, (1, 5), padding="same", padding_mode="zeros"), nn.ConvTranspose2d(8, 4, 4, stride=3, padding=1, output_padding=1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = F.relu(self.a(x), inplace=True)
        y = F.max_pool2d(y, 3, 1, 1) + F.avg_pool2d(y, 5, 1, 2) * 0.5
        y = F.gelu(self.b(y)) - 1
        p, q = self.c(y).chunk(2, dim=1)
        y = torch.cat([p, q.roll(0, 1)], 1).transpose(2, 3).contiguous().transpose(2, 3)
        y = self.up(F.pad(y, (1, 1, 1, 1))[..., 1:-1, 1:-1])
        return {"out": self.head(F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False))}


class MixedLinear(Mixed):
    "The same without what the gradient could not see through."
    def forward(self, x):
        y = self.a(x)
        y = F.avg_pool2d(y, 3, 1, 1) + F.avg_pool2d(y, 5, 1, 2) * 0.5
        y = self.up(self.c(self.b(y)))
        return {"out": self.head(F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False))}


@pytest.mark.parametrize("layer", ["a", "b", "c", "up", None])
def test_functions_strides_dilation_and_transposed_convolution(layer):
    plain = MixedLinear()
    for size in ((96, 96), (90, 64)):
        fields = receptive_fields(Mixed(), layer, size)
        for pixel in ((0, 0), (7, 9), (11, 20)): assert fields.at(pixel).box == support(plain, layer, size, pixel), (size, pixel)


@pytest.mark.parametrize("options", [dict(scale_factor=2, mode="nearest"), dict(scale_factor=3, mode="bilinear"), dict(scale_factor=2, mode="bicubic"), dict(size=(100, 70), mode="bilinear"),
    dict(scale_factor=2, mode="bilinear", align_corners=True), dict(scale_factor=0.5, mode="bilinear", antialias=True), dict(scale_factor=0.5, mode="bilinear"), dict(scale_factor=(1.5, 2.0), mode="nearest-exact"),
    dict(size=(20, 24), mode="area")])
def test_every_interpolation(options):
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3, padding=1)
        def forward(self, x): return F.interpolate(self.conv(x), **options)
    fields = receptive_fields(Up(), None, (40, 48))
    for pixel in ((3, 4), (9, 11), (0, 0), (19, 23)):
        box, true = fields.at(pixel).box, support(Up(), None, (40, 48), pixel)
        assert box == true, (options, pixel)


def test_pooling_that_rounds_up_and_valid_convolutions():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), nn.Conv2d(2, 2, 5, dilation=2), nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(2, 1, 3))
    for size in ((61, 64), (80, 77)):
        fields = receptive_fields(net, None, size)
        for pixel in ((0, 0), (3, 5), (fields.map_size[0] - 1, fields.map_size[1] - 1)): assert fields.at(pixel).box == support(net, None, size, pixel, 1)
    assert set(receptive_fields(net, None, (80, 80)).heights.tolist()) == {3 + 2 + 8 * 2 + 2 + 2 * 4.0}


def test_patches_of_a_stride_that_is_no_power_of_two():
    net = nn.Sequential(nn.Conv2d(3, 4, 14, 14), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 9, padding=4), nn.Conv2d(4, 1, 9, padding=4))
    fields = receptive_fields(net, None, 224)
    assert fields.map_size == (16, 16) and set(fields.heights.tolist()) == {14.0 * 19} and fields.at((0, 0)).unclipped[0] == -9 * 14


def test_alternating_ways_are_a_union():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(1, 1, (1, 9), padding=(0, 4)), nn.Conv2d(1, 1, (5, 1), padding=(2, 0))
        def forward(self, x): return torch.cat([self.wide(x), self.narrow(x)], 1)
    field = receptive_field(Two(), image_size=32)
    assert (field.height, field.width) == (5, 9)


class Excited(nn.Module):
    "Squeeze-and-excitation in its usual form."
    def __init__(self, pool):
        super().__init__()
        self.conv, self.squeeze, self.head, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 1, 3, padding=1), pool
    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.head(x * torch.sigmoid(self.squeeze(self.pool(x))))


POOLS = [nn.AdaptiveAvgPool2d(1), lambda x: x.mean((2, 3), keepdim=True), lambda x: F.adaptive_max_pool2d(x, (1, 1)), lambda x: x.amax((-1, -2), keepdim=True)]

@pytest.mark.parametrize("pool", POOLS)
def test_pooling_of_the_whole_map_is_said_and_can_be_left_out(pool):
    model = Excited(pool)
    field = receptive_field(model, image_size=64)
    assert field.unbounded and field.whole_image and field.box == (0, 0, 64, 64) and field.share == 1 and "whole map" in str(field)
    near = receptive_field(model, image_size=64, local=True)
    assert (near.height, near.width, near.unbounded, near.through) == (5, 5, False, ())
    assert not receptive_field(model, "conv", 64).unbounded, "before the pooling nothing is global"


def test_pooling_in_disguise_and_group_norm():
    disguised = Excited(lambda x: F.avg_pool2d(x, x.shape[2:]))
    assert receptive_field(disguised, image_size=64).unbounded
    normed = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Conv2d(4, 1, 3, padding=1))
    assert receptive_field(normed, image_size=64).unbounded and "norm" in str(receptive_field(normed, image_size=64))
    assert receptive_field(normed, image_size=64, local=True).height == 5


def test_a_pyramid_of_poolings():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)
        def forward(self, x):
            x = self.conv(x)
            return torch.cat([x, *(F.interpolate(F.adaptive_avg_pool2d(x, n), x.shape[2:], mode="bilinear") for n in (1, 2, 3, 6))], 1)
    assert receptive_field(Pyramid(), image_size=64).unbounded and receptive_field(Pyramid(), image_size=64, local=True).height == 3


def test_attention_counts_as_seeing_everything():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix = nn.Conv2d(3, 8, 4, 4), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        def forward(self, x):
            y = self.embed(x)
            return self.mix(y.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, y.shape[2:])
    field = receptive_field(Attends(), image_size=64)
    assert field.unbounded and "attention" in field.through
    assert receptive_field(Attends(), "embed", 64).height == 4


def test_what_is_not_understood_claims_too_much_and_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)
        def forward(self, x): return torch.cumsum(self.conv(x), 2)
    field = receptive_field(Odd(), image_size=32)
    assert field.unbounded and "cumsum" in str(field)


def test_networks_of_fixed_size():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 9, padding=4)
        def forward(self, x):
            if x.shape[2:] != (32, 32): raise AssertionError(f"only 32 x 32, not {tuple(x.shape[2:])}")
            return self.conv(x)
    assert receptive_field(Fixed(), image_size=32).unclipped == (12, 12, 21, 21), "away from the border nothing is unknown"
    with pytest.raises(ValueError, match="touches the border"): receptive_field(Fixed(), image_size=32, pixel=(0, 16))
    assert receptive_fields(Fixed(), image_size=32).inside[0][0].tolist() == [0, 4]
    with pytest.raises(AssertionError, match="only 32"): receptive_field(Fixed(), image_size=48)


def test_other_libraries():
    vision = pytest.importorskip("torchvision")
    model = vision.models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)
    whole, near = receptive_field(model, image_size=224), receptive_field(model, image_size=224, local=True)
    assert whole.unbounded and whole.map_size == (224, 224) and not near.unbounded and near.height == near.width > 224
    first = receptive_field(model, "backbone.0", 224)
    assert first.map_size == (112, 112) and (first.height, first.width, first.unbounded) == (3, 3, False)
    erf = effective_receptive_field(model, torch.rand(1, 3, 96, 96), "classifier.0", pixel=(2, 2))
    assert erf.shape == (96, 96) and erf.sum() == pytest.approx(1, abs=1e-5)


def test_segmentation_models_pytorch():
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.Unet("resnet18", encoder_weights=None)
    field, shallow = receptive_field(model, image_size=256), receptive_field(model, "encoder.layer1", 256)
    assert not field.unbounded and field.height == field.width > 256 and shallow.height == 43  # 43 at layer1 of ResNet-18: 7, 11, and four times 3 x 3 at a step of 4
    squeezed = smp.FPN("efficientnet-b0", encoder_weights=None)
    assert receptive_field(squeezed, image_size=256).unbounded and not receptive_field(squeezed, image_size=256, local=True).unbounded


def test_resnet_by_gradient():
    vision = pytest.importorskip("torchvision")
    model = nn.Sequential(*list(vision.models.resnet18(weights=None).children())[:7])
    agree(model, None, (128, 160), [(0, 0), (3, 4), (-1, -1)])


def test_nothing_is_changed():
    torch.manual_seed(0)  # some random weights cut off all of a plain grey image
    model = create_model("cmunext_s", **TINY).train()
    model.head.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    receptive_field(model)
    effective_receptive_field(model, torch.zeros(1, 64, 64, dtype=torch.uint8) + 9)
    assert model.training and not model.head.weight.requires_grad and model.stem.conv.weight.grad is None
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and not any(m._forward_hooks for m in model.modules())


def test_weights_play_no_part_in_theory():
    model = create_model("cmunext_s", **TINY)
    for p in model.parameters(): nn.init.zeros_(p)
    assert receptive_field(model, "encoder.4").height == 286
    assert receptive_field(create_model("cmunext_s", **TINY).half(), "encoder.4").height == 286


@pytest.mark.parametrize("call, words", [
    (lambda m: receptive_field(m, "encodr.4"), "encoder.4"), (lambda m: receptive_field(m, pixel=(256, 0)), "outside"), (lambda m: receptive_field(m, pixel=(1, 2, 3)), "pair"),
    (lambda m: receptive_field(m, pixel=-1), "below 0"), (lambda m: receptive_field(m, image_size=0), "below 1"), (lambda m: receptive_field(m, image_size="big"), "whole number"),
    (lambda m: receptive_field(m, pixel=(1.5, 2)), "pair"), (lambda m: receptive_field(m, image_size=8), "16"), (lambda m: effective_receptive_field(m, []), "no image"),
    (lambda m: effective_receptive_field(m, torch.rand(1, 3, 32, 32), "stem", (40, 0)), "outside"), (lambda m: area_ratios(torch.zeros(4)), "(H, W)"), (lambda m: area_ratios(torch.zeros(4, 4)), "sum"),
    (lambda m: area_ratios(torch.ones(4, 4), shares=(50,)), "0..1"), (lambda m: radial_decay(torch.zeros(4, 4)), "sum")])
def test_mistakes_are_explained(call, words):
    with pytest.raises(ValueError) as error: call(create_model("cmunext_s", **TINY))
    assert words in str(error.value)


def test_a_layer_that_takes_no_part_and_one_without_maps():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle, self.flat = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 1, 3), nn.Linear(2, 2)
        def forward(self, x): return self.flat(self.used(x).mean((2, 3)))
    with pytest.raises(ValueError, match="no part"): receptive_field(Idle(), "idle", 16)
    with pytest.raises(ValueError, match="not maps"): receptive_field(Idle(), "flat", 16)
    with pytest.raises(ValueError, match="maps"): effective_receptive_field(Idle(), torch.rand(1, 1, 16, 16), "flat")


# the effective field

def test_the_effective_field_lies_within_the_theoretical_one():
    torch.manual_seed(0)
    model, images = create_model("cmunext_s", dims=(4, 4, 8), depths=(1, 1, 1), kernel_sizes=(3, 3, 3)), torch.rand(2, 3, 96, 96)
    for layer, pixel in (("encoder.1", (10, 30)), ("encoder.2", (0, 23)), (None, (50, 7))):
        erf, (top, left, bottom, right) = effective_receptive_field(model, images, layer, pixel), receptive_field(model, layer, 96, pixel).box
        assert erf.dtype == torch.float32 and erf.sum() == pytest.approx(1, abs=1e-5) and (erf >= 0).all()
        outside = erf.clone()
        outside[top:bottom, left:right] = 0
        assert outside.sum() == 0


def test_the_effective_field_of_a_linear_network_is_its_kernel():
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    erf = effective_receptive_field(conv, torch.rand(3, 1, 9, 9), pixel=(4, 4))
    torch.testing.assert_close(erf[3:6, 3:6], conv.weight[0, 0].detach().abs() / conv.weight.detach().abs().sum())


def test_batches_do_not_matter():
    model, images = randomized(create_model("cmunext_s", **TINY), torch.rand(5, 1, 48, 48)), torch.rand(5, 1, 48, 48)
    torch.testing.assert_close(effective_receptive_field(model, images, batch_size=1), effective_receptive_field(model, images, batch_size=5), rtol=1e-3, atol=1e-7)


def test_effective_field_inside_inference_mode():
    model, images = create_model("cmunext_s", dims=(4,) * 5).eval(), torch.rand(2, 3, 48, 48)
    wanted = effective_receptive_field(model, images)
    with torch.inference_mode():
        for given in (images, images.clone()): torch.testing.assert_close(effective_receptive_field(model, given), wanted)
        inside = create_model("cmunext_s", dims=(4,) * 5)
    with pytest.raises(ValueError, match="made under torch.inference_mode"): effective_receptive_field(inside, images)


def test_area_ratios_of_known_maps():
    flat = torch.ones(101, 101)
    for share, (side, area) in area_ratios(flat).items(): assert area == pytest.approx(share, abs=0.03) and side == pytest.approx(101 * share**0.5, abs=2)
    point = torch.zeros(64, 64)
    point[32, 32] = 3
    assert area_ratios(point) == {s: (1, 1 / 64**2) for s in (0.2, 0.3, 0.5, 0.99)}
    assert area_ratios(point, (0.5,), center=(0, 0))[0.5] == (65, 33 * 33 / 64**2)  # the part of the square that lies within the image


def test_radial_decay_of_a_gaussian():
    y, x = torch.meshgrid(torch.arange(129.) - 64, torch.arange(129.) - 64, indexing="ij")
    distance, mean, sigma = radial_decay(torch.exp(-(x**2 + y**2) / (2 * 9**2)))
    assert sigma == pytest.approx(9, rel=1e-3) and mean[0] > mean[9] > mean[18] and len(distance) == len(mean)
    assert float(mean[9] / mean[0]) == pytest.approx(math.exp(-0.5), rel=0.03)


def test_a_network_that_is_blind():
    model = nn.Conv2d(1, 1, 3, padding=1)
    nn.init.zeros_(model.weight)
    with pytest.raises(ValueError, match="no gradient"): effective_receptive_field(model, torch.rand(1, 1, 8, 8))


def test_a_map_of_fixed_size_has_no_bounded_field():
    class Resized(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)
        def forward(self, x): return self.conv(F.interpolate(x, size=(32, 32), mode="bilinear"))
    assert receptive_field(Resized(), image_size=64).unbounded


def test_a_division_by_a_map_is_followed():
    "torch calls it __rdiv__."
    class Own(nn.Module):
        def __init__(self): super().__init__(); self.conv = nn.Conv2d(3, 2, 3, padding=1)
        def forward(self, x): return 1 / (1 + torch.exp(-self.conv(x)))
    field = receptive_field(Own(), image_size=32)
    assert (field.height, field.width) == (3, 3) and not receptive_fields(Own(), image_size=32).through


def test_a_decision_is_no_map():
    class Own(nn.Module):
        def __init__(self): super().__init__(); self.conv = nn.Conv2d(3, 2, 3, padding=1)
        def forward(self, x): return self.conv(x).argmax(1, keepdim=True)
    with pytest.raises(ValueError, match="become int64, as by an argmax"): receptive_fields(Own(), image_size=32)


class After(nn.Module):
    "A 3 x 3 convolution of 3 channels to 4, and then whatever somebody writes in a forward."
    def __init__(self, then):
        super().__init__()
        self.conv, self.then = nn.Conv2d(3, 4, 3, padding=1), then
    def forward(self, x): return self.then(self.conv(x))


# Each gives the union of the channels, (N, 1, H, W), however its arguments are given.
ALONG = {text: eval(f"lambda x: {text}") for text in (
    "x.var(1, False, True)", "x.std(1, True, True)", "x.std(1, True)[:, None]", "torch.var(x, 1, False)[:, None]", "torch.std(x, (1,), False, True)", "x.var(1, correction=0, keepdim=True)",
    "torch.var_mean(x, 1, False, True)[0]", "torch.std_mean(x, dim=1, keepdim=True)[1]", "x.norm(2, 1, True)", "torch.norm(x, 2, 1)[:, None]", "torch.linalg.vector_norm(x, 2, 1, True)",
    "torch.linalg.vector_norm(x, 1, (1,))[:, None]", "torch.linalg.norm(x, 2, 1)[:, None]", "x.mean(1, True)", "x.sum((1,), True)", "x.nansum([1], True)", "x.nanmean(1)[:, None]", "x.prod(1, True)",
    "x.amax((1,), True)", "x.logsumexp(1, True)", "x.max(1, True)[0]", "x.min(1, True).values", "x.median(1, True)[0]", "x.mean(axis=1, keepdims=True)", "x.var(axis=1, keepdims=True)", "x.max(axis=1).values[:, None]",
    "torch.cat((x, x), axis=1)[:, :1]", "F.normalize(x, 2.0, 1)[:, :1]", "F.softmax(x, 1)[:, :1]", "x.softmax(-3)[:, :1]", "F.max_pool2d(x, 1, 1, 0, 1, False, True)[0][:, :1]", "torch.broadcast_tensors(x, x)[0][:, :1]")}


@pytest.mark.parametrize("text", ALONG)
def test_arguments_by_place_and_by_name(text):
    model = After(ALONG[text])
    with torch.no_grad(): assert model(torch.rand(2, 3, 20, 24)).shape == (2, 1, 20, 24), "the expression itself"
    fields = receptive_fields(model, image_size=(20, 24))
    assert fields.map_size == (20, 24) and set(fields.heights.tolist()) == set(fields.widths.tolist()) == {3.0} and fields.at((7, 9)).unclipped == (6, 8, 9, 11)


@pytest.mark.parametrize("text", ["x + x.mean()", "x + x.sum()", "x + x.amax()", "x + x.max()", "x + x.norm()", "x + x.var()", "x + x.std(False)", "x + x.var(True)", "x + x.mean([])", "x + x.var(None, False, True)", "x + torch.linalg.vector_norm(x, 2)",
                                  "x + x.std((2, 3), False, True)"])
def test_statistics_of_all_numbers_see_the_whole_map(text):
    model = After(eval(f"lambda x: {text}"))
    field = receptive_field(model, image_size=32)
    assert field.unbounded and field.through == ("pooling of the whole map",) and receptive_field(model, image_size=32, local=True).height == 3


@pytest.mark.parametrize("text, name", [("x.sort(2)[0]", "sort"), ("x.topk(2, 2).values", "topk"), ("x.cummax(2)[0]", "cummax"), ("x.kthvalue(1, 2, True)[0]", "kthvalue")])
def test_a_tuple_that_is_not_understood_claims_too_much_and_is_named(text, name):
    field = receptive_field(After(eval(f"lambda x: {text}")), image_size=32)
    assert field.unbounded and name in str(field)


def test_a_recurrent_layer_sees_its_whole_row():
    class Scanned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.scan = nn.Conv2d(3, 4, 3, padding=1), nn.GRU(4, 4, batch_first=True)
        def forward(self, x):
            n, c, h, w = (x := self.conv(x)).shape
            return self.scan(x.permute(0, 2, 3, 1).reshape(n * h, w, c))[0].reshape(n, h, w, c).permute(0, 3, 1, 2)
    field = receptive_field(Scanned(), image_size=32)
    assert field.unbounded and "gru" in str(field)


# Each puts a mask to use that was made of x, and nothing else of it.
MASKED = {text: eval(f"lambda x: {text}") for text in (
    "(x > 0).float()", "(x > 0) * 1.0", "2.0 * x.gt(0)", "(0 < x).to(x.dtype)", "(x >= 0).type_as(torch.rand(1))", "torch.where(x > 0, 1.0, 0.0)", "(~(x > 0)).float()", "((x > 0) & (x < 1)).float()",
    "((x > 0) | torch.ones(x.shape).bool()).float()", "torch.logical_xor(x > 0, x < 1).float()", "x.bool().float()", "(x > 0)[:, :1].flip(1).float()", "(x > 0).unsqueeze(1).float().mean(1)", "(x > 0).float().mean(1, True)",
    "(x > 0).sum(1, True).float()", "(x > 0).any(1, keepdim=True).float()", "torch.all(x > 0, axis=1, keepdims=True).float()", "(x == x.amax(1, True)).float()", "torch.ones(x.shape).masked_fill(x > 3, 0.0)",
    "torch.cat([x > 0, x < 0], 1).float()", "F.max_pool2d((x > 0).float(), 1)", "x.isnan().float()", "torch.zeros(x.shape) + (x != 0)")}


@pytest.mark.parametrize("text", MASKED)
def test_a_mask_is_followed_to_what_it_was_made_of(text):
    field = receptive_field(After(MASKED[text]), image_size=32)
    assert (field.height, field.width, field.through) == (3, 3, ())


def test_a_mask_of_two_maps_sees_what_both_see():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.near, self.far, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=4, dilation=4), nn.Conv2d(4, 1, 3, padding=1)
        def forward(self, x):
            if not torch.isfinite(x).all() or (x < -1).any(): raise ValueError("a check, as some networks have it")
            return self.head(self.near(x) * (self.near(x) > self.far(x)).float())
    field = receptive_field(Gated(), image_size=64)
    assert (field.height, field.width, field.through) == (11, 11, ())


def test_a_mask_of_the_whole_map_is_global():
    model = After(lambda x: x * (x > x.mean((2, 3), keepdim=True)))
    field = receptive_field(model, image_size=32)
    assert field.unbounded and "whole map" in str(field) and receptive_field(model, image_size=32, local=True).height == 3


def test_a_mask_alone_has_no_field():
    with pytest.raises(ValueError, match="become bool"): receptive_field(After(lambda x: x > 0), image_size=32)


@pytest.mark.parametrize("use", [lambda y, z: y.add_(z), lambda y, z: y.mul_(z).add_(1).relu_(), lambda y, z: y.add_(1).sub_(z, alpha=2), lambda y, z: y.copy_(y + z)])
def test_what_is_written_in_place_is_kept(use):
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.near, self.far = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 5, padding=2)
        def forward(self, x):
            y = self.near(x)
            use(y, self.far(x))  # the result is used through y alone
            return y
    field = receptive_field(Written(), image_size=32)
    assert field.height == field.width == 5


IN_PARTS = dict(
    copied=lambda y, z: y[:, 0].copy_(z[:, 0]), added=lambda y, z: y[:, :2].add_(z[:, :2]), chunk=lambda y, z: y.chunk(2, 1)[0].add_(z[:, :2]),
    view=lambda y, z: y.view_as(y).add_(z), data=lambda y, z: y.data.add_(z), out=lambda y, z: torch.add(y, z, out=y), twice=lambda y, z: y[:, :2][:, :1].mul_(z[:, :1]))


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("use", IN_PARTS)
def test_what_is_written_into_a_part_is_kept_or_refused(use, dense):
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.near, self.far = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 5, padding=2)
        def forward(self, x):
            y, z = self.near(x), self.far(x)
            if dense: y = torch.cat([y[:, :2], y[:, 2:]], 1).clone()
            IN_PARTS[use](y, z)
            return y
    try: field = receptive_field(Written(), image_size=32)
    except ValueError as error: assert "into a part of a map" in str(error) and not dense
    else: assert field.height == field.width == 5


@pytest.mark.parametrize("text, height", [("torch.greater(x, 0).float()", 3), ("torch.less_equal(x, 0) * 1.0", 3), ("torch.signbit(x).float()", 3), ("torch.isposinf(x) * 2.0", 3),
                                          ("x * (x > 0).any()", math.inf), ("x * torch.greater(x.mean((2, 3), True), 0)", math.inf)])
def test_other_ways_to_a_mask(text, height):
    field = receptive_field(After(eval(f"lambda x: {text}")), image_size=32)
    assert field.unbounded if height == math.inf else field.height == height


def test_a_check_on_the_way_is_no_use_of_the_whole_map():
    def checked(x):
        if not torch.isfinite(x).all() or torch.isnan(x).any(): raise ValueError
        return x
    field = receptive_field(After(checked), image_size=32)
    assert (field.height, field.through) == (3, ())
