"The frame of the labs, without a browser and under any version of ipywidgets. The everyday path is checked in nbs/39_labs.ipynb."
import io
import re
import sys
import threading
import types

import ipywidgets as widgets
import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from cmunext_nb import labs
from cmunext_nb.labs import Lab, _house, button, choice, new_figure, png, slider, switch, upload
from cmunext_nb.cam import seg_cam
from cmunext_nb.labs.training import TrainingLab
from cmunext_nb.model import create_model
from cmunext_nb.phantom import make_phantom
from cmunext_nb.plot import _at_home
from cmunext_nb.receptive_field import receptive_field
from cmunext_nb.train import _fused_on_cpu


class Square(Lab):
    "A grey square whose brightness is a control."
    size = (2.0, 1.0)
    drawn = 0

    def __init__(self): super().__init__(dict(level=slider("Level", 3, 0, 9), kind=choice("Kind", [("plain", 0), ("bright", 5)]), frame=switch("Frame")))

    def draw(self, figure, level, kind, frame):
        self.drawn += 1
        if level == 9: raise ValueError("level 9 is out of reach")
        figure.add_axes((0, 0, 1, 1)).imshow([[level + kind]], vmin=0, vmax=20)

    def words(self, level, kind, frame): return f"level {level}, kind {kind}"


def pixels(lab): return np.asarray(Image.open(io.BytesIO(lab.picture.value)))


def arrive(uploader, name, content):
    "What a browser sends when a file is chosen: version 7 keeps lists and a counter, version 8 a tuple."
    entry, sent = dict(name=name, type="image/png", size=len(content), last_modified=0), memoryview(content)
    if isinstance(uploader.value, tuple): uploader.set_state(dict(value=[dict(entry, content=sent)]))
    else: uploader.set_state(dict(metadata=[entry], data=[sent], _counter=uploader._counter + 1))


def every(widget):
    "A widget and all that it holds."
    yield widget
    for child in getattr(widget, "children", ()): yield from every(child)


def uploader(lab): return next(w for w in every(lab) if type(w).__name__ == "FileUpload")


def alive():
    "All widgets of this process, by identifier: what a front end could save."
    from ipywidgets.widgets import widget
    return dict(getattr(widget, "_instances", None) or widget.Widget.widgets)


def held(values):
    "The bytes and the texts in a widget's state, however deep."
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, (dict, list, tuple)): yield from held(value)
        elif isinstance(value, (bytes, memoryview)): yield bytes(value)
        elif isinstance(value, str): yield value


def leaks(before=()):
    "What could be saved of a picture or of a file's name, in the state of all widgets that are not among those `before`."
    parts = [(type(w).__name__, part) for i, w in alive().items() if i not in before for part in held(w.get_state())]
    return [(kind, part[:60]) for kind, part in parts if (isinstance(part, bytes) and part) or (isinstance(part, str) and re.search("data:|iVBOR|secret", part))]


def picture_file(shape=(7, 9), mode="L"):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, shape if mode == "L" else (*shape, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_each_control_changes_the_picture_and_keeps_its_size():
    lab = Square()
    for name, value in (("level", 7), ("kind", 5)):
        before = pixels(lab)
        lab.controls[name].value = value
        assert (pixels(lab) != before).any() and pixels(lab).shape == before.shape == (100, 200, 3)
    assert "level 7, kind 5" in lab.sentence.value and 'role="status"' in lab.sentence.value


def test_put_draws_once():
    lab = Square()
    before = lab.drawn
    assert lab.put(level=1, kind=5, frame=True) is lab and lab.drawn == before + 1
    assert lab.state == dict(level=1, kind=5, frame=True)


def test_an_error_is_said_and_the_last_picture_stays():
    lab = Square()
    before = lab.picture.value
    lab.controls["level"].value = 9
    assert "Not possible" in lab.sentence.value and "level 9 is out of reach" in lab.sentence.value and lab.picture.value == before
    assert labs._OLD in lab._place._dom_classes  # pale: the controls say something else
    lab.controls["level"].value = 3
    assert "Not possible" not in lab.sentence.value and labs._OLD not in lab._place._dom_classes
    lab.tell("The file is no image.", wrong=True)  # as an upload that is refused: the picture is right all the same
    assert labs._OLD not in lab._place._dom_classes


def test_a_long_drawing_is_announced_and_the_last_change_wins():
    lab, said = Square(), []
    lab.sentence.observe(lambda change: said.append(re.sub("<[^>]*>", "", change["new"])), "value")
    lab.put(level=4)
    assert said == ["level 4, kind 0"]
    for level in (5, 6, 9):
        lab._took = 0.6  # what the drawing before took
        lab.controls["level"].value = level
    assert said[1:] == ["Computing ...", "level 5, kind 0", "Computing ...", "level 6, kind 0", "Computing ...", "Not possible: level 9 is out of reach"]
    lab.put(level=7)
    assert said[7:] == ["level 7, kind 0"] and lab._took < 0.5  # measured anew


def test_the_picture_keeps_its_shape_on_a_narrow_page():
    "A fixed height would leave blank bands. ipywidgets 7 knows no aspect ratio and no opacity: a style of the page's own does."
    lab = Square()
    style = next(w.value for w in every(lab) if isinstance(w, widgets.HTML) and "<style>" in w.value)
    shape, = [c for c in lab._place._dom_classes]
    assert f".{shape} {{aspect-ratio: 200 / 100}}" in style and f".{labs._OLD} > * {{opacity" in style
    for layout in (lab._place.layout, lab.picture.layout): assert layout.height in (None, "auto") and layout.min_height is None
    panel = next(w for w in every(lab) if isinstance(w, widgets.VBox) and w is not lab)
    assert panel.layout.min_width == "min(350px, 100%)" and all(c.layout.max_width == "100%" for c in lab.controls.values())


def test_without_a_kernel_a_lab_says_what_to_do():
    "ipywidgets cuts the plain text that a notebook saves at 110 characters."
    assert repr(Square()).startswith("Square: run this cell") and len(repr(Square()).replace("Square", "ReceptiveFieldLab")) < 110
    view = Square()._repr_mimebundle_() if hasattr(Lab, "_repr_mimebundle_") else None  # version 7 displays by itself
    assert view is None or {"text/plain", "application/vnd.jupyter.widget-view+json"} <= set(view) and "PNG" not in view["text/plain"]


def test_the_static_twin_is_the_same_picture():
    lab = Square()
    assert png(lab.figure()) == lab.picture.value
    assert png(lab.figure(level=8)) != lab.picture.value and lab.state["level"] == 3


@pytest.mark.parametrize("call", [lambda lab: lab.put(speed=1), lambda lab: lab.figure(speed=1)])
def test_an_unknown_control_is_named(call):
    with pytest.raises(ValueError, match="speed.*level, kind, frame"): call(Square())


def test_every_control_has_a_label_and_waits_for_rest():
    for control in Square().controls.values():
        assert control.description and getattr(control, "continuous_update", False) is False


def test_text_is_text():
    lab = Square()
    lab.tell("<b>1 & 2</b>\nnext")
    assert "&lt;b&gt;1 &amp; 2&lt;/b&gt;<br>next" in lab.sentence.value


def test_drawing_leaves_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    Square().put(level=5)
    assert dict(matplotlib.rcParams) == before
    from matplotlib import pyplot as plt
    assert not plt.get_fignums()


def test_labs_may_draw_from_threads():
    "rcParams belong to the process: drawing is one figure at a time."
    lab, before = Square(), dict(matplotlib.rcParams)
    expected = [png(lab.figure(level=i)) for i in range(8)]
    got = [None] * 8
    def draw(i): got[i] = png(lab.figure(level=i))
    threads = [threading.Thread(target=draw, args=(i,)) for i in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert got == expected and dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("mode, channels", [("L", 1), ("RGB", 3)])
def test_uploads_leave_the_widget_s_state(mode, channels):
    got = []
    uploader, content = upload(lambda *a: got.append(a), got.append), picture_file(mode=mode)
    arrive(uploader, "mine.png", content)
    arrive(uploader, "mine.png", content)  # the same file again
    assert [(name, p.shape) for name, p in got] == [("mine.png", (channels, 7, 9))] * 2
    assert not uploader.value and content not in repr(uploader.get_state()).encode("latin-1", "ignore")
    for value in uploader.get_state().values(): assert not isinstance(value, (bytes, memoryview)) or not len(value)


@pytest.mark.parametrize("content", [b"", b"no picture", picture_file()[:60]])
def test_what_is_no_image_is_said(content):
    got, wrong = [], []
    arrive(upload(lambda *a: got.append(a), wrong.append), "mine.png", content)
    assert not got and len(wrong) == 1 and wrong[0].startswith("The file ") and "mine" not in wrong[0]  # a name may be that of a patient


class Opened(Square):
    "A square whose brightness is that of an opened image."
    def __init__(self, nested=False):
        self.light, made = 0, upload(self.take, lambda why: self.tell(why, wrong=True))
        Lab.__init__(self, dict(level=slider("Level", 3, 0, 9)), [widgets.HBox([made]) if nested else made])

    def take(self, name, pixels):
        self.light = pixels.mean() / 25
        self.refresh()

    def draw(self, figure, level): super().draw(figure, level, self.light, False)
    def words(self, level): return f"level {level}"


def sent_by(lab):
    "The messages that the lab's page gets from now on, as (content, bytes)."
    got = []
    lab.messenger.send = lambda content, buffers: got.append((content, bytes(buffers[0])))
    return got


@pytest.mark.parametrize("nested", [False, True])
def test_the_picture_of_an_own_image_is_a_message(nested):
    before = set(alive())
    lab, there = Opened(nested), set(alive())
    given = lab.picture.value
    assert given == lab.shown and lab.messenger is None
    arrive(uploader(lab), "secret.png", picture_file())
    assert lab.shown == png(lab.figure()) != given and not leaks(before)
    assert lab._place.children == (lab.messenger,) and lab.sentence.value.count("level 3") == 1
    sent, messenger = sent_by(lab), lab.messenger
    lab.put(level=5)
    messenger._handle_custom_msg("ready", [])  # another view of the lab has appeared
    assert [picture for _, picture in sent] == [lab.shown] * 2 and not leaks(before)
    assert all(content["alt"].startswith("The lab's picture") and set(content) == {"alt"} for content, _ in sent)
    arrive(uploader(lab), "secret.png", picture_file((20, 20)))
    assert lab.messenger is messenger and sent[-1][1] == lab.shown and not leaks(before)
    lab.light = 0  # what a lab does to forget
    lab.blank()
    assert lab.picture.value == lab.shown == png(new_figure(*lab.size))
    lab.put(level=3)
    assert lab.picture.value == given and set(alive()) == there and lab._place.children == (lab.picture,)


def test_forgetting_does_not_end_stop_saving():
    "Images given in code come back, and not into the state."
    before = set(alive())
    lab = Opened()
    given = lab.shown
    lab.stop_saving()
    arrive(uploader(lab), "secret.png", picture_file())
    sent, messenger = sent_by(lab), lab.messenger
    lab.light = 0
    lab.blank()
    assert sent[-1][1] == lab.shown == png(new_figure(*lab.size)) and not leaks(before)
    lab.refresh()
    assert sent[-1][1] == lab.shown == given and lab.messenger is messenger and lab._place.children == (messenger,) and not leaks(before)


def test_stop_saving_while_an_image_is_open_lasts_too():
    lab = Opened()
    arrive(uploader(lab), "secret.png", picture_file())
    messenger = lab.messenger
    lab.stop_saving()
    lab.blank()
    assert lab.messenger is messenger and lab.picture.value == b""


def test_without_anywidget_nothing_stops_being_saved(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    lab = Opened()
    with pytest.raises(ImportError, match="pip install anywidget"): lab.stop_saving()
    lab.blank()
    assert lab.picture.value == lab.shown == png(new_figure(*lab.size))


def test_a_page_that_appears_while_the_image_is_drawn_ends_with_the_new_picture():
    "JupyterLab may hand `ready` to another thread: the picture of before must not come last."
    lab, said, asking = Opened(), [], []
    draw = lab.draw
    def slowly(figure, **state):
        if lab.messenger is not None and not asking:
            said.append(sent_by(lab))
            asking.append(threading.Thread(target=lab.messenger._handle_custom_msg, args=("ready", [])))
            asking[0].start()
            asking[0].join(0.3)
        draw(figure, **state)
    lab.draw = slowly
    arrive(uploader(lab), "secret.png", picture_file())
    asking[0].join(10)
    assert len(said[0]) == 2 and said[0][0][1] != said[0][1][1] == lab.shown == png(lab.figure())  # the old one at once, then the new one


def test_what_is_no_image_leaves_the_picture_where_it_is():
    lab = Opened()
    arrive(uploader(lab), "secret.txt", b"no picture")
    assert lab.messenger is None and lab.picture.value and "Not possible" in lab.sentence.value and "secret" not in lab.sentence.value


def test_without_anywidget_an_own_image_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    lab = Opened()
    given = lab.picture.value
    arrive(uploader(lab), "secret.png", picture_file())
    assert "Not possible" in lab.sentence.value and "pip install anywidget" in lab.sentence.value and lab.light == 0
    assert lab.picture.value == given and not uploader(lab).value


def test_the_frame_is_imported_without_anywidget():
    import subprocess
    code = "import sys, cmunext_nb.labs as l; l.BlockLab; assert 'anywidget' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_colab_is_told_of_other_makers_widgets_before_a_lab_is_shown(monkeypatch):
    asked = []
    monkeypatch.setitem(sys.modules, "google.colab.output", types.SimpleNamespace(enable_custom_widget_manager=lambda: asked.append(1)))
    Square()
    assert not asked
    Opened()
    assert asked == [1]


def test_controls():
    assert slider("Row", 3, 0, 9).step == 1 and slider("T", 0.5, 0.0, 1.0).step == pytest.approx(0.01)
    assert choice("Layer", ["a", "b"]).value == "a" and choice("Layer", [("a", 1), ("b", 2)], 2).value == 2
    with pytest.raises(ValueError, match="Layer"): choice("Layer", [])
    pressed = []
    button("Go", lambda: pressed.append(1)).click()
    assert pressed == [1]


def test_an_unknown_lab_is_answered_with_the_labs_there_are():
    with pytest.raises(AttributeError, match="BlockLab.*PredictLab"): labs.ZebraLab
    figure = new_figure(3, 2)
    assert tuple(figure.get_size_inches()) == (3, 2)


@pytest.mark.parametrize("values", [dict(level=10), dict(level=-1), dict(level=2.5)])
def test_a_value_that_a_control_would_change_is_refused(values):
    lab = Square()
    lab.put(level=4)
    with pytest.raises(ValueError, match=f"level={values['level']} cannot be chosen: its control would take {min(int(max(values['level'], 0)), 9)}"): lab.put(kind=5, **values)
    assert lab.state == dict(level=4, kind=0, frame=False)
    with pytest.raises(ValueError, match="Seed -3 lies outside of 0 to 99"): slider("Seed", -3, 0, 99)


@pytest.mark.parametrize("error, words", [(AssertionError(), "AssertionError"), (KeyError("mask"), "KeyError: 'mask'"), (RuntimeError("out of memory"), "out of memory")])
def test_an_error_while_an_image_is_taken_is_said(error, words):
    def take(name, pixels): raise error
    said = []
    arrive(upload(take, said.append), "mine.png", picture_file())
    assert said == [words]


def test_an_interrupt_is_no_sentence():
    def take(name, pixels): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): arrive(upload(take, print), "mine.png", picture_file())


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_fused_step_is_another_version(kind):
    "PyTorch does not count what a fused optimizer does, and only BatchNorm's statistics would show it."
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.GroupNorm(1, 2), torch.nn.Conv2d(2, 1, 1))
    net(torch.rand(1, 1, 8, 8)).square().mean().backward()
    before = labs._version(net)
    assert labs._version(net) == before
    fused = _fused_on_cpu(list(net.parameters()))  # from torch 2.4 on
    kind(net.parameters(), 1e-4, fused=fused).step()
    assert labs._version(net) != before and labs._version(net)[2] != before[2]  # the content alone is enough


def test_versions_of_what_is_no_ordinary_network():
    assert labs._version(lambda x: x)[1:] == (0, b"") == labs._version(torch.nn.ReLU())[1:]
    mixed = torch.nn.Sequential(torch.nn.Linear(2, 2).double(), torch.nn.Linear(2, 2).half())
    mixed.register_buffer("steps", torch.zeros(1, dtype=torch.long))
    assert len(labs._version(mixed)[2]) == 4 * 4


@pytest.mark.parametrize("drawn", ["receptive field", "heat-map", "lab of training"])
def test_every_picture_of_the_house_waits_for_its_turn(drawn):
    net = create_model("cmunext_s", dims=(4,) * 5)
    if drawn == "receptive field": draw = receptive_field(net, "encoder.4", 64).figure
    elif drawn == "heat-map": draw = seg_cam(net, np.zeros((64, 64), np.uint8), region=(9, 9)).figure
    else: draw = TrainingLab(make_phantom(4, size=32), epochs=1).figure
    thread = threading.Thread(target=draw)
    with _at_home():
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()  # it waits: two at once would leave each other's settings behind
    thread.join(30)
    assert not thread.is_alive()


def test_a_lab_and_a_picture_drawn_at_once_leave_the_settings():
    before, doors = dict(matplotlib.rcParams), [(threading.Event(), threading.Event()) for _ in range(2)]
    def draw(room, entered, leave):
        with room(): entered.set(), leave.wait(10)
    threads = [threading.Thread(target=draw, args=(room, *events)) for room, events in zip((_house, _at_home), doors)]
    for thread, (entered, _) in zip(threads, doors):
        thread.start()
        entered.wait(0.5)  # the second waits until the first has left, and would otherwise take its settings for the user's
    for thread, (_, leave) in zip(threads, doors):
        leave.set()
        thread.join(10)
    assert dict(matplotlib.rcParams) == before
