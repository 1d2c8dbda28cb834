"Corner cases of the boxes of notebooks 00-03 that would clutter the notebooks."
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cmunext_nb.block import CMUNeXtBlock, EncoderStage
from cmunext_nb.conv import ConvBlock, DummyDecoder, UShape, dummy_u, impulse_response, same_padding
from cmunext_nb.inverted_bottleneck import InvertedBottleneck
from cmunext_nb.large_kernel import LargeKernelConv

BOXES = {  # name -> (makes the box, channels in, channels out)
    "ConvBlock": (lambda **kw: ConvBlock(4, 6, **kw), 4, 6),
    "LargeKernelConv": (lambda **kw: LargeKernelConv(4, **kw), 4, 4),
    "InvertedBottleneck": (lambda **kw: InvertedBottleneck(4, **kw), 4, 4),
    "InvertedBottleneck 2C to C": (lambda **kw: InvertedBottleneck(8, 4, **kw), 8, 4),
    "CMUNeXtBlock": (lambda **kw: CMUNeXtBlock(4, **kw), 4, 4),
    "EncoderStage": (lambda **kw: EncoderStage(4, 6, depth=2, **kw), 4, 6),
}
WITH_KERNEL = [name for name in BOXES if not name.startswith("Inverted")]


@pytest.fixture(params=BOXES)
def box(request):
    torch.manual_seed(0)
    make, c_in, c_out = BOXES[request.param]
    return make(), c_in, c_out


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (16, 16), (17, 31)])
def test_shape_is_kept_at_any_size(box, size):
    module, c_in, c_out = box
    assert module(torch.randn(2, c_in, *size)).shape == (2, c_out, *size)
    assert module.eval()(torch.randn(1, c_in, *size)).shape == (1, c_out, *size)


def test_every_parameter_gets_a_finite_gradient(box):
    module, c_in, c_out = box
    y = module(torch.randn(3, c_in, 12, 10))
    (y * torch.randn_like(y)).sum().backward()
    for name, p in module.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        if not name.endswith(".bias"): assert p.grad.abs().sum() > 0, name


def test_eval_gives_the_same_answer_alone_and_in_a_batch(box):
    module, c_in, _ = box
    module(torch.randn(4, c_in, 9, 9))  # moves the running statistics away from their start
    module.eval()
    x = torch.randn(4, c_in, 9, 9)
    torch.testing.assert_close(module(x)[:1], module(x[:1]), rtol=1e-5, atol=1e-5)


def test_state_dict_round_trip(box):
    module, c_in, _ = box
    module(torch.randn(4, c_in, 9, 9))
    twin = copy.deepcopy(module)
    for p in twin.parameters(): nn.init.normal_(p)
    twin.load_state_dict(module.state_dict(), strict=True)
    x = torch.randn(1, c_in, 9, 9)
    assert torch.equal(twin.eval()(x), module.eval()(x))


def test_memory_layout_and_precision(box):
    module, c_in, _ = box
    module, x = module.eval(), torch.randn(2, c_in, 14, 13)
    want = module(x)
    torch.testing.assert_close(module.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.double()(x.double()).float(), want, rtol=1e-4, atol=1e-5)


def test_act_and_norm_are_swapped_everywhere():
    for name, (make, c_in, c_out) in BOXES.items():
        kinds = {type(m) for m in make(act=nn.SiLU, norm=nn.InstanceNorm2d).modules()}
        assert nn.BatchNorm2d not in kinds and nn.GELU not in kinds and {nn.SiLU, nn.InstanceNorm2d} <= kinds, name


@pytest.mark.parametrize("name", WITH_KERNEL)
@pytest.mark.parametrize("kernel_size", [0, 2, 8, -3, 3.5])
def test_a_kernel_without_a_middle_is_refused(name, kernel_size):
    with pytest.raises(ValueError, match=rf"odd whole number.*got {kernel_size}"):
        BOXES[name][0](kernel_size=kernel_size)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 21, np.int64(7)])
def test_same_padding(kernel_size):
    padding = same_padding(kernel_size)
    assert type(padding) is int
    assert F.conv2d(torch.ones(1, 1, 5, 4), torch.ones(1, 1, kernel_size, kernel_size), padding=padding).shape == (1, 1, 5, 4)


def test_part_names_are_the_checkpoint_contract():
    keys = lambda m: [k for k, _ in m.named_parameters()]
    assert keys(ConvBlock(1, 1)) == ["conv.weight", "conv.bias", "norm.weight", "norm.bias"]
    stage = keys(EncoderStage(2, 3, depth=2))
    assert stage[:4] == ["blocks.0.mix_space.conv.weight", "blocks.0.mix_space.conv.bias", "blocks.0.mix_space.norm.weight", "blocks.0.mix_space.norm.bias"]
    assert stage[4:12] == [f"blocks.0.mix_channels.{part}.{kind}" for part in ("expand", "expand_norm", "project", "project_norm") for kind in ("weight", "bias")]
    assert stage[24:] == ["widen.conv.weight", "widen.conv.bias", "widen.norm.weight", "widen.norm.bias"]


def test_depth_and_block_of_a_stage():
    calls = []
    class Spy(nn.Identity):
        def __init__(self, channels, kernel_size, act, norm):
            super().__init__()
            calls.append((channels, kernel_size, act, norm))
    stage = EncoderStage(4, 6, depth=3, kernel_size=9, block=Spy, act=nn.ReLU, norm=nn.Identity)
    assert calls == [(4, 9, nn.ReLU, nn.Identity)] * 3 and len(stage.blocks) == 3
    assert stage(torch.ones(1, 4, 5, 5)).shape == (1, 6, 5, 5)


def test_u_calls_its_boxes_in_order_with_the_right_skips():
    seen = []
    class Add(nn.Module):
        def __init__(self, name): super().__init__(); self.name = name
        def forward(self, x, skip=None):
            seen.append((self.name, tuple(x.shape[-2:]), None if skip is None else tuple(skip.shape[-2:])))
            return x if skip is None else skip
    net = UShape(Add("stem"), [Add(f"e{i}") for i in range(3)], [Add(f"d{i}") for i in range(2)], Add("head"))
    assert net(torch.zeros(1, 1, 17, 22)).shape == (1, 1, 17, 22)
    assert seen == [("stem", (17, 22), None), ("e0", (17, 22), None), ("e1", (9, 11), None), ("e2", (5, 6), None),
                    ("d0", (5, 6), (9, 11)), ("d1", (9, 11), (17, 22)), ("head", (17, 22), None)]


def test_u_is_the_plain_network_where_sizes_divide():
    torch.manual_seed(0)
    a, b, c, stem, head = (ConvBlock(2, 2).eval() for _ in range(5))
    x, pool, join = torch.randn(1, 2, 24, 32), nn.MaxPool2d(2), DummyDecoder()
    top = a(stem(x)); middle = b(pool(top))
    plain = head(join(join(c(pool(middle)), middle), top))
    assert torch.equal(UShape(stem, [a, b, c], [DummyDecoder()] * 2, head)(x), plain)


@pytest.mark.parametrize("n_decoder", [0, 1, 3, 4])
def test_u_with_a_wrong_number_of_decoder_stages(n_decoder):
    with pytest.raises(ValueError, match=f"3 encoder stages needs 2 decoder stages, not {n_decoder}"):
        UShape(nn.Identity(), [nn.Identity()] * 3, [DummyDecoder()] * n_decoder, nn.Identity())


def test_u_names():
    net = dummy_u(stem=ConvBlock(1, 2), encoder=[ConvBlock(2, 2) for _ in range(3)], head=nn.Conv2d(2, 1, 1))
    prefixes = list(dict.fromkeys(".".join(k.split(".")[:2 if k.startswith("encoder") else 1]) for k in net.state_dict()))
    assert prefixes == ["stem", "encoder.0", "encoder.1", "encoder.2", "head"]


def test_impulse_response_leaves_the_model_alone():
    model = EncoderStage(3, 4, kernel_size=3)
    model.blocks.eval()  # a mixed state: some parts frozen, others not
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    response = impulse_response(model, channels=3, size=12, channel=1)
    assert response.shape == (4, 12, 12) and not response.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
