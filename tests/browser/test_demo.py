"""The demo of the site in a headless Chromium: its masks are Python's, it needs nothing but a static server, a keyboard is enough.

CMUNEXT_SITE names a folder with a built site, whose demo is taken; without it, its files are made first."""
import io
import os
import shutil
import subprocess
import tarfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cmunext_nb as cn
from harness import ARTIFACTS, PATIENCE, ROOT, ci_module, serving

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("demo")]  # one worker: the page is made once
PAGE = ROOT / "nbs/demo"
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def version():
    "The version of onnxruntime-web that the published page loads: the test takes the same."
    return (PAGE / "demo.js").read_text(encoding="utf-8").split("onnxruntime-web@")[1].split("/")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "The page, what is made for it, and the engine from npm, in one folder."
    lacking = pytest.fail if os.environ.get("CI") == "true" else pytest.skip  # CI installs npm, so that there nothing may be left out
    if shutil.which("npm") is None: lacking("npm is not installed, and the engine of the demo comes from there (Debian, Ubuntu: apt-get install npm)")
    built, folder = os.environ.get("CMUNEXT_SITE"), tmp_path_factory.mktemp("demo") / "demo"
    shutil.copytree(Path(built) / "demo" if built else PAGE, folder)
    if not built:
        for package in ("onnx", "onnxscript"): pytest.importorskip(package, reason="the demo's network is exported with the extra deploy")
        ci_module("demo").make(folder)
    got = subprocess.run(["npm", "pack", f"onnxruntime-web@{version()}", "--silent"], cwd=folder.parent, capture_output=True, text=True, timeout=300)
    if got.returncode: lacking(f"npm could not fetch onnxruntime-web: {got.stderr.strip()[-300:]}")
    (folder / "vendor").mkdir()
    with tarfile.open(folder.parent / got.stdout.split()[-1]) as archive:
        for name in FILES: (folder / "vendor" / name).write_bytes(archive.extractfile(f"package/dist/{name}").read())
    return folder


@pytest.fixture(scope="module")
def url(folder):
    with serving(folder) as address: yield f"{address}/"


@pytest.fixture
def page(browser, url):
    "The page, ready; afterwards no error stands in its console and nothing was asked of another host."
    context = browser.new_context(viewport=dict(width=1000, height=900), reduced_motion="reduce")
    page, noise, outside = context.new_page(), [], []
    page.on("console", lambda m: noise.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: noise.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else outside.append(r.url))
    page.goto(f"{url}index.html?ort=vendor/")
    until(page, "window.demo?.ready || document.querySelector('#said.wrong')")
    assert page.evaluate("window.demo.ready"), page.text_content("#said")
    yield page
    assert not noise and not outside, (noise, outside)
    context.close()


def until(page, what):
    "Wait for a JavaScript expression; playwright's own waiting evaluates strings in the page, which its policy forbids."
    end = time.monotonic() + PATIENCE
    while not page.evaluate(f"() => Boolean({what})"):
        assert time.monotonic() < end, f"not within {PATIENCE} s: {what}; the page says: {page.text_content('#said')}"
        time.sleep(0.05)


def shown(page):
    "Mask and probability as the page has them."
    got = page.evaluate("({m: Array.from(demo.mask), p: Array.from(demo.probability), h: demo.image.height, w: demo.image.width})")
    return np.array(got["m"], bool).reshape(got["h"], got["w"]), np.array(got["p"]).reshape(got["h"], got["w"])


def python(image, weights): return cn.predict(cn.create_model("cmunext_s", pretrained=weights), image)


def dice(a, b): return 2 * (a & b).sum() / max(a.sum() + b.sum(), 1)


def wait(page, name): until(page, f"demo.image?.name === {name!r} && document.querySelector('#said').textContent.includes(' ms ')")


def wait_weights(page, name): until(page, f"demo.weights.name === {name!r} && demo.session && document.querySelector('#said').textContent.includes(' ms ')")


@pytest.mark.parametrize("weights", ["phantom", "busi"])
def test_masks_are_pythons(page, folder, weights):
    page.locator(f"[name=weights][value={weights}]").check(force=True)
    wait_weights(page, weights)
    for i in (1, 2, 3):
        page.locator("[name=scan]").nth(i - 1).check(force=True)
        wait(page, f"Scan {i}")
        mask, probability = shown(page)
        result = python(folder / f"scan{i}.png", weights)
        assert result.mask.any() and dice(mask, result.mask) >= 0.999
        assert np.abs(probability - result.probability).max() < 1e-3


@pytest.mark.parametrize("mode, size", [("L", (300, 190)), ("RGB", (150, 421))])
def test_an_own_image(page, folder, mode, size):
    "Of another size, grey or in colour: read, shrunk, normalised and enlarged as in Python."
    picture = Image.open(folder / "scan1.png").resize(size).convert(mode)
    if mode == "RGB": picture = Image.merge("RGB", [picture.getchannel(0), picture.getchannel(1).point(lambda v: v // 2 + 60), picture.getchannel(2)])
    data = io.BytesIO()
    picture.save(data, "PNG")
    page.set_input_files("#file", dict(name="mine.png", mimeType="image/png", buffer=data.getvalue()))
    wait(page, "mine.png")
    wait_weights(page, "busi")  # suggested for an image of the reader's
    mask, probability = shown(page)
    result = python(picture, "busi")
    assert mask.shape == result.mask.shape and dice(mask, result.mask) >= 0.999
    assert np.abs(probability - result.probability).max() < 5e-3
    assert page.locator("[name=scan]:checked").count() == 0


def test_by_keyboard(page):
    "Tab reaches the scans, the file and the threshold; arrows move; each has a name."
    names, before = [], page.evaluate("demo.mask.reduce((a, b) => a + b)")
    for _ in range(7):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.id || document.activeElement.name || document.activeElement.tagName"))
    assert [n for n in names if n in ("scan", "file", "weights", "threshold", "save")] == ["scan", "file", "weights", "threshold", "save"], names
    page.focus("#threshold")
    for _ in range(30): page.keyboard.press("ArrowRight")
    assert page.text_content("#level") == "0.80" and page.evaluate("demo.mask.reduce((a, b) => a + b)") < before
    page.locator("[name=scan]").first.focus()
    page.keyboard.press("ArrowRight")
    wait(page, "Scan 2")
    nameless = page.evaluate("Array.from(document.querySelectorAll('input')).filter(e => !Array.from(e.labels).some(l => l.textContent.trim())).length")
    assert nameless == 0


def test_the_saved_mask(page):
    with page.expect_download() as download: page.click("#save")
    saved = np.asarray(Image.open(download.value.path()).convert("L"))
    assert np.array_equal(saved > 0, shown(page)[0]) and set(np.unique(saved)) <= {0, 255}


def holding(page, pattern):
    "Requests for these files wait, in the list that comes back, until they are told to go on."
    held = []
    page.route(pattern, lambda route: held.append(route))  # playwright puts a mark on the function, which a list's own does not take
    return held


def let_go(page, held):
    "Let them go on, once they have been made."
    end = time.monotonic() + PATIENCE
    while not held:
        assert time.monotonic() < end, f"nothing was asked for within {PATIENCE} s"
        page.evaluate("0")
    for route in held: route.continue_()


def move(page, threshold): page.evaluate("t => { const e = document.querySelector('#threshold'); e.value = t; e.dispatchEvent(new Event('input')) }", threshold)


def noise(height=60, width=90):
    "A PNG of the reader's, of a size that no scan has."
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width), dtype=np.uint8)).save(data, "PNG")
    return data.getvalue()


def own(page, name, data=None): page.set_input_files("#file", dict(name=name, mimeType="image/png", buffer=noise() if data is None else data))


def alone(page):
    "Whether the chosen image is drawn without a mask, and no probability beside it."
    return page.evaluate("""() => { const [picture, heat] = ['#picture', '#heat'].map(id => document.querySelector(id)), { pixels, width, height } = demo.image
        if ([picture, heat].some(canvas => canvas.width !== width || canvas.height !== height)) return false
        const [drawn, empty] = [picture, heat].map(canvas => canvas.getContext('2d').getImageData(0, 0, width, height).data)
        return drawn.every((v, i) => v === pixels[i]) && empty.every(v => v === 0) }""")


# Files of the reader's are decoded when `decode()` is called, scans at once; `decoded` counts both.
SLOW = """window.decoded = 0; window.files = []; window.decode = () => files.splice(0).forEach(go => go()); const make = window.createImageBitmap
    window.createImageBitmap = async (source, ...rest) => { if (source instanceof File) await new Promise(go => files.push(go))
        try { return await make(source, ...rest) } finally { decoded++ } }"""


def settled(page, decoded):
    "So many images have been decoded, and what follows from them has had its time."
    until(page, f"decoded === {decoded}")
    page.evaluate("new Promise(done => setTimeout(done, 200))")


def test_no_old_mask_on_a_new_image(page):
    "While weights are on their way there is no mask: not the last one on the next scan, and none to save."
    held = holding(page, "**/busi.onnx")
    page.locator("[name=weights][value=busi]").check(force=True)
    until(page, "demo.weights.name === 'busi'")
    assert page.evaluate("demo.probability === null && demo.mask === null && document.querySelector('#save').hidden")
    assert alone(page)
    for choose, name in ((lambda: page.locator("[name=scan]").nth(1).check(force=True), "Scan 2"), (lambda: own(page, "small.png"), "small.png")):
        choose()
        until(page, f"demo.image.name === {name!r}")
        move(page, 0.3)
        assert page.evaluate("demo.probability === null && demo.mask === null && document.querySelector('#save').hidden")
        assert "fetched" in page.text_content("#said") and alone(page)
        assert page.get_attribute("#picture", "aria-label") == f"{name}, without a mask so far."
    let_go(page, held)
    wait(page, "small.png")
    until(page, "!document.querySelector('#save').hidden")
    with page.expect_download() as download: page.click("#save")
    saved = np.asarray(Image.open(download.value.path()).convert("L"))
    assert saved.shape == (60, 90) and np.array_equal(saved > 0, shown(page)[0])


def test_the_last_image_s_mask_is_not_offered_for_the_next(page):
    held = holding(page, "**/busi.onnx")
    page.evaluate("""() => { window.late = []; const make = HTMLCanvasElement.prototype.toBlob
        HTMLCanvasElement.prototype.toBlob = function (done, ...rest) { make.call(this, blob => late.push(() => done(blob)), ...rest) } }""")
    move(page, 0.3)
    until(page, "late.length")
    page.locator("[name=weights][value=busi]").check(force=True)
    until(page, "demo.weights.name === 'busi'")
    page.evaluate("late.splice(0).forEach(go => go())")
    assert page.evaluate("document.querySelector('#save').hidden")
    let_go(page, held)
    wait_weights(page, "busi")
    until(page, "late.length")
    page.evaluate("late.splice(0).forEach(go => go())")
    assert not page.evaluate("document.querySelector('#save').hidden")


def test_other_weights_between_two_frames(page):
    "A computation that waits for its frame is dropped when its network is put away."
    held = holding(page, "**/busi.onnx")
    page.evaluate("() => { window.waiting = []; window.frame = requestAnimationFrame; window.requestAnimationFrame = f => waiting.push(f) }")
    page.locator("[name=scan]").nth(1).check(force=True)
    until(page, "waiting.length")
    page.locator("[name=weights][value=busi]").check(force=True)
    until(page, "demo.weights.name === 'busi'")
    page.evaluate("() => { window.requestAnimationFrame = frame; waiting.splice(0).forEach(f => f()); return new Promise(done => setTimeout(done, 100)) }")
    assert "fetched" in page.text_content("#said") and page.locator("#said.wrong").count() == 0
    let_go(page, held)
    wait_weights(page, "busi")
    wait(page, "Scan 2")


def test_the_last_choice_is_shown(page):
    "Not what arrives last: a scan that was slow comes after the next one, and after a file, whose weights stay."
    page.evaluate(f"() => {{ {SLOW} }}")
    held = holding(page, "**/scan2.png")
    page.locator("[name=scan]").nth(1).check(force=True)
    page.locator("[name=scan]").nth(2).check(force=True)
    wait(page, "Scan 3")
    let_go(page, held)
    settled(page, 2)
    assert page.evaluate("demo.image.name") == "Scan 3" and page.locator("[name=scan]").nth(2).is_checked()
    held.clear()
    page.locator("[name=scan]").nth(1).check(force=True)
    own(page, "mine.png")
    until(page, "files.length")
    page.evaluate("decode()")
    wait(page, "mine.png")
    wait_weights(page, "busi")
    let_go(page, held)
    settled(page, 4)
    assert page.evaluate("[demo.image.name, demo.weights.name]") == ["mine.png", "busi"] and shown(page)[0].shape == (60, 90)


@pytest.mark.parametrize("data", [b"not a picture", None], ids=["broken", "image"])
def test_a_file_that_is_given_up(page, data):
    "A scan chosen while it is decoded: neither the file nor a complaint about it appears, nor its weights."
    page.evaluate(f"() => {{ {SLOW} }}")
    own(page, "mine.png", data)
    until(page, "files.length")
    page.locator("[name=scan]").nth(1).check(force=True)
    wait(page, "Scan 2")
    page.evaluate("decode()")
    settled(page, 2)
    assert page.evaluate("[demo.image.name, demo.weights.name]") == ["Scan 2", "phantom"] and " ms " in page.text_content("#said")


def test_a_file_and_then_weights(page):
    "Weights chosen while a file is decoded do not cost the file."
    page.evaluate(f"() => {{ {SLOW} }}")
    own(page, "mine.png")
    until(page, "files.length")
    page.locator("[name=weights][value=busi]").check(force=True)
    wait_weights(page, "busi")
    page.evaluate("decode()")
    wait(page, "mine.png")
    assert page.evaluate("demo.weights.name") == "busi" and shown(page)[0].shape == (60, 90)


@contextmanager
def early(browser, url, pattern, slow=False):
    "The page before the files of this pattern are there, and their requests."
    context = browser.new_context()
    try:
        page = context.new_page()
        if slow: page.add_init_script(SLOW)
        held = holding(page, pattern)
        page.goto(f"{url}index.html?ort=vendor/", wait_until="commit")
        until(page, "window.demo")
        yield page, held
        assert page.locator("#said.wrong").count() == 0, page.text_content("#said")
    finally: context.close()


def test_weights_before_the_engine(browser, url):
    "Chosen while the engine is still on its way, they are the first that it gets."
    with early(browser, url, "**/ort.wasm.min.mjs") as (page, held):
        until(page, "document.querySelectorAll('[name=weights]').length === 2")
        page.locator("[name=weights][value=busi]").check(force=True)
        until(page, "demo.weights?.name === 'busi'")
        assert page.locator("#said.wrong").count() == 0, page.text_content("#said")
        let_go(page, held)
        until(page, "demo.ready")
        wait_weights(page, "busi")
        assert page.locator("[name=weights]:checked").get_attribute("value") == "busi"


@pytest.mark.parametrize("late", ["ort.wasm.min.mjs", "model.json"])
def test_a_file_before_the_engine(browser, url, late):
    "It is shown once its weights can be told, and gets those for images of the reader's."
    with early(browser, url, f"**/{late}") as (page, held):
        own(page, "mine.png")
        if late == "model.json": page.evaluate("new Promise(done => setTimeout(done, 200))")
        else:
            until(page, "demo.weights?.name === 'busi'")
            assert alone(page) and "fetched" in page.text_content("#said")
        let_go(page, held)
        until(page, "demo.ready")
        wait(page, "mine.png")
        assert page.evaluate("[demo.image.name, demo.weights.name]") == ["mine.png", "busi"]
        assert page.locator("[name=weights]:checked").get_attribute("value") == "busi" and page.locator("[name=scan]:checked").count() == 0


@pytest.mark.parametrize("data", [b"not a picture", None], ids=["broken", "image"])
def test_a_file_is_decoded_while_the_network_arrives(browser, url, data):
    "No scan takes its place; if it cannot be read the page says so."
    with early(browser, url, "**/ort.wasm.min.mjs", slow=True) as (page, held):
        own(page, "mine.png", data)
        until(page, "files.length")
        let_go(page, held)
        until(page, "demo.ready")
        assert page.evaluate("demo.image") is None and "waits for an image" in page.text_content("#said")
        page.evaluate("decode()")
        if data:
            until(page, "document.querySelector('#said.wrong')")
            assert "mine.png cannot be read" in page.text_content("#said")
            page.locator("[name=scan]").nth(1).check(force=True)
            wait(page, "Scan 2")
        else:
            wait(page, "mine.png")
            wait_weights(page, "busi")


def test_a_file_that_is_no_image(page):
    page.set_input_files("#file", dict(name="notes.png", mimeType="image/png", buffer=b"not a picture"))
    page.wait_for_selector("#said.wrong", timeout=1000 * PATIENCE)
    assert "notes.png cannot be read as an image" in page.text_content("#said")


def test_another_host_is_refused(browser, url):
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(f"{url}index.html?ort=http://127.0.0.2/")
        page.wait_for_selector("#said.wrong", timeout=1000 * PATIENCE)
        assert "from this server alone" in page.text_content("#said")
    finally: context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1000])
def test_looks(page, scheme, width):
    "No wider than a phone; the screenshots are kept."
    page.set_viewport_size(dict(width=width, height=900))
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"demo-{scheme}-{width}.png", full_page=True)
