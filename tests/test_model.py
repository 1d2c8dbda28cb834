"""The network beyond what notebook 06 shows: every size, every wrong argument, and tools that record it."""
import copy
import functools
import pickle

import pytest
import torch
from torch import nn

from cmunext_nb.model import CMUNeXt, VARIANTS, check_contract, create_model, list_models, unknown_name
from cmunext_nb.skip_fusion import SkipFusion

SMALL = dict(dims=(4, 6, 8), depths=(1, 0, 1), kernel_sizes=(3, 3, 5))


@pytest.mark.parametrize("name, count", [("cmunext_s", 417_505), ("cmunext", 3_149_185), ("cmunext_l", 8_286_721)])
def test_parameters_of_the_paper(name, count):
    assert sum(p.numel() for p in create_model(name).parameters()) == count


@pytest.mark.parametrize("name", VARIANTS)
def test_contract(name):
    check_contract(name, sizes=((16, 16), (16, 33), (31, 17), (40, 47)))


@pytest.mark.parametrize("overrides", [
    dict(act=nn.ReLU), dict(norm=functools.partial(nn.GroupNorm, 1)), dict(fusion=functools.partial(SkipFusion, grouped_act=False)),
    dict(dims=(8,) * 6, depths=(1,) * 6, kernel_sizes=(3,) * 6), SMALL, dict(depths=(0, 0, 0, 0, 0)), dict(kernel_sizes=(1, 3, 5, 9, 31))])
def test_contract_of_swapped_parts(overrides):
    check_contract("cmunext_s", sizes=((16, 19),), **overrides)


@pytest.mark.parametrize("stages", [3, 4, 5, 6])
def test_every_size_from_16(stages):
    net = CMUNeXt(1, 1, (2,) * stages, (1,) * stages, (3,) * stages).eval()
    with torch.no_grad():
        for h in range(16, 50): assert net(torch.zeros(1, 1, h, 66 - h)).shape == (1, 1, h, 66 - h)


def test_where_sizes_divide_it_is_the_plain_network():
    net, x = create_model("cmunext_s").eval(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        rounding_up = net(x)
        net.pool = nn.MaxPool2d(2)
        assert torch.equal(net(x), rounding_up)


def test_train_and_eval_differ_and_gradients_reach_the_image():
    net, x = create_model("cmunext_s"), torch.randn(2, 3, 33, 32, requires_grad=True)
    assert not torch.allclose(net.train()(x), net.eval()(x))
    net(x).sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0


@pytest.mark.parametrize("arguments, words", [
    (dict(dims=(8, 16)), "equally long"), (dict(dims=(8, 16), depths=(1, 1), kernel_sizes=(3, 3)), "3 to 6"),
    (dict(dims=(8,) * 7, depths=(1,) * 7, kernel_sizes=(3,) * 7), "3 to 6"), (dict(dims=(8, 16, 32, 64, 0)), "dims"),
    (dict(dims=(8, 16, 32, 64, "x")), "dims"), (dict(dims=8), "equally long"), (dict(depths=(1, 1, 1, 1, -1)), "depths"),
    (dict(depths=(1, 1, 1, 1, 1.0)), "depths"), (dict(depths=(1, 1, 1, 1, True)), "depths"), (dict(kernel_sizes=(3, 3, 4, 3, 3)), "odd"),
    (dict(kernel_sizes=(3, 3, -3, 3, 3)), "kernel_sizes"), (dict(in_channels=0), "in_channels"), (dict(num_classes=-1), "num_classes"),
    (dict(num_classes=(1, 2)), "num_classes"), (dict(dim=(8,)), "Did you mean 'dims'"), (dict(pretrained="no_such_weights"), "shipped for cmunext_s")])
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError) as error: create_model("cmunext_s", **arguments)
    assert words in str(error.value)


@pytest.mark.parametrize("x, words", [
    (torch.zeros(3, 32, 32), "image[None]"), (torch.zeros(1, 1, 32, 32), "to_channels"), (torch.zeros(1, 3, 32, 15), "16"),
    (torch.zeros(1, 3, 1, 1), "16"), (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "preprocess"), (torch.zeros(0), "axes")])
def test_wrong_input_is_named(x, words):
    with pytest.raises(ValueError) as error: create_model("cmunext_s")(x)
    assert words in str(error.value) and str(tuple(x.shape)) in str(error.value)


def test_names():
    for name in VARIANTS: assert name in str(unknown_name("model", "nonsense", VARIANTS))
    assert "Did you mean 'cmunext_l'" in str(unknown_name("model", "CMUNEXT-L", VARIANTS))
    assert "none yet" in str(unknown_name("model", None, []))
    with pytest.raises(ValueError, match="Did you mean 'cmunext_s'"): create_model("cmunext-s")


@pytest.mark.parametrize("name, overrides", [("cmunext_s", {}), ("cmunext", SMALL)])
def test_config_builds_the_same_network(name, overrides):
    net = create_model(name, 2, 3, **overrides)
    c = net.config
    twin = create_model(c["name"], c["in_channels"], c["num_classes"], **c["overrides"])
    twin.load_state_dict(net.state_dict())
    direct = CMUNeXt(2, 3, **{**VARIANTS[name], **overrides}).config
    create_model(direct["name"], 2, 3, **direct["overrides"]).load_state_dict(net.state_dict())


def test_copies():
    net, x = create_model("cmunext_s").eval(), torch.randn(1, 3, 16, 16)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), net(x)) and twin.config == net.config and twin.preprocess == "imagenet"


def test_variants_are_not_shared():
    create_model("cmunext_s", dims=(4, 4, 4, 4, 4)).config["overrides"]["dims"] = None
    assert VARIANTS["cmunext_s"]["dims"] == (8, 16, 32, 64, 128)


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and still what older tools use
def test_trace():
    net, x = create_model("cmunext_s").eval(), torch.randn(1, 3, 32, 48)
    traced = torch.jit.trace(net, x)
    with torch.no_grad(): torch.testing.assert_close(traced(x), net(x))


def test_export_with_free_sizes():
    dim = getattr(getattr(torch.export, "Dim", None), "DYNAMIC", None)
    if dim is None: pytest.skip("this torch has no Dim.DYNAMIC")
    net = create_model("cmunext_s", dims=(4, 6, 8), depths=(1, 1, 1), kernel_sizes=(3, 3, 3)).eval()
    program = torch.export.export(net, (torch.randn(2, 3, 64, 80),), dynamic_shapes=({0: dim, 2: dim, 3: dim},)).module()
    for shape in ((1, 3, 64, 64), (3, 3, 97, 64), (2, 3, 17, 31)):
        x = torch.randn(shape)
        with torch.no_grad(): torch.testing.assert_close(program(x), net(x))


def test_golden():
    "Upstream's own numbers, where they are at hand: see test_weights."
    from test_weights import GOLDEN, close_to_golden
    if not GOLDEN.exists(): pytest.skip("no golden file here")
    from cmunext_nb.weights import load_upstream
    as_coded, as_printed = load_upstream(create_model("cmunext_s"), GOLDEN), create_model("cmunext_s", fusion=functools.partial(SkipFusion, grouped_act=False))
    assert close_to_golden(as_coded)
    with pytest.raises(ValueError, match="grouped_act=False"): load_upstream(as_printed, GOLDEN)
    as_printed.load_state_dict(as_coded.state_dict())  # the tensors fit; the numbers say that it is another function
    assert not close_to_golden(as_printed)
