"""Files of weights: what is refused, what is damaged, what a full disk or a kill leaves behind."""
import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cmunext_nb.data import data_roots, load_dataset
from cmunext_nb.model import create_model
from cmunext_nb.train import evaluate
from cmunext_nb.weights import (PREPROCESSING, UPSTREAM_NAMES, atomic_write, load_upstream, load_weights, preprocess, read_metadata, save_weights, to_channels,
                                upstream_name)

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "cmunext_nb/assets"
GOLDEN = ROOT.parent / "shared/golden/cmunext_s_upstream.npz"


def close_to_golden(net):
    "Whether `net` gives upstream's output: relative error 1e-4, for logits near zero against the largest."
    with np.load(GOLDEN) as file: x, expected = torch.from_numpy(file["input"]), torch.from_numpy(file["output"])
    with torch.no_grad(): out = net.eval()(x)
    return torch.allclose(out, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return create_model("cmunext_s")


@pytest.fixture
def theirs(net): return {upstream_name(k): v.clone() for k, v in net.state_dict().items()}


def unchanged(net, before): return all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def snapshot(net): return {k: v.clone() for k, v in net.state_dict().items()}


class Trap:
    "Touches a file when it is unpickled."
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)


# --- upstream ---

@pytest.mark.parametrize("suffix", ["npz", "pth", "pt", "safetensors", "dict"])
def test_golden(tmp_path, suffix):
    if not GOLDEN.exists(): pytest.skip("no golden file here")
    with np.load(GOLDEN) as file: state = {k[3:]: torch.from_numpy(file[k]) for k in file.files if k.startswith("sd/")}
    path = tmp_path / f"golden.{suffix}"
    if suffix == "npz": path = GOLDEN
    elif suffix == "safetensors":
        from safetensors.torch import save_file
        save_file(state, path)
    elif suffix != "dict": torch.save(state, path)
    net = load_upstream(create_model("cmunext_s"), state if suffix == "dict" else path)
    assert close_to_golden(net) and net.preprocess == "upstream"


def test_golden_keys_are_ours():
    keys = GOLDEN.with_name("upstream_keys.txt")
    if not keys.exists(): pytest.skip("no golden file here")
    theirs = dict(line.split(" ", 1) for line in keys.read_text().splitlines() if line.strip())
    ours = {upstream_name(k): str(tuple(v.shape)) for k, v in create_model("cmunext_s").state_dict().items()}
    assert ours == {k: v.strip() for k, v in theirs.items()}


@pytest.mark.parametrize("name", ["cmunext_s", "cmunext", "cmunext_l"])
def test_names_of_all_variants_are_different(name):
    state = create_model(name).state_dict()
    assert len({upstream_name(k) for k in state}) == len(state)
    assert len(UPSTREAM_NAMES) == 19


@pytest.mark.parametrize("wrap", [
    lambda d: d, lambda d: {"state_dict": d, "epoch": 3}, lambda d: {"model": d}, lambda d: {"model_state_dict": {f"module.{k}": v for k, v in d.items()}},
    lambda d: {f"module._orig_mod.{k}": v for k, v in d.items()}, lambda d: {k: v.half() if v.is_floating_point() else v for k, v in d.items()}])
def test_wrappers(net, theirs, tmp_path, wrap):
    torch.save(wrap(theirs), tmp_path / "w.pth")
    twin = load_upstream(create_model("cmunext_s"), tmp_path / "w.pth")
    for k, v in twin.state_dict().items(): torch.testing.assert_close(v, net.state_dict()[k], rtol=1e-3, atol=1e-4)
    assert twin.stem.conv.weight.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle2", "pickle4", "npz"])
def test_no_code_of_a_file_is_run(net, tmp_path, kind):
    mark, path = tmp_path / "mark", tmp_path / f"trap.{'npz' if kind == 'npz' else 'pth'}"
    evil = {"stem.conv.0.weight": Trap(mark)}
    if kind == "zip": torch.save(evil, path)
    if kind == "legacy": torch.save(evil, path, _use_new_zipfile_serialization=False)
    if "pickle" in kind: path.write_bytes(pickle.dumps(evil, protocol=int(kind[-1])))
    if kind == "npz": np.savez(path, x=np.array([Trap(mark)], dtype=object))
    before = snapshot(net)
    with pytest.raises(ValueError) as error: load_upstream(net, path)
    assert not mark.exists() and unchanged(net, before)
    # torch reads only protocol 2: of a later one, it does not even see what it asks for
    assert ("Refused" in str(error.value) or kind == "pickle4") and path.name in str(error.value)
    if kind != "npz":  # the trap is a real one
        torch.load(path, weights_only=False) if "pickle" not in kind else pickle.loads(path.read_bytes())
        assert mark.exists()


def test_a_whole_pickled_network_is_refused(net, tmp_path):
    torch.save(net, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="Refused.*state_dict"): load_upstream(net, tmp_path / "net.pth")


@pytest.mark.parametrize("suffix", ["pth", "npz", "safetensors"])
def test_cut_short(net, theirs, tmp_path, suffix):
    whole, short = tmp_path / f"whole.{suffix}", tmp_path / f"short.{suffix}"
    if suffix == "pth": torch.save(theirs, whole)
    elif suffix == "npz": np.savez(whole, **{k: v.numpy() for k, v in theirs.items()})
    else: save_weights(net, whole)
    data, before = whole.read_bytes(), snapshot(net)
    load = load_weights if suffix == "safetensors" else lambda p, m: load_upstream(m, p)
    load(whole, create_model("cmunext_s"))
    for n in (0, 1, 7, 8, 100, len(data) // 2, len(data) - 1):
        short.write_bytes(data[:n])
        with pytest.raises(ValueError) as error: load(short, net)
        assert short.name in str(error.value) and unchanged(net, before)


@pytest.mark.parametrize("change, words", [
    (lambda d: d.pop("Conv_1x1.bias"), "missing: 1 (Conv_1x1.bias)"), (lambda d: d.update(extra=torch.zeros(1)), "unexpected: 1 (extra)"),
    (lambda d: d.update({"Conv_1x1.bias": torch.zeros(2)}), "Conv_1x1.bias is (2,), not (1,)"),
    (lambda d: d.update({"Conv_1x1.bias": torch.tensor([float("inf")])}), "infinite"), (lambda d: d.update(epoch=3), "no state dict"),
    (lambda d: d.clear(), "no state dict")])
def test_all_or_nothing(net, theirs, change, words):
    for v in theirs.values():
        if v.is_floating_point(): v += 1
    change(theirs)
    before = snapshot(net)
    with pytest.raises(ValueError) as error: load_upstream(net, theirs)
    assert words in str(error.value) and unchanged(net, before) and net.preprocess == "imagenet"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"<html>404</html>", b"{}", b"\x80\x04.", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", ["pth", "npz", "safetensors", "bin"])
def test_something_else(net, tmp_path, content, suffix):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    for load in (lambda: load_upstream(net, path), lambda: load_weights(path)):
        with pytest.raises(ValueError, match=path.name): load()


def test_missing_files(net, tmp_path):
    for call in (load_weights, read_metadata, lambda p: load_upstream(net, p)):
        for path in (tmp_path / "no.pth", tmp_path):
            with pytest.raises(FileNotFoundError) as error: call(path)
            assert str(path) in str(error.value)


# --- ours ---

@pytest.mark.parametrize("dtype, error", [(None, 0), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("options", [{}, dict(in_channels=1, num_classes=4, dims=(4, 6, 8), depths=(1, 0, 2), kernel_sizes=(3, 5, 7))])
def test_round_trip(tmp_path, dtype, error, options):
    net = create_model("cmunext_s", **options).to(memory_format=torch.channels_last)
    net.preprocess = "unit"
    path = save_weights(net, tmp_path / "deep" / "w.safetensors", dtype=dtype, epoch=3)
    twin = load_weights(path)
    assert twin.preprocess == "unit" and read_metadata(path)["metadata"] == {"epoch": 3}
    for k, v in twin.state_dict().items(): torch.testing.assert_close(v, net.state_dict()[k], rtol=error, atol=error)


def test_the_same_weights_give_the_same_file(net, tmp_path):
    a, b = (save_weights(net, tmp_path / n, note="x", more=[1, 2]).read_bytes() for n in "ab")
    assert a == b


def test_other_architectures(net, tmp_path):
    path = save_weights(net, tmp_path / "s.safetensors")
    for other in (create_model("cmunext"), create_model("cmunext_s", num_classes=2), create_model("cmunext_s", depths=(1, 1, 1, 1, 2))):
        before = snapshot(other)
        with pytest.raises(ValueError, match="does not fit.*cmunext_s"): load_weights(path, other)
        assert unchanged(other, before)


def test_a_file_of_a_network_unknown_here(net, tmp_path):
    net.config = dict(net.config, name="cmunext_xl")
    with pytest.raises(ValueError, match="w.safetensors.*Did you mean"): load_weights(save_weights(net, tmp_path / "w.safetensors"))


def test_a_safetensors_file_of_someone_else(net, tmp_path):
    from safetensors.torch import save_file
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="not written by save_weights"): load_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_broken_weights_are_not_saved(net, tmp_path, dtype):
    path = save_weights(net, tmp_path / "w.safetensors")
    good = path.read_bytes()
    net.stem.conv.bias.data[0] = float("nan") if dtype is None else 1e5
    with pytest.raises(ValueError, match="stem.conv.bias"): save_weights(net, path, dtype=dtype)
    assert path.read_bytes() == good


# --- writing ---

def no_temporary_files(folder): return not [p for p in folder.iterdir() if p.name.endswith(".tmp")]


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
@pytest.mark.parametrize("how", ["save_weights", "torch.save", "write"])
def test_full_disk(net, tmp_path, how):
    import resource
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"the old file")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError) as error:
            if how == "save_weights": save_weights(net, path)
            else:
                with atomic_write(path) as file: torch.save(net.state_dict(), file) if how == "torch.save" else file.write(bytes(200_000))
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"the old file" and no_temporary_files(tmp_path)
    assert error.value.errno == errno.EFBIG and str(path) in str(error.value) and "Free some space" in str(error.value)


@pytest.mark.parametrize("step", ["os.replace", "os.fsync", "pathlib.Path.mkdir"])
@pytest.mark.parametrize("problem, words", [(PermissionError(errno.EACCES, "Permission denied"), "may write"), (OSError(errno.ENOSPC, "No space"), "Free some")])
def test_errors_of_each_step(monkeypatch, tmp_path, step, problem, words):
    def fail(*args, **kwargs): raise problem
    path = tmp_path / "w.bin"
    path.write_bytes(b"the old file")
    monkeypatch.setattr(step, fail)
    with pytest.raises(type(problem)) as error:
        with atomic_write(path) as file: file.write(b"new")
    assert words in str(error.value) and str(path) in str(error.value) and "untouched" in str(error.value)
    assert path.read_bytes() == b"the old file" and no_temporary_files(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="may write"):
            with atomic_write(tmp_path / "w.bin") as file: file.write(b"new")
    finally: tmp_path.chmod(0o700)


def test_errors_of_the_body_pass_through(tmp_path):
    path = tmp_path / "w.txt"
    for problem in (RuntimeError("mine"), KeyboardInterrupt(), FileNotFoundError(errno.ENOENT, "gone", "elsewhere.txt")):
        with pytest.raises(type(problem)) as error:
            with atomic_write(path, "w") as file:
                file.write("half")
                raise problem
        assert error.value is problem and not path.exists() and no_temporary_files(tmp_path)


def test_a_target_that_is_a_folder(tmp_path):
    with pytest.raises(OSError) as error:
        with atomic_write(tmp_path / "sub" / "..") as file: file.write(b"x")
    assert "Could not write" in str(error.value)


def test_two_writers_leave_one_whole_file(tmp_path):
    path, size = tmp_path / "w.bin", 200_000
    def write(letter):
        for _ in range(5):
            with atomic_write(path) as file: file.write(letter * size)
    threads = [threading.Thread(target=write, args=(c,)) for c in (b"a", b"b")]
    for t in threads: t.start()
    for t in threads: t.join()
    assert path.read_bytes() in (b"a" * size, b"b" * size) and no_temporary_files(tmp_path)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
def test_killed_while_writing(tmp_path):
    path = tmp_path / "w.bin"
    path.write_bytes(b"the old file")
    code = ("import os, signal, sys; from cmunext_nb.weights import atomic_write\n"
            "with atomic_write(sys.argv[1]) as f: f.write(bytes(10**6)); f.flush(); os.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL and path.read_bytes() == b"the old file"


# --- images ---

def test_preprocess_by_hand():
    x = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(preprocess(x, "unit"), x / 255)
    torch.testing.assert_close(preprocess(x), (x / 255 - mean) / std)
    torch.testing.assert_close(preprocess(x, "upstream"), (x[:, [2, 1, 0]] / 255 - mean) / std / 255)
    for how in ("unit", "imagenet", "upstream"):
        assert preprocess(x, how).dtype == torch.float32
        torch.testing.assert_close(preprocess(x.double() / 255, how), preprocess(x, how))
        torch.testing.assert_close(preprocess(x.numpy(), how), preprocess(x, how))


@pytest.mark.parametrize("bad", [torch.zeros(1, 1, 4, 4).long(), torch.full((1, 1, 4, 4), 200.0), torch.full((1, 1, 4, 4), float("inf")),
                                 torch.tensor(float("nan")).view(1, 1, 1, 1), torch.zeros(4, 4), torch.full((1, 1, 4, 4), -1.0)])
def test_preprocess_refuses(bad):
    with pytest.raises(ValueError, match="preprocess takes"): preprocess(bad)


@pytest.mark.filterwarnings("ignore")  # tracing warns of every shape that it looks at
def test_preprocess_can_be_recorded():
    x = torch.rand(1, 3, 8, 8)
    traced = torch.jit.trace(lambda x: preprocess(x, "imagenet"), torch.rand(1, 3, 8, 8))
    torch.testing.assert_close(traced(x), preprocess(x))


@pytest.mark.parametrize("have, want", [(3, 1), (2, 3), (4, 3)])
def test_channels_that_do_not_fit(have, want):
    with pytest.raises(ValueError, match=f"{have} channels.*network of {want}"): to_channels(torch.zeros(1, have, 4, 4), want)


def test_the_shipped_busi_weights_carry_their_card():
    about = read_metadata(ASSETS / "cmunext_s_busi.safetensors")["metadata"]
    assert {"data", "licence", "recipe", "changed", "seed", "command", "scores", "limits", "hardware", "minutes"} <= about.keys()
    assert "not a medical device" in about["limits"] and (ASSETS / "cmunext_s_busi.safetensors").stat().st_size < 1.8e6


@pytest.mark.skipif(not any(r.is_dir() for r in data_roots("busi")), reason="BUSI is not here")
def test_the_shipped_busi_weights_score_as_their_card_says():
    valid = load_dataset("busi", split=1, size=256)[1][:40]
    names = read_metadata(ASSETS / "cmunext_s_busi.safetensors")["metadata"]["scores"]
    found = evaluate(create_model("cmunext_s", pretrained="busi"), valid)["iou"]
    assert abs(found - names["valid"]["iou"]) < 0.12  # 40 of the 195 images
    assert found > 0.1 + evaluate(create_model("cmunext_s", pretrained="phantom"), valid)["iou"]  # what synthetic scans alone teach


def test_a_part_called_module_is_no_wrapper(net, tmp_path):
    class Own(torch.nn.Module):
        def __init__(self): super().__init__(); self.module, self.head = torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 1, 1)
    names = set(Own().state_dict())
    assert set(load_file(save_weights(Own(), tmp_path / "own.safetensors"))) == names
    for wrapped in (torch.nn.DataParallel(net), torch.compile(net), torch.compile(torch.nn.DataParallel(net)), torch.optim.swa_utils.AveragedModel(net)):
        assert set(load_file(save_weights(wrapped, tmp_path / "net.safetensors"))) == set(net.state_dict())


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, "float16", torch.complex64])
def test_formats_that_would_destroy_the_weights(tmp_path, dtype):
    with pytest.raises(ValueError, match="dtype=.*expected torch.float16.*deploy"): save_weights(create_model("cmunext_s"), tmp_path / "w.safetensors", dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_images_are_float32_whatever_the_default_format_is():
    images = torch.rand(1, 3, 8, 8)
    torch.set_default_dtype(torch.float64)
    try: assert {preprocess(images, how).dtype for how in PREPROCESSING} == {torch.float32}
    finally: torch.set_default_dtype(torch.float32)


def test_what_does_not_fit_is_named_with_a_remedy_that_helps(tmp_path):
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1))  # it has no config
    save_weights(plain, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="Build the network as it was saved"): load_weights(tmp_path / "plain.safetensors", torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1)))
    save_weights(create_model("cmunext_s"), tmp_path / "ours.safetensors")
    with pytest.raises(ValueError, match="cmunext_s.*or call load_weights without one"): load_weights(tmp_path / "ours.safetensors", plain)
