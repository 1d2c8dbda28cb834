"""The training lab without a browser: pause and continue to the bit, threads, errors, controls, other people's data and networks.

Nothing here depends on time: networks wait at a gate, or act at a given step. Only versions 7 and 8 of ipywidgets differ, in nothing that is used.
"""
import re, signal, subprocess, sys, threading

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn

from cmunext_nb.augment import Augment
from cmunext_nb.labs import _OLD, png, training as L
from cmunext_nb.labs.training import Training, TrainingLab, progress_line
from cmunext_nb.model import create_model
from cmunext_nb.predict import predict
from cmunext_nb.train import fit
from cmunext_nb.weights import load_weights, read_metadata
from test_labs import sent_by

LONG = 300  # seconds of patience with a busy machine


def blobs(n=6, size=32, seed=0, channels=1, classes=1):
    "Dark discs in noise, and the discs: a pair (images, masks)."
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centre, radius = size * (0.3 + 0.4 * torch.rand(n, 2, 1, 1, generator=g)), size * (0.12 + 0.12 * torch.rand(n, 1, 1, generator=g))
    masks = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2)[:, None].byte()
    return (140 - 80 * masks + 25 * torch.randn(n, channels, size, size, generator=g)).clamp(0, 255).byte(), masks.repeat(1, classes, 1, 1)


def tiny(**more): return create_model("cmunext_s", **{**dict(dims=(4, 8, 8), depths=(1, 1, 1), kernel_sizes=(3, 3, 5)), **more})


class Once:
    "A function that a copy of the network shares with it."
    def __init__(self, call): self.call = call
    def __call__(self): return self.call()
    def __deepcopy__(self, memo): return self


class At(nn.Module):
    "A network that calls a function in its n-th training step."
    def __init__(self, step, call):
        super().__init__()
        self.net, self.config, self.left, self.call = tiny(), dict(in_channels=3, num_classes=1), step, Once(call)

    def forward(self, x):
        self.left -= self.training
        if self.training and self.left == 0: self.call()
        return self.net(x)


class Gate:
    "Makes a network whose first training step waits until `go` is set; `there` says that it has come so far."
    def __init__(self, step=1): self.there, self.go, self.step = threading.Event(), threading.Event(), step
    def __call__(self): return At(self.step, lambda: (self.there.set(), self.go.wait(LONG)))


@pytest.fixture
def ink(): "Asked for by tests that need real pictures."


def quick(b):
    "What would be drawn, without drawing it."
    return repr((b.title.get_text(), b.beyond.get_text(), [line.get_xydata().tolist() for line in b.lines.values()], [n.get_text() for n in b.notes])).encode()


@pytest.fixture(autouse=True)
def one_thread(request, monkeypatch):
    "One thread of torch's, no ink where a test does not ask for it, and nothing left behind."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if "ink" not in request.fixturenames: monkeypatch.setattr(L, "_packed", quick)
    yield
    while labs: labs.pop().close()
    for t in threading.enumerate():
        if t.name == "cmunext_nb training": t.join(LONG)
    assert not [t for t in threading.enumerate() if t.name == "cmunext_nb training"] and not L._RUNNING, "a thread is left behind"
    torch.set_num_threads(threads)

labs = []


def make(network=tiny, train=None, valid=None, **more):
    "A lab on six discs, with one network."
    train, valid = (blobs(), blobs(4, seed=1)) if train is None else (train, valid)
    lab = TrainingLab(train, valid, networks=dict(net=network, other=tiny), **{**dict(epochs=2, batch_size=2, amp=False), **more})
    labs.append(lab)
    return lab


def done(lab):
    lab.wait(LONG)
    assert not lab.training.running
    return lab


def same(a, b):
    a, b = (x.state_dict() for x in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def figures(history): return [{k: v for k, v in r.items() if k != "seconds"} for r in history.rows]


# Exactly the same

@pytest.fixture(scope="module")
def alone():
    "The same training by plain `fit`."
    torch.set_num_threads(1)
    torch.manual_seed(41)
    model = tiny()
    return model, fit(model, blobs(), blobs(4, seed=1), "fast", 2, batch_size=2, amp=False, validate_every=1, progress=False)


def test_a_training_in_the_lab_is_that_of_fit(alone):
    torch.manual_seed(5)
    expected, _ = torch.rand(4), torch.manual_seed(5)
    lab = make()
    lab.start()
    drawn = torch.cat([torch.rand(1) for _ in range(4)])  # while it trains
    done(lab)
    assert lab.training.status == "finished" and "Finished" in lab.sentence.value
    assert same(lab.model, alone[0]) and figures(lab.history) == figures(alone[1])
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("step", [2, 3, 6])  # in the middle of an epoch, at its end, at the very end
def test_paused_and_continued_is_the_same_to_the_bit(alone, step):
    lab = make(lambda: At(step, lambda: lab.pause()))
    lab.start()
    done(lab)
    assert lab.training.status == ("paused" if step < 6 else lab.training.status) and lab.training.run.step == step
    assert not lab.model.training
    if lab.training.status == "paused":
        assert lab.buttons["start"].description == "Continue" and "Continue goes on" in lab.sentence.value
        lab.buttons["start"].click()
        done(lab)
    assert lab.training.status == "finished" and lab.buttons["start"].description == "Start"
    assert same(lab.model.net, alone[0]) and figures(lab.history) == figures(alone[1])
    assert [s for s, _ in lab.training.losses] == [1, 2, 3, 4, 5, 6]


def test_going_on_survives_a_prediction_and_a_saved_file(alone, tmp_path):
    lab = make(lambda: At(4, lambda: lab.pause()))
    lab.start()
    done(lab)
    assert predict(lab.model, blobs()[0][0], size=None).mask.shape == (32, 32)
    lab.model.train()  # whatever a cell leaves it in
    lab.start()
    assert same(done(lab).model.net, alone[0])


def test_the_copy_is_made_between_two_steps_of_the_weights_that_count(alone):
    gate, got = Gate(4), []
    lab = make(gate)
    lab.start()
    assert gate.there.wait(LONG)
    asker = threading.Thread(target=lambda: got.append(lab.model))
    asker.start()
    while not lab.training._asked: pass
    gate.go.set()
    asker.join(LONG)
    twin, = got
    done(lab)
    torch.manual_seed(41)
    expected = tiny()
    fit(expected, blobs(), blobs(4, seed=1), "fast", 2, batch_size=2, amp=False, validate_every=1, progress=False, on_step=lambda run: run.step < 4)
    assert same(twin.net, expected) and not twin.training and twin is not lab.training.network
    assert all(p.requires_grad and p.grad is None for p in twin.parameters())
    assert same(lab.model.net, alone[0]), "asking disturbed the training"


def test_the_model_after_a_training_that_ends_while_somebody_asks():
    gate = Gate(6)
    lab = make(gate)
    lab.start()
    assert gate.there.wait(LONG)
    lab.training._asked = type("Lost", (list,), dict(append=lambda self, item: None))()  # the question comes too late
    threading.Timer(0.1, gate.go.set).start()
    assert lab.model is lab.training.network


# The kernel stays free

def test_buttons_return_at_once_and_cells_run_while_a_step_is_under_way():
    gate = Gate()
    lab = make(gate)
    lab.buttons["start"].click()
    assert gate.there.wait(LONG) and lab.training.running
    assert sum(range(1000)) == 499500 and lab.history.last == {} and "no step yet" in repr(lab.training)
    assert all(c.disabled for c in lab.controls.values())
    assert [b.disabled for b in lab.buttons.values()] == [True, False, False, True]
    lab.start()
    assert "training already" in lab.sentence.value and threading.active_count() < 10
    assert len([t for t in threading.enumerate() if t.name == "cmunext_nb training"]) == 1
    lab.anew()
    assert "It is training" in lab.sentence.value
    assert lab.wait(0.01).rows == [] and lab.training.running
    lab.buttons["pause"].click()
    assert lab.training.running  # a wish: the step is still under way
    gate.go.set()
    done(lab)
    assert lab.training.status == "paused" and lab.training.run.step == 1
    assert [b.disabled for b in lab.buttons.values()] == [False, True, False, False] and not lab.controls["lr"].disabled


def test_an_interrupt_ends_the_waiting_and_not_the_training():
    gate = Gate()
    lab = make(gate)
    lab.start()
    assert gate.there.wait(LONG)
    timer = threading.Timer(0.1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        lab.wait(LONG)
    assert lab.training.running
    gate.go.set()
    assert done(lab).training.status == "finished"


def test_one_training_at_a_time():
    gate = Gate()
    first, second = make(gate), make()
    first.start()
    assert gate.there.wait(LONG)
    second.start()
    gate.go.set()
    assert done(first).training.status == "paused" and done(second).training.status == "finished"
    first.start()
    assert done(first).training.status == "finished"


def test_close_ends_the_training():
    gate = Gate()
    lab = make(gate)
    lab.start()
    assert gate.there.wait(LONG)
    before = lab.picture.value
    lab.close()
    gate.go.set()
    done(lab)
    assert lab.training.status == "stopped" and lab.training.run.step == 1 and lab.picture.value == before


SCRIPT = """
import sys, threading
sys.path.insert(0, {here!r})
from test_lab_training import *
gate = Gate(3)
gate.go.set()
lab = make(gate, epochs=100000)
lab.start()
gate.there.wait(LONG)
print("over", flush=True)
"""


@pytest.mark.once
def test_python_ends_while_it_trains():
    "Without a hang, a crash or a word."
    from pathlib import Path
    ended = subprocess.run([sys.executable, "-c", SCRIPT.format(here=str(Path(__file__).parent))], capture_output=True, text=True, timeout=LONG)
    assert ended.returncode == 0 and ended.stdout.strip() == "over" and "Error" not in ended.stderr, ended.stderr


# Stop, anew, save

def test_stop_keeps_the_weights(tmp_path):
    lab = make(lambda: At(4, lambda: lab.stop()))
    lab.start()
    done(lab)
    assert lab.training.status == "stopped" and "Stopped: epoch 2/2, step 4/6" in lab.sentence.value
    assert lab.buttons["start"].description == "Start" and lab.buttons["stop"].disabled
    assert len(lab.history.rows) == 1 and not lab.model.training
    before = lab.model
    lab.start()  # a new network
    assert done(lab).model is not before and lab.previous.network is before


def test_stop_after_a_pause():
    lab = make(lambda: At(4, lambda: lab.pause()))
    lab.start()
    done(lab).buttons["stop"].click()
    assert lab.training.status == "stopped" and "Stopped" in lab.sentence.value and lab.buttons["start"].description == "Start"


def test_saved_weights_predict_the_same(tmp_path):
    lab = make(epochs=1)
    lab.start()
    done(lab)
    path = lab.save(tmp_path / "w.safetensors")
    image = blobs(4, seed=1)[0][0]
    assert np.array_equal(predict(load_weights(path), image, size=None).probability, predict(lab.model, image, size=None).probability)
    about = read_metadata(path)["metadata"]
    assert about["epoch"] == 1 and about["seed"] == 41 and about["iou"] == lab.history.last["iou"]


def test_start_anew_after_a_pause_begins_at_the_first_step(alone):
    lab = make(lambda: At(4, lambda: lab.pause()))
    lab.start()
    done(lab)
    grey = lab._view().lines.get("before_loss")
    lab.networks["net"] = tiny
    lab.buttons["anew"].click()
    done(lab)
    assert lab.training.status == "finished" and same(lab.model, alone[0]) and lab.training.losses[0][0] == 1
    assert not grey and len(lab._view().lines["before_loss"]) == 1, "the curves before are shown in grey"


def test_a_changed_setting_is_no_continuation():
    lab = make(lambda: At(4, lambda: lab.pause()))
    lab.start()
    done(lab)
    before, picture = lab.training, lab.picture.value
    lab.controls["lr"].value = 0.02
    assert "Learning rate was 0.004 and is 0.02" in lab.sentence.value and "refused" in lab.sentence.value
    assert lab.picture.value != picture, "the rate that would come is drawn"
    lab.start()
    assert lab.training is before and before.status == "paused" and "refused" in lab.sentence.value
    lab.put(lr=0.004)
    assert "Continue goes on" in lab.sentence.value
    lab.start()
    assert done(lab).training is before and before.status == "finished"


# Errors

def test_an_error_in_the_thread_is_said_and_raised():
    def fail(): raise RuntimeError("the third step <failed>")
    lab = make(lambda: At(3, fail))
    lab.start()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="third step"): lab.wait(LONG)
    assert lab.training.status == "failed" and "Not possible:</b> the third step &lt;failed&gt;" in lab.sentence.value
    assert not lab.controls["lr"].disabled and [b.disabled for b in lab.buttons.values()] == [False, True, True, False]
    lab.put(variant="other")
    assert "Failed" in lab.sentence.value
    lab.start()
    assert done(lab).training.status == "finished"


def test_a_loss_that_is_not_finite_says_where():
    def spoil(): next(lab.training.network.parameters()).data.fill_(float("nan"))
    lab = make(lambda: At(5, spoil))
    lab.start()
    with pytest.raises(FloatingPointError): lab.wait(LONG)
    assert "epoch 2, step 2" in lab.sentence.value and "lower lr" in lab.sentence.value
    assert all(p.isfinite().all() for p in lab.model.parameters()), "the weights of the last epoch are kept"


def test_a_network_that_cannot_be_made_is_a_sentence():
    def impossible(): raise ValueError("no such network")
    lab = make(impossible)
    lab.start()
    assert "Not possible:</b> no such network" in lab.sentence.value and lab.training is None
    with pytest.raises(RuntimeError, match="no training yet"): lab.wait()
    with pytest.raises(RuntimeError, match="no training yet"): lab.model
    assert lab.history.rows == []


def test_a_picture_that_fails_does_not_end_the_training(monkeypatch):
    def broken(*a, **k): raise KeyError("no font")
    lab = make()
    monkeypatch.setattr(L, "predict", broken)
    lab.start()
    done(lab)
    assert lab.training.status == "finished" and isinstance(lab.training.trouble, KeyError) and "no picture" in lab.progress.value


# Controls and picture

def test_controls_and_the_picture(ink):
    lab = make()
    assert list(lab.state) == ["variant", "recipe", "epochs", "lr", "augment", "seed"]
    for name, value in dict(variant="other", recipe="paper", epochs=3, lr=0.1, augment="none", seed=7).items():
        before = lab.picture.value
        lab.controls[name].value = value
        assert lab.picture.value != before, name
    assert lab.state == dict(variant="other", recipe="paper", epochs=3, lr=0.1, augment="none", seed=7)
    assert all(c.description and not getattr(c, "continuous_update", False) for c in lab.controls.values())
    with pytest.raises(ValueError, match="no control 'speed'"): lab.put(speed=1)


def test_a_recipe_brings_its_rate_and_augmentation():
    lab = make()
    lab.controls["recipe"].value = "paper"
    assert lab.state["lr"] == 0.01 and lab.state["augment"] == "paper"
    lab.put(lr=0.5, recipe="fast")
    assert lab.state["lr"] == 0.5 and lab.state["augment"] == "fast"


def test_settings_of_the_recipe():
    own = Augment(mirror=0.5)
    lab = make(augment=own, lr=0.02, recipe="paper", seed=3, epochs=200)
    assert lab.state["augment"] is own and lab.state["lr"] == 0.02 and lab.controls["epochs"].max == 200
    recipe = lab._recipe(lab.state)
    assert (recipe.augment, recipe.batch_size, recipe.epochs, recipe.optimizer) == (own, 2, 200, "sgd")
    assert make(augment=None).state["augment"] == "none"
    with pytest.raises(ValueError, match="learnrate"): make(learnrate=1)


def test_the_picture_moves_while_it_trains_and_nothing_jumps(ink):
    lab, seen = make(epochs=3), []
    lab._pace = L._Pace(1.0, 0.0)
    lab._line_pace = L._Pace(1.0, 0.0)
    paint = lab._paint
    lab._paint = lambda: (paint(), seen.append((lab.picture.value, lab.progress.value, tuple(ax.get_xlim() for ax in lab._board.axes.values()), lab._board.axes["loss"].get_ylim())))
    lab.start()
    done(lab)
    assert lab.training.trouble is None and len(seen) == 12  # nine steps and three epochs
    assert len({s[0] for s in seen}) > 9 and len({s[2] for s in seen}) == 1 and {s[3] for s in seen} == {(0, 1.5)}
    assert re.search(r"epoch 3/3, step 9/9, loss \d\.\d\d, IoU \d\.\d\d", lab.progress.value)
    assert any(re.search(r"epoch 2/3, step 5/9, loss \d\.\d\d, IoU \d\.\d\d, (about .*|a few seconds) left", s[1]) for s in seen)


@pytest.mark.parametrize("kept", [False, True])
def test_the_thread_leaves_matplotlibs_settings_alone(monkeypatch, ink, tmp_path, kept):
    import matplotlib.pyplot as plt
    lab, where = make(out=tmp_path if kept else None), []
    real = matplotlib.rc_context
    monkeypatch.setattr(matplotlib, "rc_context", lambda *a, **k: (where.append(threading.current_thread()), real(*a, **k))[1])
    update = type(matplotlib.rcParams).__setitem__
    monkeypatch.setattr(type(matplotlib.rcParams), "__setitem__", lambda self, k, v: (where.append(threading.current_thread()), update(self, k, v))[1])
    lab.start()
    done(lab)
    assert lab.training.trouble is None and all(t is threading.main_thread() for t in where)
    if kept:
        assert (tmp_path / "curves.png").stat().st_size > 5000
        lab.start()  # a finished folder, whose curves are drawn once more
        done(lab)
        assert all(t is threading.main_thread() for t in where)
    assert not plt.get_fignums()


def test_given_images_can_be_kept_out_of_the_notebook():
    lab = make(epochs=1)
    assert lab.picture.value
    lab.stop_saving()
    sent = sent_by(lab)
    lab.put(epochs=2)
    assert lab.picture.value == b"" and [picture for _, picture in sent] == [lab.shown]
    lab.start()
    done(lab)
    assert lab.picture.value == b"" and len(sent) > 2 and sent[-1][1] == lab.shown


def test_the_static_twin(ink):
    lab = make(epochs=1)
    before = png(lab.figure())
    assert png(lab.figure(epochs=40)) != before
    lab.start()
    done(lab)
    assert png(lab.figure()) != before and lab.figure().get_size_inches().tolist() == [8.4, 4.8]


# Other people's data and networks

@pytest.mark.parametrize("train, valid", [(blobs(channels=3), blobs(2, seed=1)), (blobs(2), None), (blobs(size=40), blobs(5, size=24, seed=1)),
                                          (tuple(t[..., :20] for t in blobs(3)), tuple(t[..., :20] for t in blobs(4, seed=1)))])
def test_data_of_many_kinds(train, valid):
    lab = make(train=train, valid=valid, epochs=1)
    lab.start()
    done(lab)
    assert lab.training.status == "finished" and lab.training.trouble is None and ("iou" in lab.history.last) == (valid is not None)


def test_several_classes_and_channels():
    lab = TrainingLab(blobs(channels=5, classes=2), blobs(3, seed=1, channels=5, classes=2), epochs=1, amp=False)
    labs.append(lab)
    lab.start()
    done(lab)
    assert lab.training.trouble is None and lab.model.config["in_channels"] == 5 and lab.model.config["num_classes"] == 2


@pytest.mark.parametrize("train, valid, error, words", [
    ((blobs()[0].float(), blobs()[1]), None, TypeError, "training set.*float32"), ((blobs()[0], blobs()[1] * 255), None, ValueError, "255"),
    (blobs(), (blobs()[0][:0], blobs()[1][:0]), ValueError, "validation set is empty"), (None, blobs(), ValueError, "no training images")])
def test_bad_data_is_refused_at_once(train, valid, error, words):
    with pytest.raises(error, match=words): TrainingLab(train, valid)


@pytest.mark.parametrize("size", [(32, 32), "32", 0, -1])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match=r"size=.*give the longer side in pixels"): make(size=size)


def test_another_size():
    lab = make(size=48)
    assert lab.data[0].images.shape[-2:] == lab.data[1].masks.shape[-2:] == (48, 48) and "48 x 48" in lab.sentence.value


def test_the_examples_go_from_small_to_large():
    images, masks = blobs(9)
    masks[:3] = 0
    chosen = L._examples(L._as_data((images, masks), "training"))
    area = chosen[1].flatten(1).sum(1)
    assert len(area) == 4 and (area > 0).all() and (area.diff() >= 0).all()
    assert len(L._examples(L._as_data((images[:2], masks[:2]), "training"))[0]) == 2


def test_a_folder_is_continued_in_another_lab(tmp_path, alone):
    first = make(lambda: At(4, lambda: first.pause()), out=tmp_path)
    assert not first.buttons["anew"].disabled
    first.start()
    done(first)
    again = make(lambda: At(99, None), out=tmp_path, train=None, valid=None)
    again.start()
    done(again)
    assert same(again.model.net, alone[0]) and [s for s, _ in again.training.losses] == [5, 6]
    again.put(lr=0.02)
    again.start()
    with pytest.raises(ValueError, match="lr was 0.004"): again.wait(LONG)
    assert "lr was 0.004" in again.sentence.value and "or press Start anew, which writes over it</div>" in again.sentence.value and "resume" not in again.sentence.value
    again.anew()
    assert done(again).training.status == "finished" and len(again.training.losses) == 6
    again.put(lr=0.01)
    assert f"Start anew trains with the new setting, and writes over {tmp_path}: Learning rate was 0.02 and is 0.01" in again.sentence.value


def test_a_state_cut_short_is_written_over(tmp_path):
    lab = make(out=tmp_path)
    lab.start()
    state = done(lab).training.status == "finished" and tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    lab.start()
    with pytest.raises(ValueError, match="cut short"): lab.wait(LONG)
    assert "may be cut short. Start anew writes over it</div>" in lab.sentence.value and "resume" not in lab.sentence.value
    lab.anew()
    assert done(lab).training.status == "finished" and len(lab.training.losses) == 6


def test_a_finished_folder_needs_no_step(tmp_path):
    for n in range(2):
        lab = make(out=tmp_path)
        lab.start()
        assert done(lab).training.status == "finished" and len(lab.history.rows) == 2
    assert lab.training.losses == [] and "of an earlier training" in lab.progress.value


# Parts

def test_training_without_a_lab():
    t = Training(tiny(), blobs(), epochs=1, batch_size=2, amp=False)
    assert t.wait().rows == [] and progress_line(t) == "no step yet" and t.start() and t.wait(LONG).rows
    assert not t.start() and "finished" in repr(t) and t.weights is t.network


def test_thinning_and_pace():
    points = [(float(i), float(i)) for i in range(1000)]
    assert len(L._thinned(points)) == 250 and L._thinned(points)[0] == (1.5, 1.5) and L._thinned([]) == []
    pace, calls = L._Pace(share=0.5, least=1000), []
    for _ in range(2): pace(lambda: calls.append(1))
    assert calls == [1]
    pace.due = 0
    with pytest.raises(ZeroDivisionError): pace(lambda: 1 / 0)
    assert pace.due > 0, "a failed action is paid for too"


def test_the_loss_axis_moves_in_steps():
    assert [L._ceiling([v]) for v in (0, 1.4, 2, 7, 1e9)] == [1.5, 1.5, 3, 15, 1.5e9] and L._ceiling([]) == 1.5 and L._ceiling([float("inf"), 2]) == 3


@pytest.mark.parametrize("settings, words", [(dict(lr=2.0), "learning rate 2.0"), (dict(lr=1e-6), "learning rate 1e-06"), (dict(seed=-3), "Seed -3"), (dict(epochs=0), "Epochs 0")])
def test_settings_that_the_controls_do_not_have_are_refused(settings, words):
    with pytest.raises(ValueError, match=words): make(**settings)


def test_a_rate_that_went_away_and_came_back_is_the_same():
    "The slider has powers of ten in tenths, and 0.004 is none of them."
    lab = make(lambda: At(4, lambda: lab.pause()))
    lab.start()
    done(lab)
    for power in (-2.3, -2.4): lab.controls["lr"].value = 10**power
    assert lab.state["lr"] != 0.004 and "Continue goes on" in lab.sentence.value
    lab.start()
    assert done(lab).training.status == "finished" and lab.training.run.recipe.lr == 0.004


@pytest.mark.parametrize("old, new, words", [(0.01, 0.01019, "was 0.01 and is 0.0102"), (0.01, 0.010001, "was 0.01 and is 0.010001"),
                                             (0.004, 0.00401, "was 0.004 and is 0.00401"), (0.004, 10**-2.5, "was 0.004 and is 0.00316")])
def test_a_small_change_of_the_rate_counts(old, new, words):
    lab = make(lambda: At(4, lambda: lab.pause()), lr=old)
    lab.start()
    done(lab)
    lab.put(lr=new).start()
    assert lab.training.status == "paused" and f"Learning rate {words}, so Continue is refused" in lab.sentence.value
    lab.put(lr=old).start()
    assert done(lab).training.status == "finished" and lab.training.run.recipe.lr == old


def test_a_network_with_an_error_without_words_is_said():
    def impossible(): raise AssertionError
    lab = make(impossible)
    lab.start()
    assert "Not possible:</b> AssertionError<" in lab.sentence.value
    lab = make(lambda: At(2, lambda: {}["hidden"]))
    lab.start()
    with pytest.raises(KeyError): lab.wait(LONG)
    assert "Not possible:</b> KeyError: " in lab.sentence.value


@pytest.mark.parametrize("n, expected", [(3, [0, 1, 2]), (4, [0, 1, 2, 3]), (5, [0, 1, 3, 4]), (6, [1, 2, 3, 4]), (16, [3, 6, 9, 12])])
def test_no_example_is_shown_twice(n, expected):
    masks = torch.zeros(n, 1, 16, 16, dtype=torch.uint8)
    for i in range(n): masks[i, 0, 0, :i + 1] = 1 if i < 16 else 0
    chosen = L._examples(L._as_data((torch.zeros(n, 1, 16, 16, dtype=torch.uint8), masks), "training"))
    assert (chosen[1].flatten(1).sum(1) - 1).tolist() == expected


def test_a_training_out_of_sight_is_said_and_can_be_ended():
    "Who runs the lab's cell again has a new lab, and no button for the training of the old one."
    gate = Gate(3)
    old = make(gate, epochs=100)
    old.start()
    assert gate.there.wait(LONG)
    new = make()
    assert "Another training of this kernel is running (epoch 1/100). Start pauses it; Stop ends it." in new.sentence.value and not new.buttons["stop"].disabled
    gate.go.set()
    new.stop()
    old.wait(LONG)
    assert old.training.status == "stopped" and new.training is None
    new.stop()  # it has nothing to do
    new._settle()
    assert "images to learn from" in new.sentence.value and new.buttons["stop"].disabled


def test_one_epoch_is_one(ink):
    lab = make(epochs=1)
    assert ",  1 epoch,  " in str([t.get_text() for t in lab.figure().texts]) and ",  2 epochs,  " in str([t.get_text() for t in lab.figure(epochs=2).texts])
    assert not lab._board.lines["iou"].get_clip_on()  # its last point lies on the border


def test_a_picture_of_other_settings_is_pale(monkeypatch):
    lab = make()
    def broken(b): raise RuntimeError("no ink")
    with monkeypatch.context() as patch:
        patch.setattr(L, "_packed", broken)
        lab.refresh()
    assert _OLD in lab._place._dom_classes and "no ink" in lab.sentence.value
    lab.refresh()
    assert _OLD not in lab._place._dom_classes
