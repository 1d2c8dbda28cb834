"""What each stage carries: any network, any image, stated rules, nothing changed. The everyday path is checked in nbs/23_features.ipynb."""
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cmunext_nb.features import _auc, _held_out, channel_auc, feature_maps, fusion_maps, layer_auc, silenced
from cmunext_nb.model import create_model
from cmunext_nb.phantom import make_phantom

TINY = dict(dims=(4, 8, 8), depths=(1, 1, 1), kernel_sizes=(3, 3, 5))


def tiny(seed=0, **overrides):
    torch.manual_seed(seed)
    return create_model("cmunext_s", **{**TINY, **overrides})


@pytest.fixture(scope="module")
def phantoms(): return make_phantom(4, size=64, seed=3)


def state(model):
    return ([m.training for m in model.modules()], [(p.requires_grad, p.grad) for p in model.parameters()], [len(m._forward_hooks) for m in model.modules()])


# feature_maps

@pytest.mark.parametrize("layer, channels, side", [("stem", 4, 64), ("encoder.1", 8, 32), ("encoder.2.blocks.0", 8, 16), ("head", 1, 64)])
def test_layers_by_name_and_module(phantoms, layer, channels, side):
    model = tiny().train()
    before = state(model)
    look = feature_maps(model, phantoms[0][0], layer, channels=None)
    assert look.maps.shape == (channels, side, side) and look.total == channels and look.maps.dtype == np.float32 and look.layer == layer
    assert np.array_equal(feature_maps(model, phantoms[0][0], model.get_submodule(layer), channels=None).maps, look.maps)
    assert state(model) == before


def test_orders_are_what_they_say(phantoms):
    model, image = tiny(), phantoms[0][0]
    every = feature_maps(model, image, "encoder.1", channels=None, order="index")
    assert every.channels == list(range(8)) and every.rule == "the first ones"
    for order, value in (("variance", every.maps.var((1, 2))), ("energy", (every.maps ** 2).mean((1, 2)))):
        assert feature_maps(model, image, "encoder.1", 3, order).channels == np.argsort(-value, kind="stable")[:3].tolist()
    assert feature_maps(model, image, "encoder.1", 2, "index", among=[6, 2, 5]).channels == [6, 2]
    assert feature_maps(model, image, "encoder.1", channels=[7, 0]).rule == "chosen by the caller"
    assert len(feature_maps(model, image, "encoder.1", channels=99).channels) == 8


@pytest.mark.parametrize("image", [np.zeros((40, 33), np.uint8), np.random.default_rng(0).integers(0, 256, (50, 34, 3), dtype=np.uint8),
                                   np.full((20, 90), 40000, np.uint16), Image.new("RGBA", (31, 47)), torch.rand(1, 64, 48)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_all_kinds(image, channels):
    look = feature_maps(tiny(in_channels=channels), image, "stem")
    assert np.isfinite(look.maps).all() and look.maps.shape[-2:] == look.image.shape[-2:]
    assert look.figure().axes and feature_maps(tiny(in_channels=channels), image, size=32).image.shape[-2:] == (32, 32)


def test_the_deepest_layer_is_the_default(phantoms): assert feature_maps(tiny(), phantoms[0][0]).layer == "encoder.2"


@pytest.mark.parametrize("call, words", [
    (lambda m, x: feature_maps(m, x, "stem"), "one image"), (lambda m, x: feature_maps(m, x[0], "steam"), "Did you mean"),
    (lambda m, x: feature_maps(m, x[0], nn.ReLU()), "no part"), (lambda m, x: feature_maps(m, x[0], "stem", order="beauty"), "variance"),
    (lambda m, x: feature_maps(m, x[0], "stem", channels=[4]), "0 to 3"), (lambda m, x: feature_maps(m, x[0], "stem", channels=[-1]), "0 to 3"),
    (lambda m, x: feature_maps(m, x[0], "stem", channels=[]), "no channel was asked for"), (lambda m, x: feature_maps(m, x[0], "stem", among=range(2, 6)), "channel 4"),
    (lambda m, x: feature_maps(m, x[0], "stem", channels=0), "1 or more"), (lambda m, x: fusion_maps(m, x[0], 5), "decoder.5"),
    (lambda m, x: channel_auc(m, x, x[:2], "stem"), "4 images and 2 masks"), (lambda m, x: layer_auc(m, x[:1], x[:1], ["stem"]), "two or more"),
    (lambda m, x: channel_auc(m, x, x.repeat(1, 3, 1, 1), "stem"), "(N, 1, H, W)")])
def test_mistakes_are_named(phantoms, call, words):
    model = tiny()
    before = state(model)
    with pytest.raises(ValueError) as error: call(model, phantoms[0])
    assert words in str(error.value) and state(model) == before


@pytest.mark.parametrize("empty, word", [((0, 1), "first half"), ((2, 3), "second half"), ((0, 1, 2, 3), "first half")])
def test_a_half_without_lesions_is_said(phantoms, empty, word):
    "A channel chosen on nothing would be the first one, with its sign turned."
    images, masks = phantoms[0], phantoms[1].clone()
    for value in (0, 1):  # neither is anything to tell apart where all is lesion
        masks[list(empty)] = value
        with pytest.raises(ValueError, match=word): layer_auc(tiny(), images, masks, ["stem"])
    masks = phantoms[1].clone()
    masks[0] = 0
    assert 0 <= layer_auc(tiny(), images, masks, ["stem"])["stem"][1] <= 1  # one of each half is enough


def test_a_layer_without_maps():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    with pytest.raises(ValueError, match="no map"): feature_maps(net, np.zeros((16, 16), np.uint8), "1")
    with pytest.raises(ValueError, match="no map"):
        with silenced(net, "1"): net(torch.zeros(1, 1, 8, 8))
    assert not net[1]._forward_hooks


def test_a_constant_image_has_a_picture():
    look = feature_maps(tiny(), np.zeros((32, 32), np.uint8), "stem")
    assert look.figure().axes and look.figure(limits=(0, 1), columns=3, mask=np.ones((32, 32))).axes


def other_networks():
    found = []
    try:
        from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large
        found.append(("torchvision", lambda: deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None), "backbone.4"))
    except ImportError: pass
    try:
        import segmentation_models_pytorch as smp
        found.append(("smp", lambda: smp.Unet("resnet18", encoder_weights=None), "encoder.layer2"))
    except ImportError: pass
    return found


@pytest.mark.parametrize("name, make, layer", other_networks(), ids=lambda v: v if isinstance(v, str) else "")
def test_networks_of_other_libraries(phantoms, name, make, layer):
    images, masks = phantoms
    model = make().train()
    before = state(model)
    assert feature_maps(model, images[0], layer, 4).maps.shape[0] == 4 and feature_maps(model, images[0]).maps.ndim == 3
    assert layer_auc(model, images, masks, [layer])[layer][1] >= 0
    with silenced(model, layer), torch.no_grad(): model.eval()(torch.zeros(1, 3, 64, 64))
    model.train()
    assert state(model) == before


# Skip-Fusion

@pytest.mark.parametrize("stage", [0, 1])
def test_halves_see_one_source_each(phantoms, stage):
    model = tiny().eval()
    parts = fusion_maps(model, phantoms[0][0], stage, channels=None)
    half = len(parts["skip"].channels)
    assert set(parts["skip"].channels) == set(range(half)) and set(parts["up"].channels) == set(range(half, 2 * half))
    with torch.no_grad(): model.decoder[stage].up.conv.conv.weight.mul_(-2)  # another map from below
    other = fusion_maps(model, phantoms[0][0], stage, channels=None)
    sort = lambda look: look.maps[np.argsort(look.channels)]
    assert np.array_equal(sort(other["skip"]), sort(parts["skip"])) and not np.allclose(sort(other["up"]), sort(parts["up"]))


def test_another_fusion_is_refused(phantoms):
    class Plain(nn.Module):
        def __init__(self, channels, act=None, norm=None): super().__init__(); self.conv = nn.Conv2d(2 * channels, channels, 1)
        def forward(self, skip, up): return self.conv(torch.cat([skip, up], 1))
    with pytest.raises(ValueError, match="SkipFusion"): fusion_maps(tiny(fusion=Plain), phantoms[0][0], 0)


# AUC

def brute(values, share):
    wins = weight = 0.0
    for a, s in zip(values, share):
        for b, t in zip(values, share):
            wins += s * (1 - t) * ((a > b) + (a == b) / 2)
            weight += s * (1 - t)
    return wins / weight


@pytest.mark.parametrize("seed", range(5))
def test_auc_against_all_pairs(seed):
    rng = np.random.default_rng(seed)
    values, share = rng.integers(0, 6, 40) / 4, rng.choice([0, 0.25, 1], 40)
    assert _auc(torch.tensor(values), torch.tensor(share)) == pytest.approx(brute(values, share), abs=1e-12)


def test_auc_agrees_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    values, share = torch.randn(500).round(decimals=1), (torch.rand(500) < 0.2)
    assert _auc(values, share.float()) == pytest.approx(metrics.roc_auc_score(share, values))


def test_empty_masks_are_left_out(phantoms):
    images, masks = phantoms[0], phantoms[1].clone()
    masks[1] = 0
    scores = channel_auc(tiny(), images, masks, "encoder.1")
    assert scores[1].isnan().all() and not scores[[0, 2, 3]].isnan().any()
    assert 0 <= layer_auc(tiny(), images, masks, ["encoder.1"])["encoder.1"][1] <= 1


def test_channel_and_sign_are_chosen_on_the_first_half():
    scores = torch.tensor([[0.2, 0.6], [0.1, 0.6], [0.9, 0.6], [0.7, 0.6]])
    best, held = _held_out(scores)
    assert best == 0 and held == pytest.approx(1 - 0.8)  # the sign of the first half, though the second half says otherwise


# silenced

def test_silence_and_afterwards(phantoms):
    model, x = tiny().eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        with silenced(model, model.encoder[1], range(3)) as same_model: after = model(x)
        assert same_model is model and not torch.equal(before, after) and torch.equal(model(x), before)
        with silenced(model, "stem"): flat = feature_maps(model, phantoms[0][0], "stem", None).maps
        assert np.ptp(flat, axis=(1, 2)).max() == 0
    with pytest.raises(KeyError):
        with silenced(model, "stem"): raise KeyError
    assert not model.stem._forward_hooks
