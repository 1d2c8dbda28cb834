"""ReceptiveFieldLab without a browser: every control, other people's networks, own images. The everyday path is checked in nbs/41_receptive_field_lab.ipynb."""
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from cmunext_nb.labs import ReceptiveFieldLab, png
from cmunext_nb.model import create_model
from cmunext_nb.phantom import make_phantom
from cmunext_nb.receptive_field import effective_receptive_field, receptive_field
from test_labs import alive, arrive, every, leaks, uploader

TINY = dict(dims=(4, 4, 8, 8, 8), depths=(1, 1, 1, 1, 1), kernel_sizes=(3, 3, 7, 7, 9))


class Theirs(nn.Module):
    "Somebody else's: a dict for an answer, squeeze-and-excitation, one pooling called twice."
    def __init__(self, channels=3):
        super().__init__()
        self.stem, self.deep, self.pool = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU()), nn.Conv2d(6, 6, 3, padding=1), nn.MaxPool2d(2)
        self.squeeze, self.head = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        y = self.pool(F.relu(self.deep(self.pool(self.stem(x)))))
        y = y * torch.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True)))
        return dict(out=F.interpolate(self.head(y), size=x.shape[2:], mode="bilinear"))


@pytest.fixture(scope="module")
def images(): return make_phantom(3, size=64, seed=21)[0]


@pytest.fixture
def lab(images):
    torch.manual_seed(0)
    return ReceptiveFieldLab(create_model("cmunext_s", **TINY), images)


def pixels(lab): return np.asarray(Image.open(io.BytesIO(lab.picture.value)))
def fine(lab): return "Not possible" not in lab.sentence.value


@pytest.mark.parametrize("heat", ["none", "logarithmic"])
@pytest.mark.parametrize("name, value", [("layer", "encoder.1"), ("layer", "logits"), ("row", 3), ("column", 60), ("image", 2), ("heat", "linear"), ("beside", "given"),
                                         ("K1", 9), ("K2", 1), ("K3", 3), ("K4", 11), ("K5", 5)])
def test_each_control_changes_the_picture_and_keeps_its_size(lab, heat, name, value):
    lab.put(heat=heat, layer="encoder.2" if name in ("K1", "K2", "K3") else "encoder.4")
    before, start = pixels(lab), lab.state[name]
    same = heat == "none" and name == "beside"  # the twin's box is the network's, but the title differs
    lab.controls[name].value = value
    assert fine(lab), lab.sentence.value
    assert (pixels(lab) != before).any() and pixels(lab).shape == before.shape == (420, 840, 3), same
    lab.controls[name].value = start
    assert (pixels(lab) == before).all()


def test_the_numbers_are_those_of_the_functions(lab, images):
    lab.put(layer="decoder.1", row=20, column=9)
    look, fields = lab.look("left"), receptive_field(lab.given, "decoder.1", 64, (5, 2))
    assert look.field == fields
    torch.testing.assert_close(look.erf, effective_receptive_field(lab.given, images[:1], "decoder.1", (5, 2)))
    assert f"{fields.height} x {fields.width}" in lab.words(**lab.state)


def test_a_slider_points_at_a_pixel_of_the_image_in_every_layer(lab):
    for layer, cell in (("stem", (63, 40)), ("encoder.1", (31, 20)), ("encoder.4", (3, 2)), ("logits", (63, 40))):
        assert lab.look("left", layer=layer, row=63, column=40, heat="none").field.pixel == cell
    assert lab.look("left", layer="encoder.4", row=63, column=40, heat="none").center == (56 + 2 - 2, 40)


def test_other_kernels_are_a_new_network_with_random_weights_and_it_is_said(lab):
    assert "random" not in lab.sentence.value.split("Right")[0]
    lab.controls["K5"].value = 7
    assert "weights are random" in lab.sentence.value and lab.look("left").field.height == 254
    net = lab.network(lab.look("left").key)
    assert net is not lab.given and net.encoder[4].blocks[0].mix_space.conv.kernel_size == (7, 7) and net.encoder[0].blocks[0].mix_space.conv.in_channels == 4
    lab.controls["K5"].value = 9
    assert lab.look("left").key == "given" and "weights are random" not in lab.sentence.value


@pytest.mark.once
def test_the_given_network_stays_what_it_was(images):
    model = create_model("cmunext_s", **TINY).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ReceptiveFieldLab(model, images).put(K5=5, row=3, layer="logits")
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and not any(m._forward_hooks for m in model.modules())


def test_the_menu_follows_own_blocks_and_depths(images):
    model = create_model("cmunext_s", dims=(4, 4, 4), depths=(1, 0, 1), kernel_sizes=(3, 5, 5))
    lab = ReceptiveFieldLab(model, images)
    assert [n for n in lab.state if n.startswith("K")] == ["K1", "K2", "K3"] and "encoder.2" in lab.layers and "local" not in lab.state
    assert fine(lab.put(K3=11)) and lab.look("left").field.height == receptive_field(create_model("cmunext_s", dims=(4, 4, 4), depths=(1, 0, 1), kernel_sizes=(3, 5, 11)), "encoder.2", 64).height


def test_the_static_twin_is_the_same_picture(lab):
    assert png(lab.figure()) == lab.picture.value
    assert png(lab.figure(row=3)) != lab.picture.value and lab.state["row"] == 32


def test_what_was_seen_is_not_computed_again(lab, monkeypatch):
    import cmunext_nb.labs.receptive_field as module
    calls = []
    real = module.effective_receptive_field
    monkeypatch.setattr(module, "effective_receptive_field", lambda *a: calls.append(a) or real(*a))
    lab.put(row=0)
    assert len(calls) == 2  # two networks, once each, for picture and words
    lab.put(row=32)
    lab.put(row=0, heat="linear")
    assert len(calls) == 2
    lab.put(heat="none", row=50)
    assert len(calls) == 2, "without heat no gradient is asked for"


@pytest.mark.once
def test_what_is_kept_is_bounded(lab):
    for row in range(0, 64): lab.look("left", layer="stem", row=row)
    for k in range(1, 21, 2): lab.look("left", K5=k, K4=1, heat="none")
    assert len(lab._heat) <= 64 and len(lab._nets) <= 8 and len(lab._fields) <= 64


@pytest.mark.once
def test_somebody_elses_network(images):
    lab = ReceptiveFieldLab(Theirs(), images)
    assert not any(n.startswith("K") for n in lab.state) and "given" not in [v for _, v in lab.controls["beside"].options]
    assert "pool" not in lab.layers and {"stem", "deep", "head", "logits"} <= set(lab.layers)
    lab.put(layer="logits")
    assert fine(lab) and "whole" in lab.sentence.value and lab.look("left").field.unbounded
    lab.controls["local"].value = True
    assert fine(lab) and not lab.look("left").field.unbounded


@pytest.mark.once
def test_two_networks_of_different_kind(images):
    lab = ReceptiveFieldLab(create_model("cmunext_s", **TINY), images, other=Theirs(channels=1))
    lab.put(beside="other")
    assert fine(lab) and lab.look("right").layer == "logits" and "has no layer encoder.4" in lab.sentence.value
    lab.put(layer="logits", row=9)
    assert fine(lab) and lab.look("right").erf.shape == (64, 64)


@pytest.mark.once
def test_other_libraries(images):
    vision = pytest.importorskip("torchvision")
    lab = ReceptiveFieldLab(vision.models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None), images)
    assert fine(lab) and len(lab.layers) <= 41 and "local" in lab.state
    for layer in (lab.layers[0], "logits"): assert fine(lab.put(layer=layer, local=True)), lab.sentence.value


@pytest.mark.once
def test_images_of_any_kind(tmp_path):
    model = create_model("cmunext_s", **TINY)
    colour = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "scan.png")
    lab = ReceptiveFieldLab(model, [tmp_path / "scan.png", colour[..., 0]])
    assert lab.pixels.shape == (2, 3, 40, 56) and lab.controls["row"].max == 39 and lab.controls["column"].max == 55
    assert fine(lab.put(row=39, column=55, image=1))
    small = ReceptiveFieldLab(model, [np.zeros((90, 80), np.uint8), np.zeros((33, 20), np.uint8)], size=(48, 64))
    assert small.pixels.shape == (2, 1, 48, 64)
    data = SimpleNamespace(images=make_phantom(2, 32, 3)[0], masks=None, names=["left", "right"])
    assert [n for n, _ in ReceptiveFieldLab(model, data).controls["image"].options] == ["left", "right"]


@pytest.mark.parametrize("call, words", [
    (lambda: ReceptiveFieldLab(create_model("cmunext_s", **TINY), []), "at least one"),
    (lambda: ReceptiveFieldLab(create_model("cmunext_s", **TINY), [np.zeros((32, 32), np.uint8), np.zeros((32, 40), np.uint8)]), "size"),
    (lambda: ReceptiveFieldLab(create_model("cmunext_s", **TINY), make_phantom(1, 32)[0]).figure(row=32), "outside"),
    (lambda: ReceptiveFieldLab(create_model("cmunext_s", **TINY), make_phantom(1, 32)[0]).figure(K5=8), "odd"),
    (lambda: ReceptiveFieldLab(create_model("cmunext_s", **TINY), make_phantom(1, 32)[0]).put(K6=3), "K6"),
    (lambda: ReceptiveFieldLab(create_model("cmunext_s", **TINY), make_phantom(1, 32)[0]).figure(layer="encodr.4"), "encoder.4")])
def test_mistakes_are_explained(call, words):
    with pytest.raises(ValueError, match=words): call()


def test_where_no_gradient_comes_through_the_box_is_still_there(lab):
    before = lab.picture.value
    for p in lab.given.encoder[4].parameters(): p.data.zero_()
    lab.controls["row"].value = 1
    assert fine(lab) and "no gradient" in lab.sentence.value and lab.picture.value != before
    lab.controls["layer"].value = "stem.conv"
    assert fine(lab) and "no gradient" not in lab.sentence.value


def test_an_error_is_said_and_the_last_picture_stays(images):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.broken = nn.Conv2d(3, 2, 3, padding=1), False
        def forward(self, x):
            if self.broken: raise RuntimeError("the network broke")
            return self.conv(x)
    lab = ReceptiveFieldLab(Breaks(), images)
    before, lab.given.broken = lab.picture.value, True
    lab.controls["row"].value = 1
    assert not fine(lab) and "the network broke" in lab.sentence.value and lab.picture.value == before
    lab.given.broken = False
    lab.controls["row"].value = 2
    assert fine(lab)


# an opened image

def file_of(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_opened_image_is_shown_and_forgotten(lab):
    opener = uploader(lab)
    before, noise = lab.picture.value, np.random.default_rng(1).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    there = set(alive())
    others = there - {w.model_id for w in every(lab)}
    arrive(opener, "secret.png", file_of(noise))
    assert not leaks(others) and lab.shown == png(lab.figure())
    assert fine(lab) and lab.state["image"] == 3 and lab.shown != before and lab.pixels.shape == (4, 3, 64, 64) and not opener.value
    arrive(opener, "again.png", file_of(noise[..., 0]))
    assert lab.state["image"] == 3 and len(lab.pixels) == 4 and lab.controls["image"].options[3][0] == "your image", "the second takes the first one's place"
    lab.forget()
    assert lab.state["image"] == 0 and len(lab.pixels) == 3 and lab.picture.value == before and set(alive()) == there
    arrive(opener, "notes.png", b"no picture")
    assert "Not possible" in lab.sentence.value and lab.picture.value == before
    lab.stop_saving()
    lab.forget()
    assert lab.picture.value == b"" and lab.shown == before and not leaks(others)


def test_a_network_that_learned_on_is_asked_again():
    net = nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.GELU(), nn.Conv2d(4, 1, 3, padding=1)).eval()
    lab = ReceptiveFieldLab(net, torch.randint(0, 255, (1, 1, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
    before = lab.look(layer="logits").erf
    assert lab.look(layer="logits").erf is before
    for p in net.parameters(): p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    after = lab.look(layer="logits").erf
    assert not torch.equal(after, before) and torch.equal(after, effective_receptive_field(net, lab.pixels, None, (12, 12)))


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_many_channels_are_drawn_and_a_picture_in_colour_is_refused(channels):
    lab = ReceptiveFieldLab(nn.Conv2d(channels, 1, 3, padding=1), torch.randint(0, 255, (2, channels, 24, 24), dtype=torch.uint8))
    for heat in ("logarithmic", "none"): assert "Not possible" not in lab.put(heat=heat).sentence.value
    arrive(uploader(lab), "a.png", file_of(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)))
    assert f"Not possible:</b> the image has 3 channels, the network takes {channels}" in lab.sentence.value and len(lab.names) == 2
    assert "Not possible" not in lab.put(image=1).sentence.value


@pytest.mark.parametrize("heat", ["none", "logarithmic"])
@pytest.mark.parametrize("place", [(32, 32), (0, 63), (63, 0)])
def test_a_field_larger_than_the_panel_still_looks_large(lab, heat, place):
    "Beyond the margin its dashed box left the panel, and the wider field looked like one that ends at the border. Its bar stopped in silence."
    figure = lab.figure(heat=heat, row=place[0], column=place[1])
    look, (panel, _, curves) = lab.look("left", heat=heat, row=place[0], column=place[1]), figure.axes
    dashed, = [p for p in panel.patches if p.get_linestyle() not in ("-", "solid")]
    (x, y), (x1, y1) = dashed.get_xy(), np.add(dashed.get_xy(), (dashed.get_width(), dashed.get_height()))
    assert panel.get_xlim()[0] < x and x1 < panel.get_xlim()[1] and panel.get_ylim()[1] < y and y1 < panel.get_ylim()[0]
    arrows = "".join(sorted(line.get_marker() for line in panel.lines if line.get_marker() in tuple("^<v>")))
    assert look.field.height == 286 and arrows == "".join(sorted("^<v>")) and [t.get_text() for t in panel.texts] == ["286 px in all"]
    assert [t.get_text() for t in curves.texts][:2] == ["286 px >"] * 2
    small = lab.figure(heat=heat, layer="encoder.0")
    assert not any(line.get_marker() in tuple("^<v>") for line in small.axes[0].lines) and not small.axes[0].texts and "px >" not in str([t.get_text() for t in small.axes[2].texts])


def test_the_twin_beside_other_kernels_is_said_to_be_the_given_networks(lab):
    assert "Right, its twin, random weights" in lab.words(**lab.state)
    lab.put(K5=21, heat="none")
    figure = lab.figure()
    assert "Right, given kernels 3 3 7 7 9, random weights" in lab.words(**lab.state) and "twin" not in str([t.get_text() for t in figure.texts])


def test_a_network_that_must_be_built_is_announced(lab):
    said = []
    lab.sentence.observe(lambda change: said.append("Computing ..." in change["new"]), "value")
    lab._took = 0
    lab.put(K5=11)
    assert said == [True, False]
    lab._took = 0
    lab.put(K5=9)
    lab._took = 0
    lab.put(K5=11)  # kept
    assert said == [True] + [False] * 3
