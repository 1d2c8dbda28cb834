"The frame of the labs, without a browser and under any version of ipywidgets. The everyday path is checked in nbs/39_labs.ipynb."
import io
import threading

import matplotlib
import numpy as np
import pytest
from PIL import Image

from cmunext_nb import labs
from cmunext_nb.labs import Lab, button, choice, new_figure, png, slider, switch, upload


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
    lab.controls["level"].value = 3
    assert "Not possible" not in lab.sentence.value


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
    assert not got and len(wrong) == 1 and "mine.png" in wrong[0]


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
