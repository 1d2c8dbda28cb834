"""What a network costs: counts of any network, times on any device, and nothing changed. The everyday path is checked in nbs/22_cost.ipynb."""
import copy
import sys
import types

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cmunext_nb import cost
from cmunext_nb.cost import CostTable, Latency, cost_parts, cost_table, latency, layer_table
from cmunext_nb.model import create_model

TINY = dict(dims=(4, 8, 8), depths=(1, 1, 1), kernel_sizes=(3, 3, 5))


def tiny(**overrides): return create_model("cmunext_s", **{**TINY, **overrides})


def test_a_config_of_another_kind_is_none():
    model = nn.Conv2d(3, 1, 1)
    model.config = types.SimpleNamespace(name="theirs")
    assert cost_table(model, 32)[0]["model"] == "Conv2d" == latency(model, 32, repeats=1, warmup=0).name


def state(model):
    "All that a look must not change."
    return ([m.training for m in model.modules()], [(p.requires_grad, p.grad, p.device, p.stride()) for p in model.parameters()],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()})


def same(a, b): return a[:3] == b[:3] and all(torch.equal(x, y) for x, y in zip(a[3].values(), b[3].values()))


def other_networks():
    "Networks of other libraries, where these are installed; without weights."
    found = []
    try:
        from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large
        found.append(("torchvision", lambda: deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)))
    except ImportError: pass
    try:
        import segmentation_models_pytorch as smp
        found.append(("smp", lambda: smp.Unet("resnet18", encoder_weights=None)))
    except ImportError: pass
    return found


# counts

@pytest.mark.parametrize("name, parameters, gmacs", [("cmunext_s", 417_505, 1.012), ("cmunext", 3_149_185, 7.231), ("cmunext_l", 8_286_721, 16.853)])
def test_the_numbers_of_facts(name, parameters, gmacs):
    row = cost_table(name)[0]
    assert (row["parameters"], round(row["macs"] / 1e9, 3), row["flops"]) == (parameters, gmacs, 2 * row["macs"])


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (64, 48)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_size_and_channels(size, channels):
    model = tiny(in_channels=channels)
    row = cost_table(model, size)[0]
    with FlopCounterMode(display=False) as counter, torch.no_grad(): model.eval()(torch.zeros(1, channels, *size))
    assert row["flops"] == counter.get_total_flops() and row["image"] == f"{channels} x {size[0]} x {size[1]}"


@pytest.mark.parametrize("depth", [1, 2, 3, 9])
def test_parts_add_up(depth):
    model = tiny()
    total, parts = cost_table(model, 64)[0], cost_parts(model, 64, depth=depth)
    for key in ("parameters", "macs", "flops", "activations_mb"): assert sum(r[key] for r in parts) == pytest.approx(total[key]), key
    assert len({r["part"] for r in parts}) == len(parts)


def test_shared_weights_and_reused_parts_are_counted_as_they_are():
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    class Twice(nn.Module):
        def __init__(self): super().__init__(); self.a, self.b, self.scale = nn.Sequential(conv), nn.Sequential(conv), nn.Parameter(torch.ones(1, 4, 1, 1))
        def forward(self, x): return self.b(self.a(x)) * self.scale
    parts = {r["part"]: r for r in cost_parts(Twice(), 8)}
    assert parts["a"]["parameters"] == 144 and parts["b"]["parameters"] == 0 and parts["elsewhere"]["parameters"] == 4
    assert parts["a"]["macs"] == parts["b"]["macs"] == 9 * 16 * 64
    assert cost_table(Twice(), 8)[0]["parameters"] == 148


def test_memory_by_hand():
    one = 6 * 20 * 20 * 4 / 1e6
    row = cost_table(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten()), 20)[0]
    assert row["activations_mb"] == pytest.approx(2 * one) and row["peak_mb"] == pytest.approx(2 * one)
    half = cost_table(nn.Conv2d(3, 6, 3, padding=1).half(), 20)[0]
    assert half["activations_mb"] == pytest.approx(one / 2)


def test_transposed_strided_and_grouped():
    net = nn.Sequential(nn.Conv2d(4, 8, 4, stride=2, padding=1, groups=2), nn.ConvTranspose2d(8, 4, 2, stride=2))
    assert cost_table(net, 32)[0]["macs"] == 16 * 2 * 8 * 256 + 8 * 4 * 4 * 256


def test_attention_is_counted_in_every_form():
    class Attend(nn.Module):
        def __init__(self, need): super().__init__(); self.stem, self.mha, self.need = nn.Conv2d(1, 16, 8, stride=8), nn.MultiheadAttention(16, 4, batch_first=True), need
        def forward(self, x):
            t = self.stem(x).flatten(2).transpose(1, 2)
            return self.mha(t, t, t, need_weights=self.need)[0]
    for need in (True, False):
        rows = {r["part"]: r["macs"] for r in cost_parts(Attend(need), 32)}
        assert rows["mha"] == 16 * 4 * 16**2 + 2 * 16 * 16 * 16
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.mha.get_fastpath_enabled()


def test_a_network_that_looks_at_numbers_is_run_for_real():
    class Looks(nn.Module):
        def __init__(self): super().__init__(); self.conv = nn.Conv2d(3, 2, 3, padding=1)
        def forward(self, x): return self.conv(x) if x.abs().sum().item() >= 0 else x
    model = Looks().train()
    assert cost_table(model, 16)[0]["macs"] == 9 * 3 * 2 * 256 and model.training and not model.conv._forward_hooks


@pytest.mark.parametrize("name, make", other_networks(), ids=lambda v: v if isinstance(v, str) else "")
def test_networks_of_other_libraries(name, make):
    model = make().train()
    model.get_submodule(next(n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d))).eval()  # one frozen norm
    before = state(model)
    row, parts = cost_table(model, 64)[0], cost_parts(model, 64, depth=2)
    with FlopCounterMode(display=False) as counter, torch.no_grad(): copy.deepcopy(model).eval()(torch.zeros(1, 3, 64, 64))
    assert row["flops"] == counter.get_total_flops() == sum(r["flops"] for r in parts) and row["parameters"] == sum(p.numel() for p in model.parameters())
    assert latency(model, 64, repeats=2, warmup=1, channels_last=True).median > 0
    assert same(before, state(model))


def test_several_networks_and_labels():
    table = cost_table({"mine": tiny(), "S": "cmunext_s"}, 32)
    assert [r["model"] for r in table] == ["mine", "S"] and len(table) == 2
    assert [r["model"] for r in cost_table([tiny(), nn.Conv2d(1, 1, 1)], 32)] == ["cmunext_s", "Conv2d"]
    assert cost_table("cmunext_s", 32, in_channels=1)[0]["image"] == "1 x 32 x 32"
    timed = cost_table(tiny(), 32, timed=True, repeats=2, warmup=0, threads=1)[0]
    assert timed["latency_ms"] > 0 and "Median of 2 calls" in cost_table(tiny(), 32, timed=True, repeats=2, warmup=0).note
    with pytest.raises(TypeError, match="repets: .*timed=True"): cost_table(tiny(), 32, time=True, repets=3)
    with pytest.raises(TypeError, match="repets"): cost_table(tiny(), 32, timed=True, repets=3)


def test_the_note_is_true_of_each_row():
    note = cost_table({"first": tiny(), "last": tiny().to(memory_format=torch.channels_last), "grey": tiny(in_channels=1)}, 32, timed=True, repeats=2, warmup=0).note
    shared, first, last, grey = (note.index(words) for words in ("Median of 2 calls after 0", " first: ", " last: ", " grey: "))
    assert shared < first < note.index("channels first") < last < note.index("channels last") < grey < note.index("images 1 x 1 x 32 x 32")
    assert note.count("Median") == note.count("torch ") == 1 and note.index("torch ") < first


def test_the_table_shows_itself():
    table = cost_table({"<b>": tiny()}, 32)
    assert "<b>" in repr(table) and "&lt;b&gt;" in table._repr_html_() and "<b>" not in table._repr_html_()
    assert "2 x MACs" in table.note and table.figure().axes and cost_parts(tiny(), 32).figure().axes


@pytest.mark.parametrize("size", ["big", 0, -4, (3,), (4, 4, 4), 2.5, None, True, (32, 0)])
def test_sizes_that_are_none(size):
    for call in (lambda: cost_table(tiny(), size), lambda: cost_parts(tiny(), size), lambda: latency(tiny(), size), lambda: layer_table(tiny(), size)):
        with pytest.raises(ValueError, match="image_size"): call()


def test_what_is_no_network():
    with pytest.raises(TypeError, match="nn.Module"): cost_table(7)
    with pytest.raises(ValueError, match="Did you mean"): cost_table("cmunextl")
    with pytest.raises(ValueError, match="at least one"): cost_table([])
    with pytest.raises(ValueError, match="16 pixels"): cost_table(tiny(), 8)  # the network's own words, once, without those of the meta device


# times

def test_latency_says_how_it_was_measured():
    model = tiny().train()
    before, threads = state(model), torch.get_num_threads()
    r = latency(model, (32, 48), batch_size=2, repeats=7, warmup=3, threads=1, channels_last=True, dtype=torch.bfloat16)
    for words in ("7 calls after 3", "2 x 3 x 32 x 48", "bfloat16 by autocast", "channels last", "1 thread", "cpu", "evaluation mode"): assert words in r.method, words
    assert len(r.times) == 7 and len(r.first) == 3 and r.fastest <= r.quartiles[0] <= r.median <= r.quartiles[1]
    assert r.images_per_second == pytest.approx(2000 / r.median) and "images a second" in repr(r)
    assert same(before, state(model)) and torch.get_num_threads() == threads and not torch.is_inference_mode_enabled()


def test_threads_and_mode_come_back_after_an_error():
    class Breaks(nn.Module):
        def forward(self, x): raise RuntimeError("broken")
    model, threads = Breaks().train(), torch.get_num_threads()
    with pytest.raises(RuntimeError, match="broken"): latency(model, 16, threads=1)
    with pytest.raises(RuntimeError, match="broken"): cost_table(model, 16)
    assert model.training and torch.get_num_threads() == threads


def test_layout_of_the_weights_is_found():
    assert "channels first" in latency(tiny(), 32, repeats=1, warmup=0).method
    model = tiny().to(memory_format=torch.channels_last)
    assert "channels last" in latency(model, 32, repeats=1, warmup=0).method
    assert "channels first" in latency(model, 32, repeats=1, warmup=0, channels_last=False).method and cost._is_channels_last(model)


def test_any_callable_is_timed():
    seen = []
    r = latency(lambda x: seen.append(x.shape), 16, in_channels=2, repeats=2, warmup=1)
    assert seen == [(1, 2, 16, 16)] * 3 and r.name == "<lambda>"


class Engine:
    "What `deploy` gives, as far as a stopwatch is concerned."
    def __init__(self, backend): self.backend, self.computes_in, self.config = backend, "bfloat16", dict(name="mine", in_channels=2)
    def __call__(self, x): return x[:, :1]


def test_a_deployed_network_is_described_by_itself():
    r = latency(Engine("openvino"), 16, repeats=2, warmup=0)
    assert "bfloat16 in openvino, images on cpu" in r.method and r.shape == (1, 2, 16, 16)
    assert not any(words in r.method for words in ("float32", "channels first", "thread"))


def test_torch_as_an_engine_has_torch_s_threads():
    assert latency(Engine("torch"), 16, repeats=1, warmup=0, threads=1).method.count(", 1 thread;") == 1


@pytest.mark.parametrize("wrong", [dict(threads=2), dict(dtype=torch.bfloat16), dict(channels_last=False)])
def test_what_does_not_reach_a_deployed_network(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*openvino.*precision"): latency(Engine("openvino"), 16, **wrong)


@pytest.mark.parametrize("wrong", [dict(repeats=0), dict(batch_size=0), dict(warmup=-1)])
def test_numbers_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): latency(tiny(), 32, **wrong)


def test_a_queue_is_waited_for_before_and_after_each_call(monkeypatch):
    "There is no graphics card here: the order of events is checked with a counter in the place of its `synchronize`."
    events = []
    monkeypatch.setattr(cost, "_waiter", lambda device: lambda: events.append("wait"))
    cost._times(lambda x: events.append("call"), torch.zeros(1), 3, None)
    assert events == ["wait", "call", "wait"] * 3


def test_the_waiter_of_a_card_names_the_card(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    cost._waiter(torch.device("cuda:1"))()
    assert asked == [torch.device("cuda:1")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda():
    model = tiny()
    r = latency(model, 64, device="cuda", repeats=5)
    assert "cuda" in r.method and "thread" not in r.method and next(model.parameters()).device.type == "cpu"
    assert cost_table(model.cuda(), 64)[0]["macs"] == cost_table(tiny(), 64)[0]["macs"]


# torchinfo

def test_layer_table_leaves_every_mode():
    pytest.importorskip("torchinfo")
    model = tiny().train()
    model.stem.norm.eval()
    before = state(model)
    for size in (17, (33, 64)): assert layer_table(model, size).total_params == sum(p.numel() for p in model.parameters())
    assert same(before, state(model)) and "stem" in str(layer_table(model, 32))


def test_layer_table_without_torchinfo(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchinfo", None)
    with pytest.raises(ImportError, match="pip install"): layer_table(tiny(), 32)


def test_dataclasses_stand_alone():
    r = Latency([1.0], [], (1, 3, 8, 8), "float32", "x")
    assert r.median == r.fastest == 1 and r.spread == 0
    assert isinstance(CostTable([dict(a=1)]).rows, list) and isinstance(cost, types.ModuleType)
