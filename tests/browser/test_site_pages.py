"""Five pages of the built site in a headless Chromium, on a desk and on a phone. Screenshots go to artifacts/browser.

CMUNEXT_SITE names a folder with a built site; without it, the site is built first."""
import os
import re
import subprocess
import sys

import pytest

from harness import ARTIFACTS, ROOT, serving

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("site")]  # one worker: the site is built once
PAGES = ("index", "03_block", "41_receptive_field_lab", "reference/the-network", "gallery")
WIDTHS = dict(desk=(1280, 900), phone=(390, 844))
# The script that draws formulas and the themes' fonts come from a network that a test does not have. Nothing else may come from outside.
KNOWN = re.compile(r"^https://(cdn\.jsdelivr\.net/npm/(katex|mathjax)|fonts\.googleapis\.com/css2)")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "Address of the built site, on the loopback."
    folder = os.environ.get("CMUNEXT_SITE")
    if not folder:
        folder = str(tmp_path_factory.mktemp("site") / "docs")
        subprocess.run([sys.executable, ROOT / ".ci/site.py", "--tool", "smalldocs", "--out", folder], check=True)
    with serving(folder) as address: yield address


@pytest.fixture
def visit(browser, site):
    "visit(name, width, scheme): the page, opened and loaded, and a list that its errors go to."
    opened = []

    def open_page(name, width="desk", scheme="light"):
        (w, h), errors = WIDTHS[width], []
        context = browser.new_context(viewport=dict(width=w, height=h), color_scheme=scheme, reduced_motion="reduce")
        opened.append(context)
        page = context.new_page()
        # An empty answer in their place, so that their absence is no error and every other error is one.
        page.route(lambda url: not url.startswith((site, "data:")), lambda route: route.fulfill(body="", content_type="text/css" if "css" in route.request.url else "text/javascript") if KNOWN.match(route.request.url)
                   else (errors.append(f"asks for {route.request.url}"), route.abort()))
        page.on("console", lambda m: errors.append(f"{m.text} ({m.location.get('url', '')})") if m.type == "error" and "renderMathInElement" not in m.text else None)
        page.on("pageerror", lambda e: errors.append(f"uncaught: {e}") if "renderMathInElement" not in str(e) else None)
        page.on("response", lambda r: errors.append(f"{r.status} {r.url}") if r.status >= 400 and not r.url.endswith("favicon.ico") else None)
        page.goto(f"{site}/{name}.html", wait_until="load")
        page.evaluate("() => document.querySelectorAll('img[loading=lazy]').forEach(i => i.loading = 'eager')")
        page.wait_for_function("() => [...document.images].every(i => i.complete)")
        return page, errors
    yield open_page
    for context in opened: context.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_page(visit, name, width):
    "No error, no missing picture, no page wider than the screen."
    page, errors = visit(name, width)
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"site-{name.replace('/', '-')}-{width}.png")
    assert not [e for e in errors if "favicon" not in e], errors
    assert page.evaluate("() => [...document.images].filter(i => !i.naturalWidth || !i.alt.trim()).map(i => i.src.slice(0, 80))") == []
    wide = page.evaluate("""() => [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1
        && !e.closest('pre, table, .table-responsive, mjx-container, .katex')).map(e => `${e.tagName} ${e.className}`).slice(0, 5)""")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= WIDTHS[width][0], f"wider than the screen: {wide}"


def test_the_slider_works_without_a_kernel(visit):
    "The keyboard moves the slider of a lab's page: one picture is shown, another one than before, and the words follow."
    page, errors = visit("41_receptive_field_lab")
    slider = page.locator(".scrubber input").first
    shown = lambda: page.evaluate("() => [...document.querySelector('.scrubber').querySelectorAll('img')].filter(i => i.offsetHeight).map(i => i.dataset.label)")
    slider.focus()
    before, place = shown(), slider.bounding_box()["y"]
    page.keyboard.press("ArrowRight")
    after = shown()
    assert len(before) == len(after) == 1 and before != after
    assert slider.get_attribute("aria-valuetext") == page.locator(".scrubber output").first.inner_text() == after[0]
    assert abs(slider.bounding_box()["y"] - place) < 1, "the page moved"
    for _ in range(20): page.keyboard.press("ArrowLeft")
    assert shown() == ["encoder.0"] and page.evaluate("() => document.querySelector('.scrubber label').innerText").strip()
    assert not [e for e in errors if "favicon" not in e], errors


def test_dark_mode_and_search(visit):
    "The dark theme is dark, and the search finds a function."
    page, _ = visit("index", scheme="dark")
    light, _ = visit("index", scheme="light")
    tone = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b) / 3"
    assert page.evaluate(tone) < 80 < 200 < light.evaluate(tone)
    page.screenshot(path=ARTIFACTS / "site-index-dark.png")
    box = light.locator("input[type=search], #quarto-search input, input[placeholder=Search]").first
    box.fill("create_model")
    light.wait_for_function("() => [...document.querySelectorAll('a')].some(a => a.offsetHeight && a.href.includes('the-network.html'))", timeout=20000)
    light.screenshot(path=ARTIFACTS / "site-search.png")
