"""A JupyterLab server and one notebook in it, as a reader sees and moves them: what the tests of this folder are written with.

Environment: CMUNEXT_BROWSER (path of a Chromium), CMUNEXT_NBS (folder of the notebooks; the checkout's nbs/), CMUNEXT_ARTIFACTS
(folder of the screenshots; artifacts/browser). The server listens on the loopback only, with a token of its own, in temporary folders.
"""
import functools, http.server, importlib.util, json, os, re, secrets, socket, subprocess, sys, threading, time, urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NBS = Path(os.environ.get("CMUNEXT_NBS") or ROOT / "nbs").resolve()
ARTIFACTS = Path(os.environ.get("CMUNEXT_ARTIFACTS") or ROOT / "artifacts/browser").resolve()
FLAGS = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage"]
PATIENCE = 60  # seconds for one thing to happen: the machine may be busy
RUN = 240  # seconds for a whole notebook
# JupyterLab's own noise in the console, which is no fault of a lab. Anything else that is an error fails the test.
KNOWN_NOISE = (
    r"favicon",  # the tab's icon changes with the kernel's state, and a request for the old one may be cut off
    r"/(lsp|terminals)/",  # language servers and terminals: asked for, not installed
    r"ResizeObserver loop",  # a note of the browser that a layout took two frames
)


def ci_module(name):
    "A script of .ci as a module."
    spec = importlib.util.spec_from_file_location(f"cmunext_ci_{name}", ROOT / f".ci/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finder():
    "Module .ci/browser.py, which knows where browsers are."
    return ci_module("browser")


class Quiet(http.server.SimpleHTTPRequestHandler):
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm"}
    def log_message(self, *_): pass


@contextmanager
def serving(folder):
    "Address, without a slash at its end, under which a plain static server on the loopback gives out a folder."
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}"
    finally: server.shutdown()


def lab_notebooks():
    "Paths of the lab notebooks, in reading order."
    return sorted([*NBS.glob("4[0-9]_*_lab.ipynb"), *NBS.glob("50_*.ipynb")])


class Jupyter:
    "A JupyterLab server in `folder`, whose kernels import the package beside the notebooks."

    def __init__(self, folder, log):
        self.folder, self.token, self.log = folder / "notebooks", secrets.token_hex(16), log
        self.settings = folder / "settings"
        self.folder.mkdir()
        self.write(folder / "config/labconfig/page_config.json", {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}})
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        places = dict(JUPYTER_CONFIG_DIR="config", JUPYTER_DATA_DIR="data", JUPYTER_RUNTIME_DIR="runtime", JUPYTERLAB_SETTINGS_DIR="settings",
                      JUPYTERLAB_WORKSPACES_DIR="workspaces", IPYTHONDIR="ipython", MPLCONFIGDIR="matplotlib")
        env = {**os.environ, **{name: str(folder / place) for name, place in places.items()}, "JUPYTER_TOKEN": self.token, "CMUNEXT_QUIET": "1",
               "PYTHONPATH": os.pathsep.join(filter(None, [str(NBS.parent), os.environ.get("PYTHONPATH")])), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser", "--ServerApp.ip=127.0.0.1",
                   f"--ServerApp.port={self.port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={self.folder}", "--LabApp.news_url=None",
                   "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.extension_manager=readonly"]
        self.process = subprocess.Popen(command, env=env, stdout=log.open("w"), stderr=subprocess.STDOUT, cwd=self.folder)

    @staticmethod
    def write(path, data):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data), encoding="utf-8")

    def wait(self):
        "Until the server answers."
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            try: return urllib.request.urlopen(f"{self.url}/api?token={self.token}", timeout=5).read()
            except OSError: time.sleep(0.2)
        pytest.fail(f"JupyterLab did not start within {PATIENCE} s. The end of {self.log}:\n{self.log.read_text(errors='replace')[-3000:]}", pytrace=False)

    def stop(self):
        "Ask the server to end, which ends its kernels; if it does not, end it."
        if self.process.poll() is None: self.process.terminate()
        try: self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def save_widget_state(self, on):
        "JupyterLab's setting `Save Widget State Automatically`, for pages that are opened from now on."
        self.write(self.settings / "@jupyter-widgets/jupyterlab-manager/plugin.jupyterlab-settings", {"saveState": on})


class LabPage:
    "One notebook in JupyterLab, and the first lab in it."

    def __init__(self, page, jupyter, name):
        self.page, self.jupyter, self.name, self.noise, self.outside, self.choosers = page, jupyter, name, [], [], []
        page.set_default_timeout(1000 * PATIENCE)
        page.on("console", lambda m: self.noise.append(f"{m.text} ({m.location.get('url', '')})") if m.type == "error" else None)
        page.on("filechooser", lambda c: self.choosers.append(c))  # from the start: asked for later, it comes too late on a busy machine
        page.on("pageerror", lambda e: self.noise.append(f"uncaught: {e}"))
        page.on("request", lambda r: None if r.url.startswith((jupyter.url, "data:", "blob:", "ws://127.0.0.1")) else self.outside.append(r.url))

    @property
    def path(self): return self.jupyter.folder / f"{self.name}.ipynb"

    # JupyterLab

    def open(self):
        "Open the notebook in a fresh workspace and wait for its kernel."
        self.page.goto(f"{self.jupyter.url}/lab/tree/{self.name}.ipynb?reset&token={self.jupyter.token}")
        self.until("window.jupyterapp?.shell?.currentWidget?.sessionContext?.isReady === true", "JupyterLab, the notebook and its kernel are ready")
        self.until("!!jupyterapp.shell.currentWidget.sessionContext.session?.kernel", "the notebook has a kernel")
        self.until("!document.querySelector('#jupyterlab-splash')", "the splash screen is gone")

    def run_all(self):
        "Run > Run All Cells, and wait until the kernel has nothing more to do."
        self.page.evaluate("() => { window.ran = null; jupyterapp.commands.execute('notebook:run-all-cells').then(ok => { window.ran = ok }, e => { window.ran = String(e) }) }")
        try: self.until("window.ran !== null", f"all cells have run within {RUN} s", RUN)
        except AssertionError as error: raise AssertionError(f"{error} Under way is {self.running()}.") from None
        self.idle()
        wrong = self.errors()
        assert not wrong, f"{self.name}: cells end in an error:\n" + "\n".join(wrong)

    def running(self):
        "The first cell that has not finished."
        return self.page.evaluate("""() => { const cells = Array.from(jupyterapp.shell.currentWidget.content.widgets)
            const i = cells.findIndex(c => c.model.type === 'code' && c.model.executionState !== 'idle')
            return i < 0 ? 'no cell' : `cell ${i} of ${cells.length} (${cells[i].model.sharedModel.source.trim().slice(0, 60)})` }""")

    def errors(self):
        "The errors that stand in the outputs of the open notebook."
        return self.page.evaluate("""() => Array.from(jupyterapp.shell.currentWidget.content.widgets).flatMap((c, i) => c.model.type === 'code'
            ? c.model.outputs.toJSON().filter(o => o.output_type === 'error').map(o => `cell ${i} (${c.model.sharedModel.source.trim().slice(0, 60)}): ${o.ename}: ${o.evalue}`) : [])""")

    def idle(self): self.until("jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'", "the kernel is idle")

    def run_another_cell(self, code):
        "Append a cell, run it, and return its text and the seconds that it took."
        start = time.monotonic()
        text = self.page.evaluate("""async code => {
            const {content, sessionContext} = jupyterapp.shell.currentWidget, app = jupyterapp
            content.activeCellIndex = content.widgets.length - 1
            await app.commands.execute('notebook:insert-cell-below')
            await app.commands.execute('notebook:change-cell-to-code')
            const cell = content.activeCell
            cell.model.sharedModel.setSource(code)
            await app.commands.execute('notebook:run-cell')
            return cell.model.outputs.toJSON().map(o => o.text ?? o.data?.['text/plain'] ?? o.evalue ?? '').flat().join('')
        }""", code)
        return text, time.monotonic() - start

    def save(self):
        "Ctrl+S, and the notebook as it then lies on the disk."
        before = self.path.stat().st_mtime_ns
        self.page.evaluate("() => { jupyterapp.shell.currentWidget.model.dirty = true }")
        self.page.keyboard.press("ControlOrMeta+s")
        self.until("jupyterapp.shell.currentWidget.model.dirty === false", "the notebook is saved")
        end = time.monotonic() + PATIENCE
        while self.path.stat().st_mtime_ns == before and time.monotonic() < end: self.page.wait_for_timeout(50)
        text = self.path.read_text(encoding="utf-8")
        return text, json.loads(text)

    def shut_down(self): self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")

    def until(self, expression, what, seconds=PATIENCE):
        "Wait until a JavaScript expression is true; `what` is said when it never is."
        from playwright.sync_api import Error
        try: self.page.wait_for_function(f"() => {expression}", timeout=1000 * seconds)
        except Error as error: raise AssertionError(f"{self.name}: waited {seconds} s, in vain, until {what}. {str(error).splitlines()[0]}") from None

    def real_noise(self): return [n for n in self.noise if not any(re.search(k, n) for k in KNOWN_NOISE)]

    # the lab

    @property
    def output(self): return self.page.locator(".jp-OutputArea-output:has(img.widget-image)").first

    @property
    def root(self): return self.output.locator(".jupyter-widgets").first

    @property
    def picture(self): return self.output.locator("img.widget-image").first

    def find(self):
        "Wait for the lab's picture, and bring the lab into view."
        self.picture.wait_for(state="visible")
        self.until("[...document.querySelectorAll('img.widget-image')].every(i => i.complete && i.naturalWidth > 0)", "each picture is there")
        self.root.evaluate("e => e.scrollIntoView({block: 'start'})")
        return self

    def digest(self):
        "Hash of the picture's bytes; ipywidgets gives the image a new address at each refresh, even of the same picture."
        script = """async i => { if (!i.isConnected || !i.src) throw Error('another picture is about to take its place')
            return new Uint8Array(await crypto.subtle.digest('SHA-256', await (await fetch(i.src)).arrayBuffer())).toString() }"""
        for _ in range(200):  # the address is taken back while a new picture arrives
            try: return self.picture.evaluate(script)
            except Exception: self.page.wait_for_timeout(50)
        raise AssertionError(f"{self.name}: the picture's bytes cannot be read")

    def words(self): return self.root.inner_text()

    def changed(self, before, what, seconds=PATIENCE):
        "Wait until the picture differs from the hash `before`; the new hash."
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            now = self.digest()
            if now != before: return now
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{self.name}: the picture is the same {seconds} s after {what}. The lab says: {self.words()!r}")

    def box(self):
        "Where the picture lies in the lab, and the lab's own size: (x, y, width, height, lab's width, lab's height) in pixels."
        return self.root.evaluate("""e => { const r = e.getBoundingClientRect(), p = e.querySelector('img.widget-image').getBoundingClientRect()
            return [p.x - r.x, p.y - r.y, p.width, p.height, r.width, r.height].map(v => Math.round(10 * v) / 10) }""")

    def settle(self, seconds=PATIENCE):
        "Wait until the kernel has dealt with what a widget sent since `listen`, and the picture has stayed the same for a quarter of a second."
        self.until("window.handled > 0", "the kernel has dealt with the control", seconds)
        end, last, since = time.monotonic() + PATIENCE, (self.digest(), self.words()), time.monotonic()
        while time.monotonic() - since < 0.25 and time.monotonic() < end:
            self.page.wait_for_timeout(50)
            now = (self.digest(), self.words())
            if now != last: last, since = now, time.monotonic()

    def listen(self):
        "Count, from now on, the widgets' messages that the kernel has dealt with: JupyterLab may send them past the queue of cells, so that idle says nothing."
        self.page.evaluate("""() => { window.handled = 0
            const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel
            if (kernel.counted) return
            kernel.counted = true
            kernel.anyMessage.connect((_, {msg, direction}) => { if (direction === 'recv' && msg.header.msg_type === 'status'
                && msg.content.execution_state === 'idle' && msg.parent_header.msg_type === 'comm_msg') window.handled += 1 }) }""")

    def controls(self):
        "Each control that can be moved or pressed, in the order of the page: dicts of tag, kind, label, disabled."
        return self.root.evaluate("""e => [...e.querySelectorAll('.noUi-handle, select, input:not([type=hidden]), textarea, button')].filter(c => c.offsetParent !== null).map(c => {
            const label = c.type === 'checkbox' ? c.closest('label') : c.closest('.jupyter-widgets').querySelector('.widget-label')
            const kind = c.matches('.noUi-handle') ? 'slider' : c.tagName === 'INPUT' ? c.type : c.tagName.toLowerCase()
            const disabled = c.disabled || !!c.closest('[disabled]')
            return {kind, label: label ? label.textContent.trim() : '', cut: !!label && label.scrollWidth > label.clientWidth + 1, disabled}
        })""")

    def control(self, index): return self.root.locator(".noUi-handle:visible, select:visible, input:not([type=hidden]):visible, textarea:visible, button:visible").nth(index)

    def focus(self, control):
        "Focus a control, and wait until it keeps the focus: after a run JupyterLab gives it to the notebook, at a moment of its own."
        control.scroll_into_view_if_needed()
        for _ in range(40):
            control.focus()
            self.page.wait_for_timeout(100)
            if control.evaluate("c => c === document.activeElement"): return
        raise AssertionError(f"{self.name}: the control {control.evaluate('c => c.outerHTML')[:120]} does not keep the focus")

    def button(self, *labels):
        "The button whose text begins with one of the labels."
        pattern = re.compile(r"^\W*(" + "|".join(labels) + r")\b", re.I)
        return self.root.locator("button").filter(has_text=pattern).first

    def press(self, *labels):
        "Press a button by keyboard: focus, Enter."
        button = self.button(*labels)
        button.wait_for(state="visible")
        assert button.is_enabled(), f"{self.name}: the button {' / '.join(labels)} is greyed out. The lab says: {self.words()!r}"
        self.focus(button)
        self.page.keyboard.press("Enter")

    def move(self, index):
        "Move one control by keyboard, by one step, back from the end of its range."
        # JupyterLab takes the arrow keys away from a closed menu (jupyter-widgets/ipywidgets#3912); the space bar opens it, and then they work.
        self.listen()
        control = self.control(index)
        self.focus(control)
        keys = control.evaluate("""c => c.matches('.noUi-handle') ? [Number(c.getAttribute('aria-valuenow')) < Number(c.getAttribute('aria-valuemax')) ? 'ArrowRight' : 'ArrowLeft']
            : c.tagName === 'SELECT' ? ['Space', c.selectedIndex < c.options.length - 1 ? 'ArrowDown' : 'ArrowUp', 'Enter'] : c.type === 'number' ? ['ArrowUp', 'Enter'] : ['Space']""")
        self.root.evaluate("""e => { window.pressed = window.drawn = null
            const now = () => { if (window.drawn === null) window.pressed = performance.now() }
            for (const kind of ['keydown', 'change']) e.addEventListener(kind, now, {capture: true})
            e.querySelector('img.widget-image').addEventListener('load', () => { if (window.pressed) window.drawn ??= performance.now() }, {once: true}) }""")
        for key in keys: self.page.keyboard.press(key)

    def choose(self, button, name, data):
        "Open a file through an upload button, by keyboard."
        self.focus(button)
        self.choosers.clear()
        self.page.keyboard.press("Enter")
        end = time.monotonic() + PATIENCE
        while not self.choosers and time.monotonic() < end: self.page.wait_for_timeout(50)
        assert self.choosers, f"{self.name}: the button {button.inner_text()!r} opened no file dialog"
        self.choosers[0].set_files({"name": name, "mimeType": "image/png", "buffer": data})

    def latency(self):
        "Milliseconds from the last key press to the picture after it."
        self.until("window.drawn !== null", "the picture after the key is drawn")
        return round(self.page.evaluate("window.drawn - window.pressed"))

    def tab_stops(self, most=80):
        "Labels of the controls that the tab key reaches, from the first one on."
        self.focus(self.control(0))
        reached = []
        for _ in range(most):
            index = self.root.evaluate("""e => { const all = [...e.querySelectorAll('.noUi-handle, select, input:not([type=hidden]), textarea, button')].filter(c => c.offsetParent !== null)
                return e.contains(document.activeElement) ? all.indexOf(document.activeElement) : -2 }""")
            if index == -2: break
            if index >= 0: reached.append(index)
            self.page.keyboard.press("Tab")
        return reached

    def nameless(self):
        "Controls without a name in the browser's accessibility tree, as (role, label that stands beside it)."
        session = self.page.context.new_cdp_session(self.page)
        try:
            session.send("DOM.enable")
            document = session.send("DOM.getDocument", {"depth": 0})["root"]["nodeId"]
            self.root.evaluate("e => e.setAttribute('data-under-test', '')")
            node = session.send("DOM.querySelector", {"nodeId": document, "selector": "[data-under-test]"})["nodeId"]
            roles, bad = ("slider", "combobox", "listbox", "checkbox", "radio", "button", "spinbutton", "textbox"), []
            for role in roles:
                for n in session.send("Accessibility.queryAXTree", {"nodeId": node, "role": role})["nodes"]:
                    if n.get("ignored") or (n.get("name", {}).get("value") or "").strip(): continue
                    bad.append((role, n["backendDOMNodeId"]))
            return [(role, self.beside(session, backend)) for role, backend in bad]
        finally: session.detach()

    @staticmethod
    def beside(session, backend):
        "The label that stands in the same widget as a node."
        thing = session.send("DOM.resolveNode", {"backendNodeId": backend})["object"]["objectId"]
        code = "function() { return this.closest('.jupyter-widgets')?.querySelector('.widget-label')?.textContent.trim() ?? '' }"
        return session.send("Runtime.callFunctionOn", {"objectId": thing, "functionDeclaration": code, "returnByValue": True})["result"].get("value", "")

    def keep(self, suffix="", whole=False):
        "Screenshots for the artefacts: the lab, and with `whole` the window too."
        self.root.evaluate("e => e.scrollIntoView({block: 'start'})")
        self.page.evaluate("() => document.activeElement.blur()")
        self.output.screenshot(path=ARTIFACTS / f"{self.name}{suffix}.png")
        if whole: self.page.screenshot(path=ARTIFACTS / f"{self.name}{suffix}-page.png")
