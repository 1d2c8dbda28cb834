"""The other networks of the paper's Tables 2 and 3: exact counts, one contract, weights that find their network, nothing imported too early."""
import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import cmunext_nb as cn
from cmunext_nb.model import ZOO, check_contract, create_model, list_models
from cmunext_nb.weights import load_weights, save_weights
from cmunext_nb.zoo.kit import work_of

# name: parameters, GMACs, and what the paper prints: M parameters, "GFLOPs"
COUNTS = dict(unet=(34_527_041, 65.347, 34.52, 65.52), reduced_unet=(3_343_217, 7.296, 3.34, 7.34), attention_unet=(34_878_573, 66.425, 34.87, 66.63),
              unetpp=(26_904_137, 37.521, 26.90, 37.62), unet3p=(26_971_777, 197.652, 26.97, 199.74), convunext=(3_505_697, 7.122, 3.50, 7.25),
              cmunet=(49_932_353, 90.939, 49.93, 91.25))
NAMES = list(COUNTS)
SMALL = dict(unet=dict(dims=(4, 6, 8)), reduced_unet=dict(dims=(4, 6, 8)), attention_unet=dict(dims=(4, 6, 8)), unetpp=dict(encoder="resnet10t"),
             unet3p=dict(dims=(4, 6, 8), width=2), convunext=dict(dims=(4, 6, 8), depths=(1, 0, 1, 1)), cmunet=dict(dims=(4, 6, 8), depth=1))


def build(name, *channels, **overrides):
    if name == "unetpp": pytest.importorskip("timm")
    return create_model(name, *channels, **overrides)


def small(name, *channels): return build(name, *channels, **SMALL[name])


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_the_papers(name):
    count, gmacs, printed, gflops = COUNTS[name]
    with torch.device("meta"): model = build(name)
    work = work_of(model)
    assert sum(p.numel() for p in model.parameters()) == count and int(count / 1e4) / 100 == printed
    assert round(work["macs"] / 1e9, 3) == gmacs
    unseen = name == "unetpp"  # its upsampling is a function call, which the paper's counter does not see
    billed = work["macs"] + 4 * work["norm"] + (0 if unseen else work["nearest"] + 11 * work["bilinear"])
    assert int(billed / 1e7) / 100 == gflops


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    build(name)
    check_contract(name, sizes=((16, 16), (17, 31), (33, 48)))


@pytest.mark.parametrize("name", NAMES)
def test_every_size_from_16(name):
    net = small(name, 1, 2).eval()
    with torch.no_grad():
        for h in range(16, 50, 5): assert net(torch.zeros(1, 1, h, 66 - h)).shape == (1, 2, h, 66 - h)


@pytest.mark.parametrize("name", NAMES)
def test_weights_find_their_network(name, tmp_path):
    net, x = small(name, 1, 2).eval(), torch.randn(1, 1, 32, 48)
    twin = load_weights(save_weights(net, tmp_path / "w.safetensors")).eval()
    assert type(twin) is type(net) and twin.preprocess == "imagenet"
    assert twin.config["name"] == name and set(twin.config["overrides"]) == set(SMALL[name])
    with torch.no_grad(): assert torch.equal(twin(x), net(x))
    assert torch.equal(copy.deepcopy(net)(x), net(x))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_is_named(name):
    net = small(name).eval()
    for x, words in ((torch.zeros(3, 32, 32), "image[None]"), (torch.zeros(1, 1, 32, 32), "to_channels"), (torch.zeros(1, 3, 32, 15), "16"),
                     (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "preprocess")):
        with pytest.raises(ValueError) as error: net(x)
        assert words in str(error.value)


@pytest.mark.parametrize("name, arguments, words", [
    ("unet", dict(dims=(8,)), "at least two"), ("unet", dict(dims=(8, 0)), "none below 1"), ("unet", dict(depths=(1, 1)), "override 'depths'"),
    ("unet", dict(in_channels=0), "in_channels"), ("unet3p", dict(num_classes=1.5), "num_classes"), ("unet3p", dict(dims=(8,)), "at least two"),
    ("unet3p", dict(width=0), "width"), ("convunext", dict(depths=(1, 1)), "one number more"), ("convunext", dict(kernel_size=4), "odd"),
    ("cmunet", dict(depth=-1), "depth"), ("cmunet", dict(kernel_size=8), "odd"), ("attention_unet", dict(dim=(8, 8)), "'dims'"),
    ("unet", dict(pretrained="phantom"), "none are shipped for unet")])
def test_wrong_arguments_are_named(name, arguments, words):
    with pytest.raises(ValueError) as error: create_model(name, **{**SMALL[name], **arguments} if "pretrained" in arguments else arguments)
    assert words in str(error.value)


def test_names():
    assert list_models()[3:] == list(ZOO) and len(ZOO) == 11
    with pytest.raises(ValueError, match="Did you mean 'attention_unet'"): create_model("attentionunet")


def test_nothing_of_the_zoo_is_imported_before_it_is_asked_for():
    code = ("import sys, cmunext_nb as cn; cn.create_model('cmunext_s'); cn.list_models(); cn.create_model('unet', dims=(4, 8)); "
            "print(sorted(m for m in sys.modules if m == 'timm' or m.startswith('cmunext_nb.zoo.')))")
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert seen.strip() == "['cmunext_nb.zoo.unet']"


def test_without_timm_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "cmunext_nb.zoo.unetpp", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"cmunext_nb\[zoo\]"): create_model("unetpp")


def test_the_reduced_unet_is_the_first_row_of_the_ablation():
    from cmunext_nb.model import PlainFusion, PlainStage
    from cmunext_nb.upsample import UpBlock
    ours, rows = create_model("reduced_unet", up=UpBlock).eval(), create_model("cmunext", stage=PlainStage, fusion=PlainFusion).eval()
    rows.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 33, 48)
    with torch.no_grad(): assert torch.equal(ours(x), rows(x))


@pytest.mark.parametrize("name", ["unet", "attention_unet", "unet3p", "convunext", "cmunet"])
def test_where_sizes_divide_rounding_changes_nothing(name, monkeypatch):
    "Pooling that rounds up, cutting and mirroring are there for other sizes only."
    net, x = small(name).eval(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        once, pool = net(x), nn.functional.max_pool2d
        monkeypatch.setattr(nn.functional, "max_pool2d", lambda *args, **options: pool(*args, **{**options, "ceil_mode": False}))
        assert torch.equal(net(x), once)


def test_mirrored_rows():
    from numpy import arange, pad
    from cmunext_nb.zoo.convunext import ReflectConv, mirrored
    for n in range(1, 12):
        for p in range(0, 9): assert mirrored(n, p).tolist() == pad(arange(n), p, mode="reflect").tolist()
    conv = ReflectConv(2, 2, 7, groups=2)
    x = torch.randn(1, 2, 4, 5)
    large = x[..., mirrored(4, 3), :][..., mirrored(5, 3)]
    torch.testing.assert_close(conv(x), nn.functional.conv2d(large, conv.weight, conv.bias, groups=2))
    assert conv(x[..., :3, :2]).shape == (1, 2, 3, 2)


def test_swapped_parts_reach_other_networks():
    from cmunext_nb.zoo.attention_unet import AttentionFusion
    from cmunext_nb.zoo.cmunet import GatedFusion
    for fusion in (AttentionFusion, GatedFusion): check_contract("cmunext_s", sizes=((16, 19),), fusion=fusion)
    net = create_model("unet", dims=(4, 8), norm=nn.Identity)
    assert not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", ["unet", "unetpp", "unet3p"])
def test_other_tools_take_them(name):
    from cmunext_nb.layers import deepest_layer, find_layer
    net = small(name).eval()
    assert find_layer(net, deepest_layer(net, torch.randn(1, 3, 64, 64)))
    scan = cn.make_phantom(1, size=64)[0]
    assert cn.predict(net, scan[0]).mask.shape == (64, 64)


@pytest.mark.parametrize("name", ["convunext"])
def test_eight_phantoms_learnt_by_heart(name):
    "The fastest to learn here; all of them by benchmarks/zoo_overfit.py."
    scans = cn.make_phantom(8, size=32, seed=3)
    torch.manual_seed(41)
    model = create_model(name)
    history = cn.fit(model, scans, scans, recipe="fast", epochs=60, batch_size=8, augment="none", sizes=None, ema=None, lr=4e-3, validate_every=5,
                     amp=False, on_epoch=lambda run: run.history.best.get("iou", 0) < 0.92, device="cpu", progress=False)
    assert cn.evaluate(model, scans)["iou"] > 0.9, len(history.rows)
