"""Every lab in JupyterLab 4 and a headless Chromium: it runs, it moves by keyboard, it stays in its place, it keeps no image of the reader."""
import base64, json, time

import pytest

from harness import ARTIFACTS, NBS, lab_notebooks

pytestmark = pytest.mark.browser
NAMES = [p.stem for p in lab_notebooks()]
TRAINING = [n for n in NAMES if "train" in n]
FRAME = '''
import numpy as np
from cmunext_nb.labs import Lab, button, choice, slider, switch, upload
from cmunext_nb.plot import show_image

class FrameLab(Lab):
    def __init__(self):
        self.pixels = np.add.outer(np.arange(64), 2 * np.arange(64)).astype(np.uint8)
        super().__init__(dict(map=choice("Colours", ["gray", "viridis", "cividis"]), low=slider("Lower limit", 10, 0, 100), high=slider("Upper limit", 0.9, 0.5, 1.0),
                              flip=switch("Mirrored")), more=[upload(self.read, self.tell), button("Reset", lambda: self.put(low=10))])
    def read(self, name, pixels):
        self.pixels = np.asarray(pixels)[0]
        self.refresh()
    def draw(self, figure, map, low, high, flip):
        figure.add_axes((0, 0, 1, 1)).imshow(self.pixels[:, ::-1] if flip else self.pixels, cmap=map, vmin=low, vmax=255 * high, aspect="auto")
    def words(self, low, high, **rest): return f"Grey values from {low} to {255 * high:.0f} are spread over the colours; the image has {self.pixels.shape[1]} columns."
FrameLab()
'''


def test_there_are_labs():
    "A lab that is not found would be skipped in silence."
    assert [n[:2] for n in NAMES] == ["40", "41", "42", "43", "44", "50"], f"the labs are {NBS}/40_*_lab.ipynb to 44_*_lab.ipynb and 50_*.ipynb, and only {NAMES or 'none'} are there"
    assert len(TRAINING) == 1, f"one of {NAMES} should have `train` in its name"


def random_png(seed=0, size=96):
    "A PNG of noise, which compresses badly, so that any part of it is recognised."
    import io
    import numpy as np
    from PIL import Image
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def traces(data, text):
    "Whether some part of `data` stands in a text, as base64 at any of the three offsets or as hexadecimal digits."
    middle = data[len(data) // 3:len(data) // 3 + 48]
    needles = [base64.b64encode(middle[i:i + 30]).decode()[4:36] for i in range(3)] + [middle[:20].hex()]
    return any(n in text for n in needles)


def pictures(notebook):
    "All PNG outputs of a notebook."
    return {"".join(o["data"]["image/png"]).replace("\n", "") for c in notebook["cells"] for o in c.get("outputs", []) if "image/png" in o.get("data", {})}


def shape(lab):
    "The picture fills its box without a distortion or a band, and the lab is no wider than the page, be it narrow."
    for width in (700, 1280):
        lab.page.set_viewport_size(dict(width=width, height=900))
        lab.page.wait_for_timeout(500)
        seen = lab.picture.evaluate("i => [i.naturalWidth, i.naturalHeight, i.clientWidth, i.clientHeight, i.parentElement.clientWidth, i.parentElement.clientHeight]")
        for box in (seen[2:4], seen[4:]):
            assert abs(seen[0] / seen[1] - box[0] / box[1]) < 0.02, f"{lab.name}: a picture of {seen[0]} x {seen[1]} px stands in a box of {box[0]} x {box[1]} px, on a page of {width} px"
        over = lab.output.evaluate("e => e.scrollWidth - e.clientWidth")
        assert over <= 1, f"{lab.name}: the lab is {over} px wider than the page at {width} px"


def labels(lab):
    "Each control has a label; the browser itself knows the name of each, except of slider handles, which ipywidgets leaves nameless."
    controls = lab.controls()
    assert controls, f"{lab.name}: the lab has no control"
    cut = [c["label"] for c in controls if c["cut"]]
    assert not cut, f"{lab.name}: labels are cut off: {', '.join(cut)}"
    bad = [(role, label) for role, label in lab.nameless() if not (role == "slider" and label)]
    assert not bad, f"{lab.name}: controls without an accessible name: {bad}"


def keyboard(lab):
    "The tab key reaches every control that is not greyed out, and in the order of the page."
    wanted, reached = [i for i, c in enumerate(lab.controls()) if not c["disabled"]], lab.tab_stops()
    missed = [lab.controls()[i]["label"] or lab.control(i).inner_text() for i in wanted if i not in reached]
    assert not missed, f"{lab.name}: the tab key does not reach {', '.join(missed)}"
    assert reached == sorted(reached), f"{lab.name}: the tab key does not go in the order of the page: {reached}"


def moves(lab):
    "The first control, moved by one key, changes the picture and nothing's place; each other one changes the picture or the sentence."
    report, box = [], lab.box()
    movable = [i for i, c in enumerate(lab.controls()) if c["kind"] != "button" and not c["disabled"]]
    assert movable, f"{lab.name}: there is nothing to move"
    for n, i in enumerate(movable):
        if i >= len(lab.controls()): break  # a control before it took others away
        control, before, said = lab.controls()[i], lab.digest(), lab.words()
        if control["disabled"] or control["kind"] == "button": continue
        lab.move(i)
        lab.settle()
        if n == 0: lab.changed(before, f"a key on {control['label']!r}", 5)
        took = lab.latency() if lab.digest() != before else None
        report.append(dict(label=control["label"], kind=control["kind"], picture=took is not None, sentence=lab.words() != said, milliseconds=took))
        assert lab.box() == box, (f"{lab.name}: {control['label']!r} moved the layout: picture (x, y, width, height) and lab (width, height) were {box}, "
                                  f"and are {lab.box()}. The lab says: {lab.words()!r}")
    (ARTIFACTS / f"{lab.name}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False))
    return report


def quiet(lab):
    "No cell failed, the console holds no error, and nothing was asked of another machine."
    assert not lab.errors(), f"{lab.name}: {lab.errors()}"
    assert not lab.real_noise(), f"{lab.name}: errors in the browser's console:\n" + "\n".join(lab.real_noise())
    assert not lab.outside, f"{lab.name}: the page asked other machines: {lab.outside[:3]}"


def saved_clean(lab):
    text, notebook = lab.save()
    assert "widgets" not in notebook["metadata"] and "widget-state" not in text, f"{lab.name}: the saved notebook holds widget state"
    assert not [o for c in notebook["cells"] for o in c.get("outputs", []) if o["output_type"] == "error"], f"{lab.name}: the saved notebook holds an error"
    return text, notebook


def bring(lab, data, name="scan.png"):
    "Choose a file in the lab's upload, by keyboard, and wait for the picture."
    before = lab.digest()
    lab.listen()
    lab.choose(lab.root.locator("button.widget-upload").first, name, data)
    lab.changed(before, "an image was opened")
    lab.settle()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in TRAINING])
def test_lab(opened, name):
    with opened(name) as lab:
        shape(lab)
        lab.keep(whole=True)
        labels(lab)
        keyboard(lab)
        moves(lab)
        lab.keep("-moved")
        _, before = saved_clean(lab)
        if lab.root.locator("button.widget-upload").count():
            data = random_png(len(name))
            bring(lab, data)
            lab.keep("-upload")
            text, after = saved_clean(lab)
            assert not traces(data, text), f"{name}: the saved notebook holds the opened image"
            assert pictures(after) <= pictures(before), f"{name}: the saved notebook holds a picture that it did not hold before the image was opened"
        else: assert not any(word in name for word in ("cam", "predict")), f"{name}: one's own image cannot be opened"
        quiet(lab)


@pytest.mark.parametrize("name", TRAINING)
def test_training_lab(opened, name):
    "Start, Pause, Continue, Stop by keyboard, while another cell of the notebook still runs."
    with opened(name) as lab:
        shape(lab)
        lab.keep(whole=True)
        labels(lab)
        keyboard(lab)
        box, before = lab.box(), lab.digest()
        lab.press("Start")
        first = lab.changed(before, "Start")
        text, seconds = lab.run_another_cell("print(6 * 7)")
        assert text.strip() == "42" and seconds < 10, f"{name}: another cell took {seconds:.1f} s while the lab trains, and said {text!r}"
        lab.find()
        lab.changed(first, "a cell ran while it trains")
        lab.keep("-training")
        assert lab.box() == box, f"{name}: training moved the layout from {box} to {lab.box()}. The lab says: {lab.words()!r}"
        lab.press("Pause")
        rest(lab)
        paused = lab.digest()
        lab.page.wait_for_timeout(2000)  # long enough for some steps, if it went on
        assert lab.digest() == paused, f"{name}: the picture still changes after Pause"
        lab.keep("-paused")
        lab.press("Continue", "Resume", "Start")
        lab.changed(paused, "Continue")
        lab.press("Stop")
        rest(lab)
        lab.keep("-stopped")
        assert lab.box() == box, f"{name}: Stop moved the layout from {box} to {lab.box()}. The lab says: {lab.words()!r}"
        saved_clean(lab)
        quiet(lab)


def rest(lab, seconds=30):
    "Wait until the picture has been the same for a second: the step or the epoch that was under way has ended."
    end, last, since = time.monotonic() + seconds, lab.digest(), time.monotonic()
    while time.monotonic() - since < 1:
        assert time.monotonic() < end, f"{lab.name}: the picture still changes {seconds} s later"
        lab.page.wait_for_timeout(100)
        now = lab.digest()
        if now != last: last, since = now, time.monotonic()


def write_frame(jupyter, name):
    "A notebook with a lab that has one control of each kind."
    cells = [dict(cell_type="markdown", id="a", metadata={}, source="# The frame"),
             dict(cell_type="code", id="b", metadata={}, execution_count=None, outputs=[], source=FRAME.strip())]
    kernel = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
    jupyter.write(jupyter.folder / f"{name}.ipynb", dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5))


def test_frame(opened, jupyter):
    "The frame of all labs, with a control of each kind and an image of the reader."
    write_frame(jupyter, "frame")
    with opened("frame") as lab:
        shape(lab)
        labels(lab)
        keyboard(lab)
        lab.keep(whole=True)
        report = moves(lab)
        assert [(r["label"], r["picture"]) for r in report] == [("Colours", True), ("Lower limit", True), ("Upper limit", True), ("Mirrored", True)], report
        before = lab.digest()
        lab.press("Reset")
        lab.changed(before, "Reset")
        data = random_png()
        assert traces(data, base64.b64encode(data).decode()) and not traces(data, base64.b64encode(random_png(1)).decode())
        bring(lab, data)
        assert "96 columns" in lab.words()
        lab.keep("-upload")
        text, notebook = saved_clean(lab)
        assert not traces(data, text) and not pictures(notebook)
        quiet(lab)


def test_frame_with_saved_widget_state(opened, jupyter):
    "With JupyterLab's setting for saving widget state on, which is off by default: neither the opened file nor a picture is in the notebook."
    write_frame(jupyter, "frame_saved")
    jupyter.save_widget_state(True)
    try:
        with opened("frame_saved") as lab:
            assert [kind for kind, _ in held(lab.save()[1])] == ["ImageModel"], "the picture of an image that is nobody's is saved"
            data = random_png()
            bring(lab, data)
            text, notebook = lab.save()
            assert not held(notebook) and not traces(data, text) and "scan.png" not in text
            quiet(lab)
    finally: jupyter.save_widget_state(False)


@pytest.mark.parametrize("name", [n for n in NAMES if "predict" in n])
def test_an_own_image_is_seen_and_not_saved(opened, jupyter, name):
    "The worst case: widget state is saved. The picture is on the page, the mask is among the downloads, and neither is in the notebook, nor the file's name."
    jupyter.save_widget_state(True)
    try:
        with opened(name) as lab:
            box, data = lab.box(), random_png(7)
            bring(lab, data, "smith.png")
            colours = lab.picture.evaluate("""i => { const c = Object.assign(document.createElement('canvas'), {width: i.naturalWidth, height: i.naturalHeight}).getContext('2d')
                c.drawImage(i, 0, 0)
                return new Set(new Uint32Array(c.getImageData(0, 0, i.naturalWidth, i.naturalHeight).data.buffer)).size }""")
            assert colours > 100, f"{name}: the picture of the opened image has {colours} colours"
            assert lab.picture.get_attribute("alt").startswith("The lab's picture") and lab.box() == box
            shape(lab)
            before = lab.digest()
            lab.move(1)  # the threshold
            lab.changed(before, "a key on the threshold")
            text, notebook = lab.save()
            assert not held(notebook), f"{name}: the saved notebook holds bytes of {held(notebook)}"
            assert saved_state(notebook), "the setting for saving widget state is not on"
            with lab.page.expect_download() as coming: lab.press("Make a PNG")
            mask = coming.value
            assert mask.suggested_filename == "smith_mask.png" and open(mask.path(), "rb").read(4) == b"\x89PNG"
            text, notebook = lab.save()
            assert not held(notebook) and "data:image/png" not in json.dumps(saved_state(notebook)) and not traces(data, text) and "smith" not in text
            lab.keep("-upload-unsaved")
            lab.listen()
            lab.press("Forget my image")
            lab.settle()
            lab.until("document.querySelector('img.widget-image')?.src && !document.querySelector('img.widget-image').alt", "the picture is the one of before")
            assert lab.box() == box and "your image" not in lab.words()
            assert [kind for kind, _ in held(lab.save()[1])] == ["ImageModel"]
            quiet(lab)
    finally: jupyter.save_widget_state(False)


def saved_state(notebook): return notebook["metadata"].get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})


def held(notebook):
    "Which widgets' bytes are in a saved notebook: (kind of widget, their number)."
    found = [(model["model_name"], sum(len(b["data"]) for b in model.get("buffers", []))) for model in saved_state(notebook).values()]
    return [(kind, n) for kind, n in found if n]


@pytest.mark.parametrize("name", [p.stem for p in NBS.glob("39_*.ipynb")])
def test_frame_notebook(opened, name):
    "The notebook that builds the frame."
    with opened(name) as lab:
        shape(lab)
        labels(lab)
        keyboard(lab)
        moves(lab)
        lab.keep(whole=True)
        saved_clean(lab)
        quiet(lab)
