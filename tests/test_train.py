"""Training: exact resume, interrupts, bad input, several processes. The everyday path is checked in nbs/15_train.ipynb."""
import errno, io, json, os, re, signal, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cmunext_nb import Ensemble, predict, train as T
from cmunext_nb.loss import BCEDiceLoss
from cmunext_nb.metrics import f1, iou
from cmunext_nb.model import create_model
from cmunext_nb.predict import TTAWrapper
from cmunext_nb.train import History, Recipe, WeightAverage, evaluate, fit, get_recipe, learning_rate, main, start_run, train_step
from cmunext_nb.weights import load_weights, preprocess

TINY = dict(dims=(4, 8, 8), depths=(1, 1, 1), kernel_sizes=(3, 3, 5))


def blobs(n=6, size=32, seed=0, channels=1):
    "Dark discs in noise, and the discs: a pair (images, masks)."
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centre, radius = size * (0.3 + 0.4 * torch.rand(n, 2, 1, 1, generator=g)), size * (0.12 + 0.12 * torch.rand(n, 1, 1, generator=g))
    masks = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2)[:, None].byte()
    return (140 - 80 * masks + 25 * torch.randn(n, channels, size, size, generator=g)).clamp(0, 255).byte(), masks


def tiny(seed=0, **overrides):
    torch.manual_seed(seed)
    return create_model("cmunext_s", **{**TINY, **overrides})


def train(model=None, out=None, epochs=4, **kwargs):
    "A short training of a tiny network that uses everything: average, growing size, augmentation, clipping."
    model = tiny() if model is None else model
    settings = {**dict(recipe="fast", batch_size=2, amp=False, progress=False, validate_every=1), **kwargs}
    return model, fit(model, blobs(), blobs(4, seed=1), epochs=epochs, out=out, **settings)


def same(a, b):
    a, b = (x.state_dict() if isinstance(x, nn.Module) else x for x in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def figures(history): return [{k: v for k, v in r.items() if k != "seconds"} for r in history.rows]


@pytest.fixture(scope="module")
def whole():
    "An uninterrupted training to compare with."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield train()
    torch.set_num_threads(threads)


# Going on exactly

KILLED = """
import os, signal, sys, torch
sys.path.insert(0, {here!r})
from test_train import train
torch.set_num_threads(1)
train(out={out!r}, on_step=lambda run: os.kill(os.getpid(), signal.SIGKILL) if run.step == {step} else None)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_and_resumed_is_bit_for_bit_the_same(tmp_path, whole):
    code = KILLED.format(here=str(Path(__file__).parent), out=str(tmp_path), step=8)
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert torch.load(tmp_path / "state.pt", weights_only=True)["epoch"] == 2
    model, history = train(tiny(seed=7), out=tmp_path)  # other first weights: the folder's must win
    assert same(model, whole[0]) and figures(history) == figures(whole[1])
    assert not list(tmp_path.glob(".*")), "left a temporary file behind"


@pytest.mark.parametrize("step", [0, 2, 4, 6])
def test_stopped_by_a_hook_goes_on_in_the_middle_of_an_epoch(tmp_path, whole, step):
    stop = lambda run: run.step <= step
    for out, resume in ((tmp_path, lambda h: True), (None, lambda h: h), (None, lambda h: h.state)):
        _, first = train(out=out, on_step=stop)
        assert f"stopped after step {step + 1} of 12" in first.message and not first.interrupted
        model, history = train(tiny(seed=7), out=out, resume=resume(first))
        assert same(model, whole[0]) and figures(history) == figures(whole[1])


def test_stopped_after_an_epoch(whole):
    _, first = train(on_epoch=lambda run: run.epoch < 2)
    assert len(first.rows) == 2
    model, history = train(tiny(seed=7), resume=first)
    assert same(model, whole[0]) and len(history.rows) == 4


def test_a_finished_training_is_not_repeated(tmp_path, whole):
    train(out=tmp_path)
    steps = []
    model, history = train(tiny(seed=7), out=tmp_path, on_step=lambda run: steps.append(run.step))
    assert not steps and same(model, whole[0]) and figures(history) == figures(whole[1])


def test_dropout_and_the_random_state_outside():
    "Dropout goes on exactly too, and the numbers drawn after `fit` are those that would have come without it."
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(4, 1, 1))
    settings = dict(recipe="paper", batch_size=2)
    model, _ = train(net(), epochs=2, **settings)
    expected = (torch.manual_seed(5), torch.rand(3))[1]
    torch.manual_seed(5)
    _, first = train(net(), epochs=2, on_step=lambda run: run.step < 4, **settings)
    again, _ = train(net(), epochs=2, resume=first, **settings)
    assert same(again, model)
    model = tiny()
    torch.manual_seed(5)
    train(model, epochs=1)
    assert torch.equal(torch.rand(3), expected)


class Dropping(nn.Module):
    "A network with dropout that, from a given training step on, is at work."
    def __init__(self, first=0):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.left = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(4, 1, 1)), first

    def forward(self, x):
        self.left -= self.training
        self.net[1].p = 0.5 if self.left < 0 else 0.0
        return self.net(x)


@pytest.mark.parametrize("net", [tiny, Dropping, lambda: Dropping(3)])
def test_numbers_drawn_between_steps_and_the_training_do_not_disturb_each_other(net):
    settings = dict(recipe="paper", batch_size=2, epochs=2)
    alone, _ = train(net(), **settings)
    model, drawn = net(), []
    torch.manual_seed(5)
    expected, _ = [torch.rand(1).item() for _ in range(6)], torch.manual_seed(5)
    assert same(train(model, on_step=lambda run: drawn.append(torch.rand(1).item()), **settings)[0], alone)
    assert drawn == expected


def test_a_network_without_dropout_never_touches_the_generator_that_all_threads_share(monkeypatch):
    "So numbers drawn in another thread, at any moment of a step, are what they would have been, and the training too."
    model, touched = tiny(), []
    for name in ("manual_seed", "set_rng_state"): monkeypatch.setattr(torch, name, lambda *a, **k: touched.append(a))
    monkeypatch.setattr(torch.random, "set_rng_state", lambda *a, **k: touched.append(a))
    train(model, epochs=1)
    assert not touched
    monkeypatch.undo()
    model = Dropping()
    monkeypatch.setattr(torch, "manual_seed", lambda *a, **k: touched.append(a))
    train(model, epochs=1, recipe="paper", batch_size=3)
    assert len(touched) == 3  # two steps and a validation


@pytest.mark.parametrize("change, field", [(dict(epochs=5), "recipe.epochs"), (dict(lr=0.1), "recipe.lr"), (dict(seed=1), "seed"),
                                           (dict(model="wide"), "model"), (dict(data="more"), "training_set")])
def test_a_state_of_another_training_names_the_difference(tmp_path, change, field):
    train(out=tmp_path, epochs=1)
    before = (tmp_path / "state.pt").read_bytes()
    model = tiny(dims=(4, 8, 16)) if change.pop("model", 0) else tiny()
    data = blobs(8) if change.pop("data", 0) else blobs()
    settings = {**dict(epochs=1, batch_size=2, amp=False, progress=False, validate_every=1, out=tmp_path), **change}
    with pytest.raises(ValueError, match=rf"(?s){field} was .* and is now .*resume=False") as e: fit(model, data, blobs(4, seed=1), **settings)
    assert str(tmp_path) in str(e.value) and (tmp_path / "state.pt").read_bytes() == before
    assert len(fit(model, data, blobs(4, seed=1), resume=False, **settings).rows) == settings["epochs"]


def test_a_state_cut_short(tmp_path):
    train(out=tmp_path, epochs=1)
    path = tmp_path / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="state.pt cannot be read.*resume=False"): train(out=tmp_path, epochs=1)


def test_a_history_without_state():
    with pytest.raises(ValueError, match="holds no state"): train(resume=History())


# Interrupts and failures lose nothing

def test_ctrl_c_keeps_the_weights(tmp_path, whole, capsys):
    model, first = train(out=tmp_path, on_step=lambda run: signal.raise_signal(signal.SIGINT) if run.step == 8 else None, progress=True)
    assert first.interrupted and "interrupted in epoch 3 of 4" in first.message and first.message in capsys.readouterr().out
    assert len(first.rows) == 2 and torch.load(tmp_path / "state.pt", weights_only=True)["epoch"] == 2
    from cmunext_nb.weights import load_weights
    assert same(load_weights(tmp_path / "interrupted.safetensors"), model)
    assert not same(load_weights(tmp_path / "last.safetensors"), model)
    for resume in (True, first):
        again, history = train(tiny(seed=7), out=tmp_path, resume=resume)
        assert same(again, whole[0]) and not history.interrupted


def test_ctrl_c_before_the_first_epoch(whole):
    def interrupt(run): raise KeyboardInterrupt
    _, first = train(on_step=interrupt)
    assert first.interrupted and not first.rows and "no epoch finished" in repr(first)
    assert same(train(tiny(seed=7), resume=first)[0], whole[0])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_ctrl_c_while_the_state_is_written(error):
    "torch's writer, told to stop, finds its file too short and says so instead."
    class File(io.BytesIO):
        def write(self, data):
            if self.tell() > 2000: raise error
            return super().write(data)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else (OSError, RuntimeError)): T._write_state(dict(tiny().state_dict()), File())


class Breaks(nn.Module):
    "A network that gives NaN from its n-th training step on."
    def __init__(self, n):
        super().__init__()
        self.net, self.left, self.config = tiny(), n, dict(in_channels=3, num_classes=1)

    def forward(self, x):
        self.left -= self.training
        return self.net(x if self.left >= 0 else x * float("nan"))


def test_nan_names_the_place_and_harms_nothing(tmp_path):
    model, kept = Breaks(7), {}
    def keep(run):
        if run.epoch == 2: kept.update({k: v.clone() for k, v in run.average.model.state_dict().items()}, files={p.name: p.read_bytes() for p in tmp_path.iterdir()})
    with pytest.raises(FloatingPointError, match=r"nan in epoch 3, step 2 \(images \d, \d\).*end of epoch 2.*lower lr"):
        train(model, out=tmp_path, on_epoch=keep)
    files = kept.pop("files")
    assert same(model, kept) and all(v.isfinite().all() for v in model.state_dict().values())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files


def test_divergence_is_an_error_not_a_result():
    with pytest.raises(FloatingPointError, match="epoch"): train(recipe="paper", lr=1e30, epochs=3, augment=None)


def test_a_full_disk(tmp_path, monkeypatch, whole):
    train(out=tmp_path, on_epoch=lambda run: run.epoch < 2)
    real, before = os.fsync, {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    calls = []
    def full(fd):
        calls.append(fd)
        if len(calls) > 5: raise OSError(errno.ENOSPC, "No space left on device")  # after the files of the start
        real(fd)
    monkeypatch.setattr(os, "fsync", full)
    model = tiny(seed=7)
    with pytest.raises(OSError, match="Could not write.*keeps its weights of epoch 3.*whole") as e: train(model, out=tmp_path)
    assert e.value.errno == errno.ENOSPC and not same(model, tiny(seed=7))
    assert {p.name for p in tmp_path.iterdir()} == set(before), "a half file is left"
    assert torch.load(tmp_path / "state.pt", weights_only=True)["epoch"] == 2
    monkeypatch.setattr(os, "fsync", real)
    assert same(train(tiny(seed=7), out=tmp_path)[0], whole[0])


def test_a_folder_that_cannot_be_made_is_found_out_at_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    steps = []
    with pytest.raises(OSError, match="file"): train(out=tmp_path / "file" / "run", on_step=lambda run: steps.append(1))
    assert not steps


def test_an_error_in_a_hook_is_passed_on():
    def hook(run): raise FileNotFoundError("mine")
    with pytest.raises(FileNotFoundError, match="^mine$"): train(on_step=hook)


# Bad input

def test_a_file_in_the_folder_s_place(tmp_path):
    (tmp_path / "afile").write_text("")
    with pytest.raises(OSError, match=r"Could not write .*afile.*Check the path, or choose another one\. The model keeps its weights of epoch 0\.$") as e: train(out=tmp_path / "afile")
    assert "are whole" not in str(e.value)


@pytest.mark.parametrize("augment", ["fast", "strong"])
def test_another_default_number_format(augment):
    torch.set_default_dtype(torch.float64)
    try: history = fit(tiny().float(), blobs(), recipe="fast", epochs=1, augment=augment, amp=False, progress=False)
    finally: torch.set_default_dtype(torch.float32)
    assert history.last["loss"] > 0


@pytest.mark.parametrize("words, said", [("--data phanton", "phanton.*phantom"), ("--data phantom --size 64 --recipe fats", "fats.*fast"), ("--data folder --root nowhere", "No folder nowhere")])
def test_a_wrong_command_is_one_line(tmp_path, words, said):
    done = subprocess.run([sys.executable, "-m", "cmunext_nb.train", *words.split(), "--out", str(tmp_path / "o")], capture_output=True, text=True)
    assert done.returncode == 1 and re.fullmatch(f"error: .*{said}.*\n", done.stderr)


@pytest.mark.parametrize("data, error, words", [
    ((torch.zeros(0, 1, 32, 32, dtype=torch.uint8),) * 2, ValueError, "training set is empty"),
    ((blobs()[0].float(), blobs()[1]), TypeError, "float32.*uint8"),
    ((blobs()[0], blobs()[1] * 255), ValueError, "mask of '0'.*255"),
    ((blobs()[0], blobs()[1][:4]), ValueError, "number and size must agree"),
    ((blobs()[0], blobs()[1][..., :16]), ValueError, "number and size must agree"),
    (blobs(channels=2), ValueError, "takes 3 channels.*have 2"),
    ((blobs()[0], blobs()[1].repeat(1, 2, 1, 1)), ValueError, "gives 1 classes.*num_classes=2"),
    (blobs(size=8), ValueError, "16 x 16 is the least"),
])
def test_bad_data(data, error, words):
    with pytest.raises(error, match=words): fit(tiny(), data, progress=False)


@pytest.mark.parametrize("settings, words", [
    (dict(recipe="fats"), "fats.*fast"), (dict(learning_rate=1), "learning_rate"), (dict(epochs=0), "epochs must be at least 1"),
    (dict(lr="abc"), "lr must be a number, not 'abc'"), (dict(lr=None), "lr must be a number, not None"), (dict(clip="1"), "clip must be a number, not '1'"),
    (dict(lr=-1.0), "lr must be above 0"), (dict(optimizer="adam"), "optimizer must be"), (dict(schedule="step"), "schedule must be"),
    (dict(ema=1.5), "ema must be"), (dict(augment="papr"), "papr.*paper"), (dict(amp="half"), "amp='half'"),
    (dict(augment=dict(scal=0.6)), "scal.*scale"), (dict(augment=dict(scale=-1)), "scale=-1"),
    (dict(epochs=2.5), "epochs must be .*whole, not 2.5"), (dict(batch_size=2.5), "batch_size must be .*whole"), (dict(validate_every=0), "validate_every must be at least 1"),
    (dict(clip=-1.0), "clip must be None or above 0"), (dict(warmup=2.0), "warmup=2.0"), (dict(prior="False"), "prior='False' True or False"),
    *((dict(sizes=s), "must be pairs such as") for s in (((0.4, 0.75), (0.0, 0.5)), ((0.0, 0.5), (0.0, 1.0)), ((-0.1, 0.5),), ((0, -1),), ((0, 0),), (0.0, 0.5), "half", ((0, "a"),)))])
def test_bad_recipes(settings, words):
    with pytest.raises(ValueError, match=words): fit(tiny(), blobs(), progress=False, **settings)


@pytest.mark.parametrize("settings", [dict(sizes=[[0, 48], [0.5, 1]]), dict(sizes=()), dict(sizes=((0.5, 0.5),)), dict(warmup=1.0), dict(clip=None)])
def test_good_recipes(settings): assert get_recipe("fast", **settings)


# Batches, sizes, schedules

@pytest.mark.parametrize("n, size, world, expected", [(9, 4, 1, [4, 5]), (10, 4, 1, [4, 4, 2]), (3, 8, 1, [3]), (1, 8, 1, [1]),
                                                      (11, 4, 2, [4, 6]), (12, 4, 2, [4, 4, 4]), (5, 4, 2, [4]), (6, 1, 1, [1] * 6), (8, 2, 2, [2] * 4)])
def test_no_batch_of_one(n, size, world, expected):
    run = start_run(tiny(), blobs(n), recipe=get_recipe("paper", batch_size=size))
    run.world = world
    batches = T._batches(run)
    assert [len(b) for b in batches] == expected and len(batches) == run.steps_per_epoch
    seen = torch.cat(batches).tolist()
    assert len(set(seen)) == len(seen) and n - len(seen) < world


def test_a_last_batch_of_one_at_the_smallest_size():
    model = create_model("cmunext_s", depths=(1,) * 5)  # 16 px end in a map of 1 x 1, where batch norm refuses one image
    assert len(fit(model, blobs(9, 16), recipe="paper", epochs=1, progress=False).rows) == 1


def test_another_order_each_epoch_and_the_same_in_each_run():
    runs = [start_run(tiny(), blobs(12), seed=s) for s in (1, 1, 2)]
    a, b, c = (torch.cat(T._batches(r)) for r in runs)
    runs[0].epoch = 1
    assert torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(a, torch.cat(T._batches(runs[0])))


def test_sizes_grow_and_masks_stay_binary():
    sizes = []
    def note(run): sizes.append((run.images.shape[-1], run.masks.max().item(), run.images.dtype))
    fit(tiny(), blobs(4, 64), recipe="fast", epochs=5, progress=False, amp=False, on_epoch=note)
    assert sizes == [(s, 1, torch.uint8) for s in (32, 32, 48, 48, 64)]
    run = start_run(tiny(), blobs(4, 64), recipe=get_recipe("fast", sizes=((0.0, 32), (0.5, 256))))
    T._set_size(run)
    assert run.images.shape[-1] == 32
    run.epoch = 20
    T._set_size(run)
    assert run.images.shape[-1] == 64, "images are never enlarged"


@pytest.mark.parametrize("total", [10, 97, 2000])
def test_onecycle_is_torchs(total):
    recipe = get_recipe("fast")
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], recipe.lr)
    theirs = torch.optim.lr_scheduler.OneCycleLR(sgd, recipe.lr, total_steps=total, pct_start=recipe.warmup)
    for step in range(total):
        assert learning_rate(recipe, step, total) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-9, abs=1e-15)
        sgd.step()
        if step < total - 1: theirs.step()


@pytest.mark.parametrize("schedule", ["poly", "onecycle", "cosine"])
@pytest.mark.parametrize("total", [1, 2, 3, 50])
def test_rates_are_in_range_even_for_a_handful_of_steps(schedule, total):
    for warmup in (0.0, 0.25, 1.0):
        rates = [learning_rate(Recipe(schedule=schedule, lr=1.0, warmup=warmup), s, total) for s in range(total)]
        assert all(0 <= r <= 1 for r in rates) and max(rates) > 0


def test_clipping_bounds_the_gradient():
    run = start_run(tiny(), blobs(), recipe=get_recipe("paper", clip=1e-3))
    train_step(run, torch.arange(4))
    assert sum(p.grad.norm() ** 2 for p in run.model.parameters()) ** 0.5 <= 1.001e-3


def test_adamw_spares_biases_and_norms_from_decay():
    groups = T._make_optimizer(tiny(), get_recipe("fast")).param_groups
    assert all(p.ndim > 1 for p in groups[0]["params"]) and groups[0]["weight_decay"] > 0
    assert all(p.ndim <= 1 for p in groups[1]["params"]) and groups[1]["weight_decay"] == 0


def test_the_average_settles_on_a_constant_model():
    model, other = tiny(seed=1), tiny(seed=2)
    average = WeightAverage(other, decay=0.9)
    for step in range(1, 400): average.update(model, step)
    for k, v in model.state_dict().items(): torch.testing.assert_close(average.model.state_dict()[k], v)
    assert not same(other, model), "the model it began from is not touched"


# Scores

def test_the_average_leaves_alone_what_no_file_keeps():
    "A grid that a network makes anew for each image size is a buffer, but none of its state."
    model = nn.Linear(2, 2)
    model.register_buffer("grid", torch.zeros(3), persistent=False)
    average = WeightAverage(model, 0.9)
    model.grid = torch.ones(5)
    average.update(model, 100)
    assert average.model.grid.shape == (3,)


def test_evaluate_is_the_metrics_whatever_the_batch_size():
    model, (images, masks) = tiny().train(), blobs(7)
    results = [evaluate(model, (images, masks), batch_size=b, per_image=True) for b in (1, 3, 16)]
    assert model.training, "the mode is restored"
    from cmunext_nb.weights import preprocess, to_channels
    with torch.no_grad(): logits = model.eval()(preprocess(to_channels(images, 3)))
    for r in results:
        assert r["iou"] == pytest.approx(iou(logits, masks)) and r["f1_pooled"] == pytest.approx(f1(logits, masks, reduce="pooled"))
        assert r["n"] == 7 and r["loss"] == pytest.approx(results[0]["loss"], rel=1e-5)
        assert len(r["per_image"]["iou"]) == 7 and sum(r["per_image"]["iou"]) / 7 == pytest.approx(r["iou"])
    with pytest.raises(ValueError, match="empty"): evaluate(model, (images[:0], masks[:0]))


def test_evaluate_leaves_each_part_in_its_mode():
    "A frozen norm stays frozen, and the network inside a fresh TTAWrapper in evaluation mode."
    model = tiny().train()
    model.stem.norm.eval()
    evaluate(model, blobs(3))
    assert model.training and not model.stem.norm.training
    model.eval()
    evaluate(TTAWrapper(model, "mirror"), blobs(3))
    assert not any(m.training for m in model.modules())


class Spoilt(nn.Module):
    "A network whose answer goes through a function."
    def __init__(self, then):
        super().__init__()
        self.inside, self.then, self.config = tiny(), then, SimpleNamespace(width=8)  # an object, as in other libraries

    def forward(self, x): return self.then(self.inside(x))


def test_the_modes_are_put_back_after_an_error_and_after_ctrl_c():
    def stop(_): raise KeyboardInterrupt
    def fail(_): raise RuntimeError("no memory")
    for then, error in ((stop, KeyboardInterrupt), (fail, RuntimeError)):
        model = Spoilt(then).train()
        model.inside.stem.norm.eval()
        with pytest.raises(error): evaluate(model, blobs(3))
        assert model.training and model.inside.head.training and not model.inside.stem.norm.training


@pytest.mark.parametrize("then, kind", [(lambda y: dict(out=y), "dict"), (lambda y: [y, y], "list"), (lambda y: (y, y), "tuple")])
def test_several_outputs_are_refused_in_words(then, kind):
    with pytest.raises(TypeError, match=f"the network gave {kind}: expected logits.*Wrap it"): evaluate(Spoilt(then), blobs(3))
    with pytest.raises(TypeError, match=f"the network gave {kind}.*losses are added"): train(Spoilt(then), epochs=1)


def test_a_config_of_another_kind_is_none():
    model = Spoilt(lambda y: y)
    assert model is train(model, epochs=1)[0] and model.inside.training is False
    assert evaluate(model, blobs(3)) == evaluate(model.inside, blobs(3)) == pytest.approx(evaluate(TTAWrapper(model, False), blobs(3)), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_other_formats_are_measured_but_not_trained(dtype):
    model = train(epochs=1)[0]
    wanted, model = evaluate(model, blobs(4)), model.to(dtype)
    for size in (None, (24, 24)): assert evaluate(model, blobs(4), size=size)["loss"] == pytest.approx(wanted["loss"], abs=0.1)
    with pytest.raises(TypeError, match=f"{dtype}: training needs float32.*model.float.*amp="): train(model, epochs=1)


def test_a_wrong_guess_of_the_channels_has_a_remedy():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 1, 1))  # a layer gives 4 and another takes 3: ambiguous
    data = blobs(3, channels=4)
    with pytest.raises(ValueError, match=r"takes 3 channels.*have 4.*model.config = dict\(in_channels=4\)"): evaluate(model, data)
    model.config = dict(in_channels=4)
    assert evaluate(model, data)["n"] == 3


def test_files_are_the_weights_of_the_history(tmp_path):
    from cmunext_nb.weights import load_weights, read_metadata
    model, history = train(out=tmp_path, epochs=5)
    assert {p.name for p in tmp_path.iterdir()} == {"last.safetensors", "best.safetensors", "history.jsonl", "state.pt", "curves.png"}
    assert same(load_weights(tmp_path / "last.safetensors"), model)
    best = evaluate(load_weights(tmp_path / "best.safetensors"), blobs(4, seed=1))
    assert best["iou"] == pytest.approx(history.best["iou"], abs=1e-6) == max(r["iou"] for r in history.rows)
    assert History.load(tmp_path / "history.jsonl").rows == history.rows
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert not model.training and read_metadata(tmp_path / "best.safetensors")["metadata"]["epoch"] == history.best["epoch"]


def test_without_validation(tmp_path):
    history = fit(tiny(), blobs(), epochs=2, out=tmp_path, progress=False)
    assert "iou" not in history.last and history.best is history.last and (tmp_path / "curves.png").exists()
    assert (tmp_path / "best.safetensors").exists()


def test_two_classes_and_two_channels():
    images, masks = blobs(channels=2)[0], blobs()[1]
    model = tiny(in_channels=2, num_classes=2)
    history = fit(model, (images, torch.cat([masks, 1 - masks], 1)), (images, torch.cat([masks, 1 - masks], 1)), epochs=1, progress=False)
    assert 0 <= history.last["iou"] <= 1


@pytest.mark.parametrize("amp", ["bf16", "auto"])
def test_mixed_precision_trains_too(amp):
    _, history = train(amp=amp)
    _, again = train(amp=amp)
    assert figures(history) == figures(again) and history.last["loss"] < history.rows[0]["loss"]


def test_only_recipes_without_amp_keep_the_plain_layout():
    "torch's batch norm on the CPU is less exact in channels_last, so `amp=False` must not use it."
    for amp, layout in ((False, torch.contiguous_format), ("auto", torch.channels_last), ("bf16", torch.channels_last)):
        run = start_run(tiny(), blobs(), recipe=get_recipe("fast", amp=amp), device="cpu")
        T._set_size(run)
        assert T.get_batch(run, torch.arange(4))[0].is_contiguous(memory_format=layout)
        assert run.model.stem.conv.weight.is_contiguous(memory_format=layout)


def test_mixed_precision_is_close_to_float32():
    def losses(amp):
        run = start_run(tiny(), blobs(8), recipe=get_recipe("paper", amp=amp, augment=None), device="cpu")
        return [train_step(run, torch.arange(8)) for _ in range(5)]
    assert losses("bf16") == pytest.approx(losses(False), rel=0.02) and losses("bf16") != losses(False)


# What is said

def test_one_line_and_a_log_without_debris(capsys, monkeypatch):
    monkeypatch.delenv("CMUNEXT_QUIET", raising=False)
    train(progress=True, epochs=2, device="cpu")
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert "cpu" in lines[0] and "float32" in lines[0] and "fast: 2 epochs of 3 steps" in lines[0]
    assert len(lines) == 3 and "iou" in lines[1] and "\r" not in out + err
    train(progress=False, epochs=1)
    assert capsys.readouterr() == ("", "")


def test_the_quiet_switch(capsys, monkeypatch):
    for value, lines in (("1", 1), ("yes", 1), ("0", 3), ("", 3)):
        monkeypatch.setenv("CMUNEXT_QUIET", value)
        train(progress=True, epochs=2)
        assert len(capsys.readouterr().out.splitlines()) == lines, value


# Several processes

WORKER = """
import os, sys, torch
sys.path.insert(0, {here!r})
from test_train import blobs, tiny
from cmunext_nb.train import fit
from torch import distributed as dist
torch.set_num_threads(1)
rank = int(os.environ.get("RANK", 0))
first = tiny(norm=torch.nn.Identity)  # batch norm sees the images of one process only, so it is left out of the comparison
fit(first, blobs(8), blobs(5, seed=1), recipe="paper", batch_size=4, augment=None, epochs=2, progress=False)
settings = dict(batch_size=4, epochs=2, validate_every=1, out={out!r}, amp=False)
fit(tiny(seed=rank), blobs(9), blobs(5, seed=1), on_epoch=lambda run: rank != run.world - 1, **settings)  # one process asks to stop
model = tiny(seed=rank + 5)
history = fit(model, blobs(9), blobs(5, seed=1), **settings)
torch.save(dict(first=first.state_dict(), model=model.state_dict(), rows=history.rows), {out!r} + f"/rank{{rank}}.pt")
if dist.is_initialized(): dist.destroy_process_group()
"""


def test_two_processes_under_torchrun(tmp_path):
    worker, env = tmp_path / "worker.py", {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    folders = dict(two=tmp_path / "two", one=tmp_path / "one")
    for name, folder in folders.items():
        folder.mkdir()
        worker.write_text(WORKER.format(here=str(Path(__file__).parent), out=str(folder)))
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", "0", "--standalone"]
        done = subprocess.run([sys.executable, *(launch if name == "two" else []), str(worker)], capture_output=True, text=True, timeout=240, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
        if name == "two": assert done.stdout.count("Training") == 2 and "after epoch 1" in done.stdout and "2 processes" in done.stdout
    a, b = (torch.load(folders["two"] / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    single = torch.load(folders["one"] / "rank0.pt", weights_only=True)
    assert same(a["model"], b["model"]), "the processes end with other weights"
    drop = lambda rows: [{k: v for k, v in r.items() if k != "seconds"} for r in rows]
    assert drop(a["rows"]) == drop(b["rows"]) and drop(History.load(folders["two"] / "history.jsonl").rows) == drop(a["rows"])
    start = tiny(norm=nn.Identity).state_dict()
    for k, v in single["first"].items():
        torch.testing.assert_close(a["first"][k] - start[k], v - start[k], rtol=1e-3, atol=1e-7)
        assert v.ndim == 0 or not torch.equal(v, start[k])


# The command line

def test_the_command_line(tmp_path, monkeypatch, capsys):
    import cmunext_nb.data as data
    sets = {}
    def load(name, root=None, split=1, size=256): return sets.update(name=name, size=size) or (blobs(4), blobs(3, seed=1))
    monkeypatch.setattr(data, "load_dataset", load)
    history = main(["--data", "phantom", "--size", "32", "--epochs", "1", "--out", str(tmp_path), "--device", "cpu"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert sets == dict(name="phantom", size=32) and report["epochs"] == 1 == len(history.rows) and 0 <= report["best"]["iou"] <= 1
    assert "IoU" in capsys.readouterr().out


def test_the_module_runs():
    done = subprocess.run([sys.executable, "-m", "cmunext_nb.train", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--recipe" in done.stdout and "Warning" not in done.stderr


def test_a_copy_without_busi_s_names_has_no_clean_subset(tmp_path, monkeypatch):
    "Where BUSI is not, `load_dataset` takes MedSegBench's copy, which no curated list fits."
    from cmunext_nb import data
    copy = data.SegmentationData(*blobs(4), [f"val_{i:04d}" for i in range(4)], dict(dataset="medsegbench_busi"))
    monkeypatch.setattr(data, "load_dataset", lambda *args, **options: (copy, copy))
    main(["--data", "busi", "--size", "32", "--epochs", "1", "--out", str(tmp_path), "--device", "cpu"])
    assert set(json.loads((tmp_path / "report.json").read_text())) >= {"last", "best"} and "last_clean" not in (tmp_path / "report.json").read_text()


# A network that is asked at the size at which its training ended

def test_a_recipe_that_ends_at_half_size_is_validated_and_asked_there(tmp_path):
    train, valid, model = blobs(8, 64), blobs(6, 64, seed=1), tiny()
    history = fit(model, train, valid, "half", epochs=6, batch_size=4, amp=False, validate_every=1, augment=None, out=tmp_path, device="cpu", progress=False)
    assert model.trained_size == (32, 32)
    there, elsewhere = evaluate(model, valid), evaluate(model, valid, size=None)
    assert history.last["iou"] == pytest.approx(there["iou"], abs=1e-6) and history.last["valid_loss"] == pytest.approx(there["loss"], abs=1e-5)
    assert there["loss"] != pytest.approx(elsewhere["loss"], abs=1e-4)
    assert load_weights(tmp_path / "last.safetensors").trained_size == (32, 32)
    mine = [r.score(m)["iou"] for r, m in zip(predict(model, valid[0]), valid[1])]
    assert sum(mine) / len(mine) == pytest.approx(there["iou"], abs=1e-3)  # predict asks at the same size


def test_evaluate_at_a_size_by_hand():
    model, (images, masks) = tiny(), blobs(4, 64)
    model.eval()
    x = preprocess(images.expand(-1, 3, -1, -1).clone(), "imagenet")
    with torch.no_grad(): p = torch.sigmoid(model(torch.nn.functional.interpolate(x, (48, 32), mode="bilinear", antialias=True, align_corners=False)))
    p = torch.nn.functional.interpolate(p, (64, 64), mode="bilinear", antialias=True, align_corners=False)
    found = evaluate(model, (images, masks), size=(48, 32))
    assert found["loss"] == pytest.approx(BCEDiceLoss()(torch.logit(p), masks.float()).item(), abs=1e-4)


def test_evaluate_without_a_trained_size_takes_images_as_they_are():
    model, data = tiny(), blobs(4, 64)
    assert evaluate(model, data) == evaluate(model, data, size=None) == evaluate(model, data, size=(64, 64))
    with pytest.raises(ValueError, match="size='big': expected 'trained'"): evaluate(model, data, size="big")


def test_wrappers_are_asked_at_the_trained_size_too():
    model, data = tiny(), blobs(4, 64)
    model.trained_size = (32, 32)
    for wrapped in (TTAWrapper(model, False), Ensemble([model]), torch.nn.DataParallel(model)):
        assert evaluate(wrapped, data)["loss"] == pytest.approx(evaluate(model, data)["loss"], abs=1e-4)


def test_a_recipe_that_grows_is_asked_at_the_whole_size_from_the_start():
    model, data = tiny(), blobs(4, 64)
    fit(model, data, data, "fast", epochs=1, device="cpu", progress=False)  # one epoch at half size, of a recipe that ends at the whole
    assert model.trained_size == (64, 64)


def test_evaluate_refuses_at_a_size_what_it_refuses_at_their_own():
    class Half(torch.nn.Module):
        def forward(self, x): return x.mean(1, keepdim=True)[..., ::2, ::2]
    class Endless(torch.nn.Module):
        def forward(self, x): return x.mean(1, keepdim=True) / 0
    images, masks = blobs(4, 64, channels=3)
    for size in (None, (32, 32)):
        with pytest.raises(ValueError): evaluate(Half(), (images, masks), size=size)
    with pytest.raises(ValueError, match="NaN or infinite"): evaluate(Endless(), (images, masks), size=32)
    assert evaluate(tiny(), (images, masks), size=32) == evaluate(tiny(), (images, masks), size=(32, 32))


def test_sizes_start_before_the_end():
    with pytest.raises(ValueError, match="shares of the epochs"): get_recipe("fast", sizes=((0.0, 0.5), (1.0, 1.0)))


def test_half_goes_on_after_a_stop(tmp_path):
    train, valid = blobs(8, 64), blobs(4, 64, seed=1)
    run = lambda out, **more: (m := tiny(), fit(m, train, valid, "half", epochs=4, batch_size=4, amp=False, validate_every=1, out=out, device="cpu", progress=False, **more))
    whole = run(tmp_path / "a")
    run(tmp_path / "b", on_epoch=lambda r: r.epoch < 2)
    again = run(tmp_path / "b")
    assert again[0].trained_size == (32, 32) and [r["iou"] for r in again[1].rows] == [r["iou"] for r in whole[1].rows]


def test_validation_images_of_another_size_are_seen_at_the_trained_one():
    model = tiny()
    history = fit(model, blobs(8, 64), blobs(4, 48, seed=1), "half", epochs=2, batch_size=4, amp=False, validate_every=1, device="cpu", progress=False)
    assert model.trained_size == (32, 32) and history.last["valid_loss"] == pytest.approx(evaluate(model, blobs(4, 48, seed=1))["loss"], abs=1e-5)


def test_the_network_inside_a_wrapper_learns_its_size():
    inside = tiny()
    fit(torch.nn.DataParallel(inside), blobs(4, 64), None, "half", epochs=1, device="cpu", progress=False)
    assert inside.trained_size == (32, 32)


# Networks in wrappers

@pytest.mark.parametrize("wrapper", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_a_wrapper_does_not_hide_preprocessing_and_channels(wrapper):
    inside, data = tiny(in_channels=1), blobs(4, 64)
    inside.preprocess = "upstream"
    outside = wrapper(inside)
    assert evaluate(outside, data) == evaluate(inside, data)
    batches = [T.get_batch(start_with_size(model, data), torch.arange(2))[0] for model in (inside, outside)]
    assert torch.equal(*batches) and batches[0].shape[1] == 1
    two = blobs(4, 64)[0], blobs(4, 64)[1].repeat(1, 2, 1, 1)
    with pytest.raises(ValueError, match="num_classes=2"): evaluate(outside, two)


def start_with_size(model, data):
    run = start_run(model, data, recipe=get_recipe("paper", augment=None), device="cpu")
    T._set_size(run)
    return run


@pytest.mark.parametrize("wrapped", [lambda m: Ensemble([m, tiny(1)]), TTAWrapper, lambda m: TTAWrapper(Ensemble([nn.DataParallel(m)]), "scales")])
def test_several_looks_and_several_networks_are_trained_together(wrapped):
    inside = tiny()
    before, model = inside.head.weight.clone(), wrapped(inside)
    history = fit(model, blobs(6, 64), blobs(4, 64), "half", epochs=2, batch_size=2, validate_every=1, amp=False, device="cpu", progress=False)
    assert inside.trained_size == model.trained_size == (32, 32) and not torch.equal(before, inside.head.weight)
    assert history.last["iou"] == pytest.approx(evaluate(model, blobs(4, 64))["iou"], abs=1e-6)


# Which GPU

@pytest.mark.parametrize("device, words", [("banana", "'banana' is none that torch knows"), ("cuda", "no NVIDIA GPU here"), ("cuda:1", "no NVIDIA GPU here")])
def test_a_device_that_is_not_there(monkeypatch, device, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=words): fit(tiny(), blobs(), device=device, progress=False)


def test_of_several_gpus_the_current_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert T.pick_device() == T.pick_device("cuda") == torch.device("cuda", 1) and T.pick_device("cuda:0") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert T.pick_device("cuda") == torch.device("cuda", 2)


def test_the_gpu_of_a_run_is_the_current_one_while_it_trains(monkeypatch):
    from contextlib import contextmanager
    from types import SimpleNamespace
    current = []
    @contextmanager
    def device(which):
        current.append(which)
        yield
        current.pop()
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(T, "_save_run", lambda run: None)
    monkeypatch.setattr(T, "_set_size", lambda run: None)
    seen, run = [], SimpleNamespace(device=torch.device("cuda", 1), epoch=0, step=0, steps_per_epoch=1, recipe=get_recipe("fast", 1), quiet=True)
    def epoch(run, *hooks): return seen.extend(current) or setattr(run, "epoch", 1) or True
    monkeypatch.setattr(T, "_run_epoch", epoch)
    T._train(run, None, None)
    assert seen == [torch.device("cuda", 1)] and not current


# What is interrupted is not finished

def stopped_fit(*args, **kwargs):
    history = History([dict(epoch=1, iou=0.5, f1=0.6, seconds=1.0)])
    history.interrupted, history.message = True, "interrupted in epoch 2 of 9"
    return history


def test_an_interrupted_command_writes_no_report(tmp_path, monkeypatch):
    from cmunext_nb import data
    monkeypatch.setattr(data, "load_dataset", lambda *args, **options: (blobs(4), blobs(3, seed=1)))
    monkeypatch.setattr(T, "fit", stopped_fit)
    with pytest.raises(KeyboardInterrupt, match="epoch 2 of 9"): main(["--size", "32", "--out", str(tmp_path), "--device", "cpu"])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def timed(monkeypatch):
    "benchmarks/time_to_accuracy.py as a module."
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    for name in ("time_to_accuracy", "machine"): sys.modules.pop(name, None)
    import time_to_accuracy
    return time_to_accuracy


def test_an_interrupted_clock_keeps_the_old_figures(tmp_path, monkeypatch, timed):
    monkeypatch.setattr(timed.cn, "load_dataset", lambda *args, **options: (blobs(4), blobs(3, seed=1)))
    monkeypatch.setattr(timed.cn, "fit", stopped_fit)
    monkeypatch.setattr(sys, "argv", ["time_to_accuracy.py", "--out", str(tmp_path / "out.json"), "--device", "cpu"])
    (tmp_path / "out.json").write_text("old")
    with pytest.raises(KeyboardInterrupt, match="epoch 2 of 9"): timed.main()
    assert (tmp_path / "out.json").read_text() == "old"


def test_what_the_clock_says_of_six_looks(tmp_path, timed):
    path = tmp_path / "looks.jsonl"
    assert timed.looked(path, 60) is None
    rows = [dict(epoch=e, iou=i, f1=i + 5, trained=t, looked=1.0) for e, i, t in ((10, 50, 4.0), (20, 1, 7.0), (20, 61, 8.0), (30, 65, 12.0))]  # the twentieth was looked at again after a stop
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert timed.looked(path, 60) == dict(reached=True, epoch=20, iou=61, f1=66, minutes=10.0, last=dict(epoch=30, iou=65, f1=70))
    assert timed.looked(path, 70) == dict(reached=False, epoch=30, iou=65, f1=70, minutes=15.0, last=dict(epoch=30, iou=65, f1=70))


def test_looks_take_no_time_of_the_training(tmp_path, timed):
    model, valid, path, clocks = tiny(), blobs(4, 64, seed=1), tmp_path / "looks.jsonl", []
    look = timed.looker(2, 3, valid, path, "zoom")
    def hook(run):
        before = run.clock
        look(run)
        clocks.append(run.clock > before)
    fit(model, blobs(6, 64), valid, "fast", epochs=3, batch_size=2, validate_every=1, amp=False, device="cpu", progress=False, on_epoch=hook)
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    assert [r["epoch"] for r in rows] == [2, 3] and clocks == [False, True, True]  # every second epoch, and the last
    assert rows[-1]["iou"] == pytest.approx(100 * evaluate(TTAWrapper(model, "zoom"), valid)["iou"], abs=0.01) and rows[0]["trained"] < rows[1]["trained"]


def test_a_state_of_other_groups_of_weights_says_so(tmp_path):
    "As one of a version that left other kernels to AdamW."
    fit(tiny(), blobs(), None, get_recipe("muon", prior=False), epochs=2, batch_size=2, out=tmp_path, device="cpu", progress=False, on_epoch=lambda run: False)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    state["optimizer"]["param_groups"][0]["params"].pop()
    torch.save(state, tmp_path / "state.pt")
    model = tiny(seed=1)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="state.pt belongs to an optimizer that groups.*resume=False"):
        fit(model, blobs(), None, get_recipe("muon", prior=False), epochs=2, batch_size=2, out=tmp_path, device="cpu", progress=False)
    assert all(map(torch.equal, before, model.parameters()))
