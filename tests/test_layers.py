"Layers of any network: named, watched and left as they were. The everyday path is checked in nbs/19_layers.ipynb."
import numpy as np
import pytest
import torch

from cmunext_nb.cam import seg_cam
from cmunext_nb.cost import cost_table
from cmunext_nb.data import load_dataset
from cmunext_nb.features import feature_maps
from cmunext_nb.layers import as_images, as_logits, deepest_layer, find_layer, layer_names, randomized, untouched, watch
from cmunext_nb.model import create_model
from cmunext_nb.phantom import make_phantom
from cmunext_nb.predict import predict
from cmunext_nb.receptive_field import effective_receptive_field


def deeplab():
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large
    return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)


def smp_unet():
    import segmentation_models_pytorch as smp
    return smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=1)


NETWORKS = dict(cmunext_s=lambda: create_model("cmunext_s"), one_channel=lambda: create_model("cmunext_s", in_channels=1),
                deeplab=deeplab, smp_unet=smp_unet)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    return NETWORKS[request.param]()


@pytest.fixture(scope="module")
def images(): return make_phantom(2, size=64, seed=1)[0]


def fingerprint(model):
    return ([(n, m.training, len(m._forward_hooks)) for n, m in model.named_modules()],
            [(n, p.requires_grad, None if p.grad is None else id(p.grad), p.sum().item()) for n, p in model.named_parameters()],
            [(n, b.float().sum().item()) for n, b in model.named_buffers()])


def test_looking_leaves_no_trace(network, images):
    network.train()
    list(network.parameters())[0].requires_grad_(False)
    list(network.parameters())[1].grad = torch.ones_like(list(network.parameters())[1])
    before = fingerprint(network)
    _, x = as_images(network, images)
    with pytest.raises(RuntimeError, match="in between"), untouched(network), watch(network, layer_names(network)[0]):
        network(x)
        raise RuntimeError("in between")
    deepest_layer(network, x)
    randomized(network, images)
    assert fingerprint(network) == before


def test_every_layer_is_found_by_name_and_by_module(network):
    for name in layer_names(network):
        found, module = find_layer(network, name)
        assert found == name and find_layer(network, module)[1] is module


def wrapped(kind):
    "A small network in one of torch's wrappers. The compiled one has already run, frozen and without hooks: its code knows none."
    torch.manual_seed(0)  # else, once in a while, every channel of the looked-at place is cut off
    model = create_model("cmunext_s", dims=(4, 8, 8), depths=(1, 1, 1), kernel_sizes=(3, 3, 5)).eval().requires_grad_(False)
    if kind != "compiled": return torch.nn.DataParallel(model) if kind == "several" else torch.optim.swa_utils.AveragedModel(model)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad(): compiled(torch.zeros(1, 3, 64, 64))
    compiled(torch.zeros(1, 3, 64, 64).clone(memory_format=torch.channels_last).requires_grad_())
    return compiled


@pytest.mark.parametrize("kind, word", [("several", "module."), ("averaged", "module."), ("compiled", "_orig_mod.")])
def test_a_wrapper_changes_no_name(kind, word, images):
    model = wrapped(kind)
    inside = getattr(model, word[:-1])
    assert layer_names(model) == layer_names(inside) and find_layer(model, inside.encoder[1]) == ("encoder.1", inside.encoder[1])
    assert find_layer(model, word + "encoder.1") == find_layer(model, "encoder.1") == find_layer(inside, "encoder.1")
    with pytest.raises(ValueError, match="Did you mean 'encoder"): find_layer(model, "encodr.1")
    assert deepest_layer(model, as_images(model, images)[1]) == "encoder.2"
    with untouched(inside), watch(model, word + "encoder.1") as seen: inside(as_images(model, images)[1])
    assert list(seen) == [word + "encoder.1"]
    for look in (lambda m: seg_cam(m, images[0], "encoder.1", (5, 5)).raw, lambda m: seg_cam(m, images[0], region=(5, 5)).raw, lambda m: feature_maps(m, images[0], "encoder.1").maps,
                 lambda m: feature_maps(m, images[0]).maps, lambda m: effective_receptive_field(m, images[:1], "encoder.1")):
        np.testing.assert_allclose(look(model), look(inside), rtol=1e-4, atol=1e-6)
    assert cost_table(model, 64)[0] == cost_table(inside, 64)[0]


def test_the_deepest_layer_has_a_map(network, images):
    _, x = as_images(network, images)
    name = deepest_layer(network, x)
    with untouched(network), watch(network, name) as seen, torch.no_grad(): logits = as_logits(network(x))
    assert 1 < seen[name].shape[-1] < logits.shape[-1]


@pytest.mark.parametrize("make, expected", [(NETWORKS["cmunext_s"], "encoder.4"), (smp_unet, "encoder.layer4")])
def test_the_deepest_layer_is_the_bottleneck(make, expected, images):
    model = make()
    assert deepest_layer(model, as_images(model, images)[1]) == expected


def test_gradients_of_layers_are_to_be_had(network, images):
    _, x = as_images(network, images)
    name = deepest_layer(network, x)
    with untouched(network), watch(network, name) as seen:
        score = as_logits(network(x.requires_grad_())).sum()
        gradient, = torch.autograd.grad(score, seen[name])
    assert gradient.shape == seen[name].shape and gradient.abs().max() > 0


def test_a_wrong_layer_is_answered_with_names_that_exist():
    for model, wrong, near in ((create_model("cmunext_s"), "decoder.O", "decoder.0"), (deeplab(), "backbone.61", "backbone")):
        with pytest.raises(ValueError, match=near) as error: find_layer(model, wrong)
        assert wrong in str(error.value) and len(str(error.value)) < 2000


def test_random_twins_differ_and_repeat(network, images):
    a, b, c = randomized(network, images, seed=1), randomized(network, images, seed=1), randomized(network, images, seed=2)
    weights = lambda m: torch.cat([p.flatten() for p in m.parameters() if p.ndim > 1])
    assert torch.equal(weights(a), weights(b)) and not torch.equal(weights(a), weights(c))
    assert (weights(a) != weights(network)).float().mean() > 0.99 and not a.training
    _, x = as_images(a, images)
    with torch.no_grad(): assert torch.isfinite(as_logits(a(x))).all()


def test_random_twins_leave_the_global_generator_alone(images):
    model = create_model("cmunext_s")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    randomized(model, images)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("given, shape", [
    (lambda i: i, (2, 3, 64, 64)), (lambda i: i[0], (1, 3, 64, 64)), (lambda i: [i[0], i[1, 0].numpy()], (2, 3, 64, 64)),
    (lambda i: i.float() / 255, (2, 3, 64, 64)), (lambda i: load_dataset("phantom", size=32)[1], (16, 3, 32, 32))])
def test_images_of_any_kind(given, shape, images):
    pixels, x = as_images(create_model("cmunext_s"), given(images))
    assert x.shape == shape and pixels.dtype == torch.uint8 and pixels.shape[0] == shape[0]


def test_colour_becomes_grey_for_a_network_of_one_channel():
    pixels, x = as_images(create_model("cmunext_s", in_channels=1), torch.randint(255, (3, 32, 32)).byte())
    assert x.shape == (1, 1, 32, 32) and pixels.shape == (1, 1, 32, 32)


def test_several_sizes_need_a_size(images):
    model = create_model("cmunext_s")
    with pytest.raises(ValueError, match="give a size"): as_images(model, [images[0], images[0, :, :40]])
    assert as_images(model, [images[0], images[0, :, :40]], size=48)[1].shape == (2, 3, 48, 48)
    assert as_images(model, images, size=(32, 48))[1].shape == (2, 3, 32, 48)


@pytest.mark.parametrize("size", ["trained", 40, np.int64(48), (32, 48), None])
def test_the_network_sees_what_it_sees_in_predict(size, images):
    seen, model = [], create_model("cmunext_s").eval()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    predict(model, images, size=size)
    pixels, x = as_images(model, images, size)
    assert torch.equal(x, seen[0]) and pixels.dtype == torch.uint8 and pixels.shape[-2:] == x.shape[-2:]


@pytest.mark.parametrize("answer", [lambda t: t, lambda t: dict(out=t, aux=t + 1), lambda t: dict(logits=t), lambda t: (t, t + 1), lambda t: [t],
                                    lambda t: type("Output", (), dict(logits=t))()])
def test_logits_are_found(answer):
    t = torch.zeros(1, 1, 2, 2)
    assert as_logits(answer(t)) is t


@pytest.mark.parametrize("answer", [None, 3.0, {}, (), "mask"])
def test_no_logits_are_an_error_that_says_so(answer):
    with pytest.raises(TypeError, match="expected logits"): as_logits(answer)
