"UNeXt, MedT, Swin-Unet and TransUnet beyond what their notebooks show: counts, the contract in full, by-hand twins, wrong input."
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import cmunext_nb as cn
from cmunext_nb.model import check_contract, create_model

NAMES = ["unext", "medt", "swin_unet", "transunet"]
TIMM = {"swin_unet", "transunet"}


@pytest.fixture(autouse=True)
def timm_where_it_is_needed(request):
    name = getattr(request.node, "callspec", None)
    if name and TIMM & {str(v) for v in name.params.values()}: pytest.importorskip("timm")


def on_meta(name, **overrides):
    "A network whose weights have shapes and no numbers: built in no time, whatever its size."
    with torch.device("meta"): return create_model(name, **overrides).eval()


@pytest.mark.parametrize("name, count, printed", [("unext", 1_471_921, 1.47), ("medt", 1_564_202, None), ("swin_unet", 27_168_132, 27.14),
                                                  ("transunet", 105_322_001, 105.32)])
def test_parameters(name, count, printed):
    assert sum(p.numel() for p in on_meta(name).parameters()) == count
    assert printed is None or abs(count / 1e6 - printed) < 0.01 * printed


@pytest.mark.parametrize("name, size, gmacs, printed", [("unext", 256, 0.562, None), ("medt", 256, 2.320, None), ("swin_unet", 224, 6.071, None),
                                                        ("transunet", 256, 38.416, 38.52)])
def test_macs(name, size, gmacs, printed):
    from cmunext_nb.zoo.kit import work_of
    counted = work_of(on_meta(name), size)["macs"] / 1e9
    assert round(counted, 3) == gmacs
    assert printed is None or abs(counted - printed) < 0.01 * printed


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    check_contract(name, sizes=((16, 16), (17, 31)))


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_channels_without_computing(name):
    net = on_meta(name, in_channels=2, num_classes=3)
    for h, w in ((16, 16), (19, 33), (97, 64), (224, 256), (300, 16)):
        assert net(torch.zeros(1, 2, h, w, device="meta")).shape == (1, 3, h, w)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_is_named(name):
    net = on_meta(name)
    for shape, words in (((3, 32, 32), "image[None]"), ((1, 1, 32, 32), "in_channels=1"), ((1, 3, 15, 64), "16")):
        with pytest.raises(ValueError) as error: net(torch.zeros(shape, device="meta"))
        assert words in str(error.value)


@pytest.mark.parametrize("name, overrides", [("unext", dict(dims=(4, 8, 10, 12), reach=1)), ("medt", dict(image_size=64, patch=None)),
                                             ("swin_unet", dict(dim=12, window=4, heads=(1, 2, 3, 4), depths=(1, 2, 1, 1))), ("transunet", dict(depth=1, dim=48, heads=3))])
def test_saved_and_loaded(name, overrides, tmp_path):
    net = create_model(name, 1, 2, **overrides).eval()
    cn.save_weights(net, tmp_path / "net.safetensors")
    twin, x = cn.load_weights(tmp_path / "net.safetensors").eval(), torch.randn(1, 1, 33, 40)
    with torch.no_grad(): assert torch.equal(net(x), twin(x))
    plain = lambda config: {k: list(v) if isinstance(v, tuple) else v for k, v in config["overrides"].items()}  # JSON knows no tuples
    assert twin.config["name"] == name and plain(twin.config) == plain(net.config) and twin.preprocess == "imagenet"


@pytest.mark.parametrize("arguments, words", [
    (dict(name="unext", dims=(8, 16)), "3 numbers"), (dict(name="unext", dims=(8, 16, 0)), "dims"), (dict(name="unext", dim=3), "Did you mean 'dims'"),
    (dict(name="medt", patch=2.5), "patch"), (dict(name="medt", grid=0), "grid"), (dict(name="medt", image_size=4), "image_size"),
    (dict(name="swin_unet", dim=50), "multiple of its heads"), (dict(name="swin_unet", depths=(2, 2)), "equally long"),
    (dict(name="transunet", dim=100), "multiple of heads"), (dict(name="transunet", depth=0), "depth"), (dict(name="transunet", num_classes=0), "num_classes")])
def test_wrong_arguments_are_named(arguments, words):
    if arguments["name"] in TIMM: pytest.importorskip("timm")
    with pytest.raises(ValueError) as error: create_model(**arguments)
    assert words in str(error.value)


def test_shift_is_a_roll_with_zeros():
    from cmunext_nb.zoo.unext import shift
    for channels in (3, 5, 8, 13):
        x = torch.randn(2, channels, 7, 9)
        for axis in (2, 3):
            padded = F.pad(x, (3, 3, 3, 3))
            want = torch.cat([g.roll(i - 2, axis) for i, g in enumerate(padded.chunk(5, 1))], 1)[..., 3:-3, 3:-3]
            assert torch.equal(shift(x, axis), want)


def test_axial_attention_by_hand():
    "One pixel at a time, as the equation says; heads and gates included."
    from cmunext_nb.zoo.medt import AxialAttention
    torch.manual_seed(0)
    layer = AxialAttention(16, 3, span=6, heads=2).eval()
    for norm in (layer.qkv_norm, layer.score_norm, layer.out_norm): norm.running_var.uniform_(0.5, 2), norm.running_mean.normal_()
    x = torch.randn(1, 16, 3, 6)
    qkv = layer.qkv_norm(layer.qkv(x))[0].unflatten(0, (2, 16))
    (q, k, v), (rq, rk, rv) = qkv.split((4, 4, 8), 1), layer.positions.split((4, 4, 8))
    g, out = layer.gates, torch.zeros(1, 16, 3, 6)
    scale = lambda norm, c, value: (value - norm.running_mean[c]) / (norm.running_var[c] + norm.eps)**0.5
    for head in range(2):
        for h in range(3):
            for i in range(6):
                terms = [[q[head, :, h, i] @ k[head, :, h, j], g[0] * (q[head, :, h, i] @ rq[:, i - j + 5]), g[1] * (k[head, :, h, j] @ rk[:, j - i + 5])] for j in range(6)]
                weights = torch.stack([sum(scale(layer.score_norm, 2 * t + head, term) for t, term in enumerate(row)) for row in terms]).softmax(0)
                for c in range(8):
                    value = g[2] * (weights * v[head, c, h]).sum(), g[3] * sum(weights[j] * rv[c, i - j + 5] for j in range(6))
                    out[0, 8 * head + c, h, i] = sum(scale(layer.out_norm, 2 * (8 * head + c) + s, value[s]) for s in range(2))
    torch.testing.assert_close(layer(x), out, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_patches_are_seen_one_by_one():
    net = create_model("medt", image_size=64, patch=16).eval()
    x = torch.randn(1, 3, 80, 60)
    together = net.patches(x)
    assert together.shape == (1, 16, 64, 60)  # 4 patches of 16 down, and 60 of 64 pixels across
    one = net.near(x[..., 16:32, 32:48])
    torch.testing.assert_close(together[..., 16:32, 32:48], one, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_patch_none_is_a_fourth_of_the_image():
    net = create_model("medt", image_size=64, patch=16).eval()
    x = torch.randn(1, 3, 64, 64)
    fixed = net(x)
    net.patch = None
    assert torch.equal(net(x), fixed)


def test_what_medt_never_uses_is_frozen():
    net = create_model("medt", image_size=32)
    frozen = {k for k, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {k for k, _ in net.named_parameters() if "unused" in k} and sum(dict(net.named_parameters())[k].numel() for k in frozen) == 35_553
    assert sum("gates" in k for k, p in net.named_parameters() if p.requires_grad) == 6


@torch.no_grad()
def test_positions_of_transunet_count():
    pytest.importorskip("timm")
    net, x = create_model("transunet", depth=1, dim=48, heads=3, image_size=64).eval(), torch.randn(1, 3, 64, 64)
    before = net(x)
    net.bottleneck[0].positions[:, :24, 1, 2] += 3  # half of the channels: had all grown alike, the LayerNorm would hide it
    assert not torch.allclose(net(x), before)
    assert net(torch.randn(1, 3, 48, 80)).shape == (1, 1, 48, 80)


def test_unext_learns_eight_phantoms_by_heart():
    scans = cn.make_phantom(8, size=64, seed=3)
    torch.manual_seed(41)
    model = create_model("unext")

    def stop_when_learnt(run): return run.history.best.get("iou", 0) < 0.92

    cn.fit(model, scans, scans, recipe="fast", epochs=150, batch_size=4, augment="none", sizes=None, ema=None, lr=4e-3,
           validate_every=5, amp=False, on_epoch=stop_when_learnt, device="cpu", progress=False)
    assert cn.evaluate(model, scans)["iou"] > 0.9


def test_asked_for_alone():
    "Neither the package nor CMUNeXt brings the zoo along, and UNeXt does not bring timm."
    code = ("import sys, cmunext_nb as cn; cn.create_model('cmunext_s'); assert not [m for m in sys.modules if 'zoo' in m]; "
            "cn.create_model('unext'); assert 'timm' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
