"The block lab without a browser: every control moves the picture, its numbers are those of the library's modules, and bad input is named."
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

widgets = pytest.importorskip("ipywidgets")

from cmunext_nb.block import CMUNeXtBlock
from cmunext_nb.labs import block as lab_block, png
from cmunext_nb.labs.block import KINDS, BlockLab, Sheet, _width, hand_block, hand_kernels, maps_entering, small_picture, step_cost, trace_block, window_step
from cmunext_nb.layers import _measure_norms, as_images
from cmunext_nb.model import create_model
from test_labs import alive, arrive, every, leaks, uploader

TINY = dict(dims=(4, 4, 8), depths=(1, 2, 1), kernel_sizes=(3, 5, 3))


def tiny(seed=0, **overrides):
    "A small network with four blocks and random weights, in which something arrives at each of them."
    torch.manual_seed(seed)
    model = create_model("cmunext_s", **{**TINY, **overrides})
    return _measure_norms(model, torch.randn(4, model.config["in_channels"], 32, 32)).eval()


def spot(h=40, w=60):
    y, x = np.mgrid[:h, :w]
    return np.exp(-((x - w / 2) ** 2 + (y - h / 2 + 2) ** 2) / 90)


@pytest.fixture(scope="module")
def net(): return tiny()


@pytest.fixture
def lab(net): return BlockLab(spot(), model=net)


def said(lab): return lab.sentence.value


# the numbers

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel_size", [3, 9])
def test_every_pixel_is_the_library_s(lab, kind, kernel_size):
    look = lab.look(**{**lab.state, "kernel": kind, "kernel_size": kernel_size})
    block, x = look.block, look.maps[None]
    with torch.no_grad():
        space, both, sums = block.mix_space(x), block(x), block.mix_space.conv(x)[0]
    assert (look.trace["space"] - space[0]).abs().max() < 1e-6 and (look.trace["project_norm"] - both[0]).abs().max() < 1e-6
    for c, row, column in np.ndindex(*sums.shape):
        assert abs(window_step(look.maps[c], look.kernel[c], row, column)[1].sum() - sums[c, row, column]) < 1e-6


def test_a_trained_block_sees_what_it_sees_in_the_network(net):
    torch.manual_seed(1)
    image = torch.randint(0, 256, (1, 24, 24), dtype=torch.uint8)
    lab, caught = BlockLab(image, model=net), {}
    hook = net.encoder[1].blocks[1].register_forward_hook(lambda m, i, o: caught.update(out=o[0]))
    with torch.no_grad(): net(as_images(net, image, 24)[1])
    hook.remove()
    look = lab.look(**{**lab.state, "kernel": "encoder.1.blocks.1"})
    assert look.trace["project_norm"].shape == (4, 12, 12) and (look.trace["project_norm"] - caught["out"]).abs().max() < 1e-5


def test_residual_off_leaves_everything_else():
    block, x = CMUNeXtBlock(3, 5).eval(), torch.randn(3, 8, 8)
    on, off = trace_block(block, x), trace_block(block, x, residual=False)
    assert torch.equal(on["norm"], off["norm"]) and torch.allclose(on["space"] - off["space"], x, atol=1e-6)


def test_mode_and_gradients_are_as_before(net):
    net.train()
    net.zero_grad()
    lab = BlockLab(spot(), model=net, kernel="encoder.0.blocks.0", part="channels")
    assert net.training and all(m.training for m in net.modules()) and all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules()) and "Not possible" not in said(lab)
    net.eval()


def test_the_random_state_is_left_alone():
    x = torch.rand(4, 9, 9)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    hand_block(hand_kernels("random", 5, 4), x)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("k, c, e", [(3, 2, 1), (7, 16, 4), (9, 8, 8)])
def test_costs_are_the_weights(k, c, e):
    block, cost = CMUNeXtBlock(c, k, e), step_cost(k, c, e)
    mix = block.mix_channels
    assert cost == dict(depthwise=block.mix_space.conv.weight.numel(), pointwise=mix.expand.weight.numel() + mix.project.weight.numel(),
                        ordinary=nn.Conv2d(c, c, k).weight.numel())


# the controls

MOVES = [dict(part="channels"), dict(kernel="blur"), dict(kernel="spot"), dict(kernel="identity"), dict(kernel="random"), dict(kernel="encoder.1.blocks.0"),
         dict(kernel_size=3), dict(kernel_size=9), dict(channels=8), dict(channels=16), dict(expansion=1), dict(expansion=8), dict(residual=False), dict(channel=1),
         dict(row=0), dict(column=11)]


@pytest.mark.parametrize("move", MOVES, ids=str)
@pytest.mark.parametrize("part", ["space", "channels"])
def test_every_control_changes_picture_and_words(lab, part, move):
    if move == dict(part=part): part = "space"
    lab.put(part=part)
    before = lab.picture.value, said(lab)
    (name, value), = move.items()
    lab.controls[name].value = value
    assert lab.picture.value != before[0] and "Not possible" not in said(lab)
    assert name in ("channels", "expansion", "part") or said(lab) != before[1]
    assert Image.open(io.BytesIO(lab.picture.value)).size == (840, 480)


def test_every_control_is_labelled(lab):
    for control in lab.controls.values(): assert control.description
    row = next(w for w in every(lab) if lab.play in getattr(w, "children", ()))
    assert "Play" in row.children[0].value


def test_the_figure_is_the_picture(lab):
    assert png(lab.figure()) == lab.picture.value
    assert png(lab.figure(row=2)) != lab.picture.value and lab.state["row"] == 5
    lab.put(row=2)
    assert png(lab.figure()) == lab.picture.value


def test_the_player_steps_and_is_moved_along(lab):
    lab.put(row=3, column=11)
    assert lab.play.value == 3 * 12 + 11
    lab.play.value += 1
    assert (lab.state["row"], lab.state["column"]) == (4, 0)
    lab.put(kernel="encoder.0.blocks.0")
    assert lab.play.max == 16 * 16 - 1 and lab.play.value == 4 * 16


def test_controls_follow_the_block(lab):
    lab.put(channels=16, channel=15)
    lab.put(kernel="encoder.0.blocks.0", row=11)
    assert lab.state["channel"] == 3 and lab.controls["row"].max == 15 and all(lab.controls[n].disabled for n in ("kernel_size", "channels", "expansion"))
    lab.put(row=15, kernel="edge")
    assert lab.state["row"] == 11 and not lab.controls["kernel_size"].disabled and "Not possible" not in said(lab)


def test_words_tell_the_step(lab):
    lab.put(kernel_size=3, row=0, column=0)
    look = lab.look(**lab.state)
    for text in ("5 of its cells lie outside", "9 products", f"{look.trace['sum'][0, 0, 0]:.3f}".replace("-", "−"), "1 x 9 = 9 MACs", "take 36"): assert text in said(lab)
    lab.put(residual=False)
    assert "no residual" in said(lab)
    lab.put(part="channels", expansion=2)
    for text in ("No neighbour", "2 x 8 x 4 = 64 MACs", "column 0 of matrix 1"): assert text in said(lab)


def test_one_image_only_is_drawn_for_a_step(lab, monkeypatch):
    drawn = []
    monkeypatch.setattr(lab_block, "_draw_space", lambda sheet, look: drawn.append(look.at))
    for name, value in (("row", 7), ("kernel", "encoder.0.blocks.0"), ("channels", 8)): lab.controls[name].value = value
    lab.put(kernel="edge", channels=2, column=0)
    assert len(drawn) == 4


# images, kernels and networks of others

@pytest.mark.parametrize("image", [np.zeros((300, 500), np.uint8), np.random.default_rng(0).random((90, 40, 3)), torch.zeros(1, 17, 17, dtype=torch.uint8),
                                   Image.new("RGBA", (33, 20), "red"), np.full((64, 64), 40000, np.uint16)], ids=["flat", "colour", "tensor", "pil", "deep"])
def test_images_of_any_kind(net, image):
    lab = BlockLab(image, model=net)
    assert lab.grid.shape == (12, 12) and "Not possible" not in said(lab)
    lab.put(kernel="encoder.1.blocks.0", part="channels")
    assert "Not possible" not in said(lab)


@pytest.mark.parametrize("shape", [(3, 3), (5, 9), (16, 4)])
def test_small_images_stay_as_they_are(net, shape):
    image = np.random.default_rng(0).random(shape).round(1)
    lab = BlockLab(image, model=net, kernel_size=9)
    assert lab.grid.shape == shape and np.abs(lab.grid.numpy() - image).max() < 1 / 255
    assert (lab.controls["row"].max, lab.controls["column"].max) == (shape[0] - 1, shape[1] - 1)
    with pytest.raises(ValueError, match=f"row=99 cannot be chosen: its control would take {shape[0] - 1}"): lab.put(row=99, column=99)
    lab.put(row=shape[0] - 1, column=shape[1] - 1)
    assert (lab.state["row"], lab.state["column"]) == (shape[0] - 1, shape[1] - 1)
    for kernel in ("encoder.1.blocks.0", "edge"):
        lab.put(kernel=kernel, part="channels")
        lab.put(part="space")
        assert "Not possible" not in said(lab)


def test_the_middle_is_cut_out():
    wide = np.zeros((20, 60))
    wide[:, 20:40] = 1
    assert small_picture(wide)[1].min() > 0.999


@pytest.mark.parametrize("kernel", [np.eye(5), [[0, 1, 0], [1, -4, 1], [0, 1, 0]], torch.randn(6, 3, 3), nn.Conv2d(4, 4, 9, groups=4).weight, np.ones((15, 15)), [[2]]],
                         ids=["eye", "list", "bank", "layer", "largest", "one"])
def test_kernels_of_the_reader(net, kernel):
    lab = BlockLab(spot(), kernel, net)
    look = lab.look(**lab.state)
    w = torch.as_tensor(np.asarray(kernel.detach() if isinstance(kernel, torch.Tensor) else kernel), dtype=torch.float32)
    w = w.reshape(-1, *w.shape[-2:])
    assert lab.state["kernel"] == "own" and lab.controls["kernel_size"].disabled and "Not possible" not in said(lab)
    assert torch.equal(look.kernel, w[torch.arange(4) % len(w)])
    lab.put(kernel="edge")
    assert not lab.controls["kernel_size"].disabled


@pytest.mark.parametrize("options, words", [
    (dict(kernel=np.ones((4, 4))), ["odd", "4"]), (dict(kernel=np.ones((3, 5))), ["(3, 5)"]), (dict(kernel=np.ones((17, 17))), ["17 x 17", "15 x 15"]),
    (dict(kernel=np.ones(3)), ["(3,)"]), (dict(kernel=np.ones((2, 2, 3, 3))), ["(2, 2, 3, 3)"]), (dict(kernel=[[np.nan]]), ["NaN"]), (dict(kernel="sharp"), ["sharp", "edge"]),
    (dict(kernel_size=4), ["kernel_size=4", "3, 5, 7, 9"]), (dict(image=np.zeros((2, 9))), ["9 x 2", "3"]), (dict(image="nowhere.png"), ["nowhere.png"]), (dict(speed=2), ["speed"])])
def test_bad_input_is_named(net, options, words):
    with pytest.raises((ValueError, FileNotFoundError)) as caught: BlockLab(**{"image": spot(), "model": net, **options})
    for word in words: assert word in str(caught.value)


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match="Sequential.*kernel"): BlockLab(model=nn.Sequential(nn.Conv2d(3, 1, 3)))


def test_a_static_twin_that_cannot_be(lab):
    for values, words in ((dict(channel=4), ["channel=4", "0 to 3"]), (dict(row=12), ["row=12"]), (dict(column=-1), ["column=-1"]), (dict(kernel_size=4), ["4"]), (dict(kernel="own"), ["own"])):
        with pytest.raises(ValueError) as caught: lab.figure(**values)
        for word in words: assert word in str(caught.value)


def test_an_error_becomes_the_sentence_and_the_picture_stays(lab, net):
    before = lab.picture.value
    forward = net.stem.forward
    try:
        net.stem.forward = lambda x: (_ for _ in ()).throw(RuntimeError("out of memory"))
        lab.controls["kernel"].value = "encoder.0.blocks.0"
    finally: net.stem.forward = forward
    assert "Not possible" in said(lab) and "out of memory" in said(lab) and lab.picture.value == before
    lab.controls["kernel"].value = "blur"
    assert "Not possible" not in said(lab) and lab.picture.value != before


def test_an_unused_block_says_so(net):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = net, CMUNeXtBlock(4)
        def forward(self, x): return self.used(x)
    with pytest.raises(ValueError, match="never used"): maps_entering(Two(), "spare", np.zeros((20, 20)))
    lab = BlockLab(spot(), model=Two(), kernel="used.encoder.0.blocks.0")
    lab.put(kernel="spare")
    assert "never used" in said(lab)


@pytest.mark.parametrize("options", [dict(in_channels=1), dict(act=nn.ReLU), dict(norm=nn.Identity), dict(norm=lambda c: nn.GroupNorm(1, c))], ids=["grey", "relu", "no_norm", "groups"])
def test_other_networks(options):
    lab = BlockLab(np.random.default_rng(0).random((30, 30)), model=tiny(**options), kernel="encoder.1.blocks.1")
    for part in ("space", "channels"):
        lab.put(part=part)
        assert "Not possible" not in said(lab)


# uploads

def png_bytes(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_an_uploaded_image_is_taken_and_leaves_the_widget(lab):
    lab.put(kernel="encoder.1.blocks.0")
    before, button, there = lab.picture.value, uploader(lab), set(alive())
    others = there - {w.model_id for w in every(lab)}
    arrive(button, "secret.png", png_bytes(np.random.default_rng(3).integers(0, 255, (50, 30), dtype=np.uint8)))
    assert lab.shown == png(lab.figure()) != before and not leaks(others) and "Not possible" not in said(lab)
    state = button.get_state()
    assert not button.value and not state.get("value") and not state.get("data")
    for bad, why in ((b"no picture", "The file is not an image"), (png_bytes(np.zeros((2, 2), np.uint8)), "2 x 2")):
        picture = lab.shown
        arrive(button, "secret.png", bad)
        assert "Not possible" in said(lab) and why in said(lab) and lab.shown == picture and not leaks(others)
    row = lab.state["row"]
    lab.put(row=0)
    assert "Not possible" not in said(lab)
    lab.forget()
    assert lab.put(row=row).picture.value == lab.shown == before and set(alive()) == there
    lab.stop_saving()
    lab.forget()
    assert lab.picture.value == b"" and lab.shown == before and not leaks(others)


def test_a_smaller_upload_keeps_the_place_every(lab):
    lab.put(row=11, column=11)
    arrive(uploader(lab), "four.png", png_bytes(np.arange(20, dtype=np.uint8).reshape(4, 5) * 9))
    assert (lab.state["row"], lab.state["column"]) == (3, 4) and lab.play.max == 19 and "Not possible" not in said(lab)


def test_a_channel_beyond_the_slider_is_reached(net):
    "The block and its number of channels are put before the place."
    assert BlockLab(model=net, channels=16, channel=15).state["channel"] == 15
    lab = BlockLab(model=net)
    name, block = lab.blocks[-1], net.get_submodule(lab.blocks[-1])
    last = block.mix_space.conv.out_channels - 1
    assert lab.put(channel=last, kernel=name) is lab and lab.state["channel"] == last and f"channel {last}" in lab.sentence.value


@pytest.mark.parametrize("values", [dict(kernel_size=3, channels=8, row=999), dict(channels=16, channel=16), dict(kernel="encoder.0.blocks.0", row=16, column=15), dict(row=12)])
def test_a_refused_change_leaves_nothing_of_itself(lab, values):
    lab.put(channels=8, channel=7, row=11, column=11)
    before, picture, words, ends = lab.state, lab.picture.value, said(lab), [lab.controls[name].max for name in ("channel", "row", "column")]
    with pytest.raises(ValueError, match="cannot be chosen: its control would take"): lab.put(**values)
    assert lab.state == before and lab.picture.value == picture and said(lab) == words
    assert [lab.controls[name].max for name in ("channel", "row", "column")] == ends and lab.play.value == 11 * 12 + 11


def test_a_refused_change_finds_the_way_back_to_a_larger_block(lab):
    lab.put(kernel="encoder.0.blocks.0", row=15, channel=3, column=15)
    before = lab.state
    with pytest.raises(ValueError, match="row=99"): lab.put(kernel="edge", channels=2, row=99)
    assert lab.state == before


@pytest.mark.parametrize("kind", ["edge", "blur", "spot"])
def test_a_kernel_of_one_pixel_is_a_number(kind): assert torch.isfinite(hand_kernels(kind, 1, 2)).all()


def test_a_network_that_learned_on_is_asked_again():
    "Maps of before with a kernel of now would be no arithmetic."
    net = tiny()
    lab = BlockLab(spot(), model=net, kernel="encoder.1.blocks.0")
    with torch.no_grad():
        for p in net.parameters(): p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    lab.refresh()
    look = lab.look(**lab.state)
    products = window_step(look.maps[look.channel], look.kernel[look.channel], *look.at)[1].sum().item()
    assert abs(products + look.bias - look.trace["sum"][(look.channel, *look.at)].item()) < 1e-4
    assert torch.equal(look.maps, maps_entering(net, "encoder.1.blocks.0", lab.pixels, tuple(lab.grid.shape)).cpu())


@pytest.mark.parametrize("channels", [2, 4, 16])
def test_the_arrows_of_the_mix_begin_and_end_at_the_maps(lab, monkeypatch, channels):
    "Two maps stand in one row, and leave half of their place empty."
    arrows, signs, write, arrow = [], [], Sheet.write, Sheet.arrow
    monkeypatch.setattr(Sheet, "arrow", lambda sheet, start, end, *a: (arrows.append((start, end)), arrow(sheet, start, end, *a)))
    monkeypatch.setattr(Sheet, "write", lambda sheet, text, x, y, size=12, *a, **k: (signs.append((text, x, size)), write(sheet, text, x, y, size, *a, **k)))
    lab.figure(part="channels", kernel="edge", channels=channels)
    h, w = lab.grid.shape
    columns = -(-channels**0.5 // 1)
    end = 26 + 186 * (-(-channels // columns) * (h + 1) - 1) / max(-(-channels // columns) * (h + 1) - 1, columns * (w + 1) - 1)
    (down, _), (_, up) = arrows
    assert 2 <= down[1] - end <= 6 and 2 <= up[1] - end <= 6
    (_, x, size), = [s for s in signs if s[0] == "="]
    assert x + size * _width("=") / 2 < 660 and x - size * _width("=") / 2 > 648  # clear of both frames
