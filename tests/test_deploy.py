"""Folding, files and engines: what a reader of notebook 30 would not want to see there. Engines that are not installed are skipped."""
import copy
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import cmunext_nb as cn
from cmunext_nb.conv import ConvBlock
from cmunext_nb.deploy import KEEP, Deployed, _cheap_gelu, _keep_float32, _onnx, _say_agreement, _spans, deploy, export_onnx, export_program, fold, fold_forward, pixel_recipe, predict_tiled, reach, read_onnx_metadata
from cmunext_nb.model import PlainFusion, create_model
from cmunext_nb.weights import preprocess, to_channels

ROOT = Path(__file__).resolve().parent.parent
LEAST = dict(float32=0.999, bfloat16=0.998, int8=0.99)


def there(*packages): return all(importlib.util.find_spec(p) for p in packages)


needs_onnx = pytest.mark.skipif(not there("onnx", "onnxscript"), reason="onnx and onnxscript are not installed (extra deploy)")


@pytest.fixture(scope="module")
def model(): return create_model("cmunext_s", pretrained="phantom").eval()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    if not there("onnx", "onnxscript"): pytest.skip("onnx and onnxscript are not installed (extra deploy)")
    return export_onnx(model, tmp_path_factory.mktemp("onnx") / "s.onnx", source="a test", run=7)


@pytest.fixture(scope="module")
def scans(): return cn.make_phantom(6, size=256, seed=7)[0]


def lively(net):
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low, high in ((m.weight, -1.5, 1.5), (m.bias, -0.5, 0.5), (m.running_mean, -0.5, 0.5), (m.running_var, 0.5, 2)): nn.init.uniform_(t, low, high)
    return net.eval()


def dice(a, b): return 2 * (a & b).sum() / (a.sum() + b.sum())


# fold

@pytest.mark.parametrize("name", ["cmunext_s", "cmunext", "cmunext_l"])
def test_fold_is_exact(name):
    torch.manual_seed(0)
    net, x = lively(create_model(name, 1, 3)), torch.randn(2, 1, 33, 47)
    folded = fold(net)
    with torch.no_grad(): assert (folded(x) - net(x)).abs().max() <= 1e-4
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) < sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert folded.config == net.config and folded.preprocess == net.preprocess


def test_fold_leaves_the_model_alone():
    net = create_model("cmunext_s").train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fold(net)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_fold_of_other_boxes():
    "Other norms and boxes that compute something else keep their norms, and the result is right."
    class Louder(ConvBlock):
        def forward(self, x): return 2 * self.act(self.norm(self.conv(x)) + 1)
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 32)
    for net in (create_model("cmunext_s", norm=lambda c: nn.GroupNorm(1, c)), create_model("cmunext_s", fusion=PlainFusion),
                create_model("reduced_unet"), nn.Sequential(Louder(3, 4), ConvBlock(4, 4))):
        net = lively(net)
        with torch.no_grad(): torch.testing.assert_close(fold(net)(x), net(x), rtol=1e-4, atol=1e-4)
    assert isinstance(fold(net)[0].norm, nn.BatchNorm2d) and isinstance(fold(net)[1].norm, nn.Identity)


def test_fold_unwraps_and_refuses():
    assert isinstance(fold(nn.DataParallel(create_model("cmunext_s"))), cn.CMUNeXt)
    class Own(nn.Module):
        def __init__(self): super().__init__(); self.module = nn.Conv2d(3, 1, 3, padding=1)
        def forward(self, x): return 2 * self.module(x)
    net, x = Own(), torch.randn(1, 3, 9, 9)
    assert torch.equal(fold(net)(x), net(x))  # a part of that name makes no wrapper
    with pytest.raises(TypeError, match="network"): fold("cmunext_s")
    with pytest.raises(ValueError, match="1x1"): fold_forward(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))


# files

def test_the_file_describes_itself(file):
    about = read_onnx_metadata(file)
    assert about["preprocess"] == json.loads(json.dumps(pixel_recipe("imagenet"))) and about["classes"] == ["lesion"]
    assert about["source"] == "a test" and about["metadata"] == {"run": 7} and about["config"]["name"] == "cmunext_s"


def test_the_file_names_no_machine(file):
    data = file.read_bytes()
    assert len(data) <= 2e6 and str(ROOT).encode() not in data and b"site-packages" not in data


@needs_onnx
def test_a_failed_export_keeps_the_old_file(model, file, tmp_path, monkeypatch):
    import onnx
    monkeypatch.setattr(sys.modules["cmunext_nb.deploy"], "_onnx", lambda _: onnx.load(str(file)))  # exporting takes seconds, and is not what fails
    path = tmp_path / "s.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device", str(path))))
    with pytest.raises(OSError, match="Free some space"): export_onnx(model, path)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["s.onnx"]


@needs_onnx
def test_wrong_files_and_classes(model, tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="damaged"): read_onnx_metadata(tmp_path / "no.onnx")
    with pytest.raises(FileNotFoundError, match="absent"): deploy(tmp_path / "absent.onnx")
    with pytest.raises(ValueError, match="1 channels and there are 2 names"): export_onnx(model, tmp_path / "a.onnx", classes=["a", "b"])


def test_program(model, tmp_path):
    export_program(model, tmp_path / "s.pt2")
    alone = torch.export.load(tmp_path / "s.pt2").module()
    for shape in ((1, 3, 17, 17), (3, 3, 50, 33)):
        x = torch.randn(shape)
        with torch.no_grad(): torch.testing.assert_close(alone(x), model(x), rtol=1e-4, atol=1e-4)


# engines

PATHS = [("onnxruntime", "float32"), ("onnxruntime", "int8"), ("openvino", "float32"), ("openvino", "bfloat16"), ("openvino", "int8"), ("torch", "float32"), ("torch", "bfloat16")]


def engine(model, file, scans, backend, precision):
    for package in [backend] + ["nncf"] * (backend == "openvino" and precision == "int8"): pytest.importorskip(package)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a processor without bfloat16
        return deploy(model if backend == "torch" else file, backend, precision, calibration=cn.make_phantom(16, size=256, seed=8)[0] if precision == "int8" else None)


@pytest.mark.parametrize("backend, precision", PATHS)
def test_parity(model, file, scans, backend, precision):
    net = engine(model, file, scans, backend, precision)
    assert net.config == model.config and net.preprocess == model.preprocess and precision in repr(net)
    ours, theirs = (np.stack([r.mask for r in cn.predict(m, scans, size=None)]) for m in (model, net))
    assert dice(ours, theirs) >= LEAST[precision]
    for shape in ((1, 3, 16, 16), (2, 3, 17, 31), (1, 3, 50, 99)):
        x = torch.randn(shape)
        out = net(x)
        assert isinstance(out, torch.Tensor) and out.shape == (shape[0], 1, *shape[2:]) and out.dtype == torch.float32
        assert isinstance(net(x.numpy()), np.ndarray) and np.array_equal(net(x.numpy()), out.numpy())
        if precision == "float32":
            with torch.no_grad(): assert (out - model(x)).abs().max() <= 2e-4


@pytest.mark.parametrize("backend, precision", PATHS)
def test_threads_get_their_own_logits(model, file, scans, backend, precision):
    "Four threads, four scans, one network: each gets what it would get alone, from the first call on."
    net, start = engine(model, file, scans, backend, precision), threading.Barrier(4)
    xs, got = [preprocess(to_channels(scans[i:i + 1, :, 64:192, 64:192], 3), net.preprocess) for i in range(4)], [[] for _ in range(4)]

    def serve(i):
        start.wait()
        for _ in range(8): got[i].append(net(xs[i]))

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    alone = [net(x) for x in xs]
    assert [len(g) for g in got] == [8] * 4 and (alone[0] - alone[1]).abs().max() > 0.5
    assert not [(i, k) for i in range(4) for k, y in enumerate(got[i]) if (y - alone[i]).abs().max() > 1e-3]


def test_an_engine_is_copied_but_not_pickled(model):
    net = deploy(model, "torch")
    twin, shallow = copy.deepcopy(net), copy.copy(net)
    assert repr(twin) == repr(net) and twin.config == net.config and twin.config is not net.config and shallow.config is net.config
    assert torch.equal(twin(torch.ones(1, 3, 32, 32)), shallow(torch.ones(1, 3, 32, 32)))
    with pytest.raises(TypeError, match="deploy the file again"): pickle.dumps(net)


@needs_onnx
@pytest.mark.parametrize("note", [None, "{}", "no JSON", "[]", '{"config": {}, "preprocess": {}}'])
def test_a_damaged_note_is_said(file, tmp_path, note):
    import onnx
    path, proto = tmp_path / "damaged.onnx", onnx.load(str(file))
    proto.metadata_props[0].value = note or ""
    path.write_bytes(proto.SerializeToString() if note else b"")
    for read in (read_onnx_metadata, deploy):
        with pytest.raises(ValueError, match="damaged.onnx cannot be read.*damaged"): read(path)


@needs_onnx
def test_numbers_of_numpy_in_the_metadata(model, file, tmp_path, monkeypatch):
    import onnx
    monkeypatch.setattr(sys.modules["cmunext_nb.deploy"], "_onnx", lambda _: onnx.load(str(file)))
    assert read_onnx_metadata(export_onnx(model, tmp_path / "s.onnx", iou=np.float32(0.5)))["metadata"] == {"iou": 0.5}
    monkeypatch.setattr(sys.modules["cmunext_nb.deploy"], "_onnx", lambda _: pytest.fail("exported before the text was made"))
    with pytest.raises(TypeError, match="keys"): export_onnx(model, tmp_path / "s.onnx", figures={(1, 2): 3})


def test_outputs_are_not_overwritten(model, file, scans):
    "Engines reuse their buffers: an answer must outlive the next question."
    net = engine(model, file, scans, "openvino", "float32")
    first = net(torch.zeros(1, 3, 32, 32))
    kept = first.clone()
    net(torch.randn(1, 3, 32, 32))
    assert torch.equal(first, kept)


def test_bfloat16_is_used_or_its_absence_is_said(file):
    ov = pytest.importorskip("openvino")
    has = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        net = deploy(file, "openvino", "bfloat16")
    assert net.computes_in == ("bfloat16" if has else "float32")
    assert has != any("no bfloat16" in str(w.message) for w in said) and has != ("was asked for" in repr(net))


def layers_of(data, keep=KEEP["bfloat16"]):
    "Operations of the model that OpenVINO is given, the number format of every convolution in its plan, and the one that it calls short here."
    ov = pytest.importorskip("openvino")
    short = "bf16" if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
    source = _keep_float32(ov, _cheap_gelu(ov.Core().read_model(data), keep), keep)
    kinds = [(node.get_type_name(), node.get_friendly_name()) for node in source.get_ordered_ops()]
    plan = ov.Core().compile_model(source, "CPU", dict(INFERENCE_PRECISION_HINT="bf16")).get_runtime_model().get_ordered_ops()
    info = lambda node, key: str(node.get_rt_info()[key].value)
    return kinds, {n.get_friendly_name().split("/")[0]: info(n, "runtimePrecision") for n in plan if "Convolution" in info(n, "layerType")}, short


@needs_onnx
def test_kept_parts_compute_in_float32():
    "The first layers keep their numbers and their GELU, all others are short and have the polynomial."
    small = _onnx(create_model("cmunext", dims=(4, 8, 8), depths=(1, 1, 2), kernel_sizes=(3, 3, 5))).SerializeToString()
    kinds, formats, short = layers_of(small)
    first = ["stem.conv", "encoder.0.blocks.0.mix_space.conv"]
    assert formats == {layer: "f32" if layer in first else short for layer in formats} and set(first) < set(formats) and len(formats) > 15
    assert sum(kind == "Gelu" for kind, _ in kinds) == 1 and sum(kind == "Clamp" for kind, _ in kinds) > 12
    assert set(layers_of(small, ())[1].values()) == {short}


def test_free_sizes_keep_their_gelu(file, monkeypatch):
    "Without a known size the engine would make a pass of each of the polynomial's operations."
    ov, given = pytest.importorskip("openvino"), []
    monkeypatch.setattr(sys.modules["cmunext_nb.deploy"], "_in_openvino", lambda free, threads, hint, small, fixed: given.extend((free, fixed)) or (None, "bfloat16"))
    deploy(file, "openvino", "bfloat16")
    count = lambda model, kind: sum(node.get_type_name() == kind for node in model.get_ordered_ops())
    free, fixed = given
    has = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert count(free, "Gelu") > 20 and count(free, "Clamp") == 0 and count(fixed, "Gelu") == (1 if has else count(free, "Gelu"))


@needs_onnx
def test_kept_parts_of_other_networks():
    "Names that a network does not have are left out, and a network without GELU stays as it is."
    kinds, formats, short = layers_of(_onnx(create_model("unet", dims=(4, 8, 16))).SerializeToString())
    assert formats == {layer: "f32" if layer == "stem.conv" else short for layer in formats} and not any(kind in ("Gelu", "Clamp") for kind, _ in kinds)


@needs_onnx
def test_the_polynomial_is_gelu():
    "In the engine and in float32, so that nothing else rounds: far less than bfloat16 does at 1."
    ov = pytest.importorskip("openvino")
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.GELU())
    with torch.no_grad(): net[0].weight[:], net[0].bias[:] = 1, 0
    x = torch.linspace(-50, 50, 40000).view(1, 1, 200, 200)
    short = ov.Core().compile_model(_cheap_gelu(ov.Core().read_model(_onnx(net).SerializeToString()), ()), "CPU", dict(INFERENCE_PRECISION_HINT="f32"))
    error = (torch.from_numpy(short(x.numpy())[0]) - net(x)).abs().detach()
    assert 1e-5 < error.max() < 5.2e-4 and error[x.abs() > 6].max() < 2e-5


def test_torch_keeps_parts_too(model, scans):
    x = preprocess(to_channels(scans[:2], 3), model.preprocess)
    with torch.no_grad(): right = model(x)
    far = lambda keep: (deploy(model, "torch", "bfloat16", keep=keep)(x) - right).abs().mean()
    assert far(tuple(n for n, _ in model.named_children()) + tuple(f"{side}.{i}" for side, n in (("encoder", 5), ("decoder", 4)) for i in range(n))) < 1e-4 < far(())


@needs_onnx
def test_eight_bits_see_the_biases():
    "A network of free size hides each bias behind reshapes, where NNCF does not look: then correcting them changes nothing."
    pytest.importorskip("openvino"), pytest.importorskip("nncf")
    quantise, images = sys.modules["cmunext_nb.deploy"]._openvino_int8, [torch.rand(1, 3, 32, 32).numpy() for _ in range(4)]
    data = _onnx(lively(create_model("cmunext_s", dims=(4, 4, 4), depths=(1, 1, 1), kernel_sizes=(3, 3, 3)))).SerializeToString()
    plain, corrected = quantise(data, images, ()), quantise(data, images, (), correct_bias=True)
    constants = lambda source: np.concatenate([n.get_data().ravel().astype(np.float32) for n in source.get_ordered_ops() if n.get_type_name() == "Constant"])
    first, second = constants(plain), constants(corrected)
    assert first.shape == second.shape and np.abs(first - second).max() > 1e-4
    behind = [n.input_value(1).get_node().get_type_name() for n in plain.get_ordered_ops() if n.get_friendly_name() == "stem.conv"]
    assert behind == ["Constant"]


@pytest.mark.parametrize("channels", [1, 3])
def test_eight_bits_that_disagree_are_said(channels):
    "Masks of one class, or of several; one pixel of two hundred may differ, nine may not; two empty masks agree."
    right = -torch.ones(1, channels, 20, 20)
    right[:, -1, :10, :20] = 1
    def with_wrong(pixels):
        logits = right.clone()
        logits[:, -1].view(-1)[:pixels] *= -1 if channels == 1 else -2
        return logits
    images, say = [np.zeros((1, 3, 20, 20), np.float32)], lambda run, exact: _say_agreement(lambda x: run, lambda x: exact, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        say(with_wrong(1), right)
        if channels == 1: say(-right.abs(), -right.abs())
    with pytest.warns(UserWarning, match="Dice score of 0.9[0-8].*leave more parts in float32"): say(with_wrong(9), right)


def test_parts_to_keep_are_the_networks(model):
    assert deploy(model, "torch", "bfloat16", keep="head").computes_in == "bfloat16"
    with pytest.raises(ValueError, match="'decodr.1' is no part of this network. Near: decoder.1, "): deploy(model, "torch", "bfloat16", keep=("head", "decodr.1"))


def test_parts_to_keep_are_the_file_s_too(file):
    pytest.importorskip("openvino")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a processor without bfloat16
        for keep in ("head", "encoder.0", ("stem", "decoder.0.fusion.fuse.expand"), ()): deploy(file, "openvino", "bfloat16", keep=keep)
    with pytest.raises(ValueError, match="'encodr.0' is no part of this network. Near: encoder.0"): deploy(file, "openvino", "bfloat16", keep="encodr.0")


class Foreign(nn.Module):
    "Somebody's network: one channel, three classes in a dict, no config."
    def __init__(self): super().__init__(); self.conv = nn.Conv2d(1, 3, 3, padding=1)
    def forward(self, x): return dict(out=self.conv(x))


@needs_onnx
def test_a_network_of_somebody_else(tmp_path):
    pytest.importorskip("onnxruntime")
    net = Foreign()
    x = torch.rand(1, 1, 32, 32)
    path = export_onnx(net, tmp_path / "net.onnx", classes=("a", "b", "c"))
    about = read_onnx_metadata(path)
    assert about["classes"] == ["a", "b", "c"] and about["config"] == dict(in_channels=1, num_classes=3) and "Tang" not in about["source"]
    assert read_onnx_metadata(export_onnx(net, tmp_path / "unnamed.onnx"))["classes"] == ["class 0", "class 1", "class 2"]
    for deployed in (deploy(path), deploy(net), deploy(net, "torch")): torch.testing.assert_close(deployed(x), net(x)["out"].detach(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="give margin=reach"): predict_tiled(deploy(net, "torch"), np.zeros((200, 200), np.uint8), tile=96)
    with pytest.raises(ValueError, match="3 channels and there are 2 names"): export_onnx(net, tmp_path / "wrong.onnx", classes=("a", "b"))


def test_eight_bits_are_compared_with_float32(model, file, scans, monkeypatch):
    pytest.importorskip("onnxruntime")
    seen = []
    monkeypatch.setattr(sys.modules["cmunext_nb.deploy"], "_say_agreement", lambda *given: seen.append(given))
    deploy(file, "onnxruntime", "int8", scans[:2])
    (run, exact, images), = seen
    with torch.no_grad(): right = model(torch.from_numpy(images[0]))
    assert len(images) == 2 and (exact(torch.from_numpy(images[0])) - right).abs().max() < 1e-3 < (run(torch.from_numpy(images[0])) - right).abs().max()


def test_the_lab_takes_it(model, file):
    pytest.importorskip("ipywidgets")
    pytest.importorskip("onnxruntime")
    lab = cn.labs.PredictLab(deploy(file), cn.make_phantom(1, size=64, seed=0)[0], predict_size=64)
    assert lab.result().mask.shape == (64, 64)


@pytest.mark.parametrize("args, error, word", [
    (("tensorflow",), ValueError, "Unknown backend"), (("onnxruntime", "bfloat16"), ValueError, "'openvino' or 'torch'"), (("torch", "int8"), ValueError, "onnxruntime"),
    (("openvino", "int8"), ValueError, "calibration"), (("onnxruntime", "float16"), ValueError, "float32, int8"), (("torch", "float32", [1]), ValueError, "int8")])
def test_wrong_choices(model, args, error, word):
    with pytest.raises(error, match=word): deploy(model, *args)


def test_wrong_models(tmp_path):
    with pytest.raises(TypeError, match="path of a file"): deploy(7)
    with pytest.raises(ValueError, match="16 pixels"): deploy(create_model("cmunext_s"), "openvino", "int8", calibration=torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("x, error, word", [
    (torch.zeros(3, 32, 32), ValueError, "four axes"), (torch.zeros(1, 1, 32, 32), ValueError, "3 channels"), (torch.zeros(1, 3, 15, 32), ValueError, "16 pixels"),
    (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ValueError, "float"), ([[1.0]], TypeError, "tensor or an array"), (torch.zeros(0, 3, 32, 32), ValueError, "empty")])
def test_wrong_inputs(model, x, error, word):
    with pytest.raises(error, match=word): deploy(model, "torch")(x)


@pytest.mark.parametrize("backend, package", [("onnxruntime", "onnxruntime"), ("openvino", "openvino")])
def test_missing_packages(model, monkeypatch, backend, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*cmunext_nb\[deploy\]"): deploy(model, backend)


def test_the_module_is_light():
    code = "import sys, cmunext_nb.deploy; print([m for m in ('onnx', 'onnxruntime', 'openvino', 'nncf') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# tiles

@pytest.mark.parametrize("length, tile, margin", [(100, 128, 32), (1000, 640, 224), (257, 96, 32), (512, 128, 0), (513, 140, 32), (8192, 1024, 224)])
def test_cores_cover_once(length, tile, margin):
    spans = _spans(length, tile, margin)
    assert [p for a in spans for p in range(a[2], a[3])] == list(range(length))
    assert all(a[0] % 32 == 0 and a[1] - a[0] <= max(tile, length if len(spans) == 1 else 0) for a in spans)
    assert all((a[2] - a[0] >= margin or a[0] == 0) and (a[1] - a[3] >= margin or a[1] == length) for a in spans)
    assert len({a[1] - a[0] for a in spans[:-1]}) <= 1  # one shape, but for a last tile that ends at the border
    assert len(spans) == 1 or tile // 32 * 32 - 31 <= spans[-1][1] - spans[-1][0] <= tile


def test_tiles_equal_the_whole(model):
    "With a small network the reach is small: many tiles, and not one pixel of the mask differs."
    torch.manual_seed(1)
    net, image = lively(create_model("cmunext_s", dims=(4, 4, 4), depths=(1, 1, 1), kernel_sizes=(3, 3, 3))), torch.randint(0, 256, (1, 300, 333), dtype=torch.uint8)
    assert reach(net) <= 64
    whole, tiled = cn.predict(net, image, size=None), predict_tiled(net, image, tile=192)
    np.testing.assert_allclose(tiled.probability, whole.probability, atol=1e-5)
    seams = np.abs(predict_tiled(net, image, tile=192, margin=0).probability - whole.probability)
    assert seams.max() > 1e-4
    rows, columns = (np.abs(np.arange(n)[:, None] - np.arange(192, n, 192)).min(1) for n in (300, 333))
    near = (rows[:, None] <= reach(net)) | (columns[None] <= reach(net))
    assert seams[~near].max(initial=0) < 1e-5


def test_tiles_say_what_is_wrong(model):
    image = torch.zeros(1, 600, 600, dtype=torch.uint8)
    with pytest.raises(ValueError, match="at least 480"): predict_tiled(model, image, tile=256)
    with pytest.raises(ValueError, match="threshold"): predict_tiled(model, image, threshold=7)


@pytest.mark.parametrize("axes, word", [((3,), "along one axis"), ((2,), "along one axis"), ((2, 3), "pooling of the whole map")])
def test_no_margin_is_enough_for_a_mean_over_an_axis(axes, word):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 3, padding=1)

        def forward(self, x):
            x = self.conv(x)
            return x * x.mean(axes, keepdim=True).sigmoid()
    with pytest.raises(ValueError, match=f"sees the whole image .{word}"): reach(Gated())
    with pytest.raises(ValueError, match="sees the whole image"): predict_tiled(Gated(), torch.zeros(1, 300, 300, dtype=torch.uint8), tile=128)


class OnCard:
    "A tensor on a graphics card, as far as it is asked here: it becomes an array on the CPU alone."
    def __init__(self, tensor): self.tensor = tensor
    def cpu(self): return self.tensor
    def numpy(self): raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
    def to(self, device): return self.tensor.to(device)


def test_logits_come_back_from_a_card():
    net = Deployed(lambda x: OnCard(2 * x[:, :1]), dict(in_channels=3), "unit", "torch", "float32")
    assert isinstance(net(np.ones((1, 3, 16, 16), np.float32)), np.ndarray) and torch.is_tensor(net(torch.ones(1, 3, 16, 16)))


def test_a_callable_without_config_is_taken_by_predict():
    net = Deployed(lambda x: x[:, :1], dict(in_channels=3), "unit", "by hand", "float32")
    assert cn.predict(net, np.zeros((40, 40), np.uint8)).mask.shape == (40, 40)


@pytest.mark.parametrize("steps", [1, 2])
def test_logits_at_a_part_of_the_size_are_enlarged_tile_by_tile(steps):
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Conv2d(1 if i == 0 else 4, 4, 3, 2, 1) for i in range(steps)), nn.Conv2d(4, 1, 3, padding=1)).eval()
    image = np.random.default_rng(0).integers(0, 255, (230, 300), dtype=np.uint8)[:224, :288]
    whole, tiled = cn.predict(net, image, size=None), predict_tiled(net, image, tile=128)
    np.testing.assert_allclose(tiled.probability, whole.probability, atol=1e-5)


@needs_onnx
def test_a_config_of_another_kind_is_none(tmp_path):
    net = nn.Conv2d(1, 1, 3, padding=1).eval()
    net.config = SimpleNamespace(width=8)
    assert read_onnx_metadata(export_onnx(net, tmp_path / "n.onnx"))["config"] == dict(in_channels=1, num_classes=1)
    assert deploy(net, "torch").config == dict(in_channels=1)
