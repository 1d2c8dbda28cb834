"""JupyterLab and Chromium for the tests of this folder: one server, one browser, one page a notebook. Run by `make test-browser`."""
import os, shutil
from contextlib import contextmanager

import pytest

from harness import ARTIFACTS, FLAGS, NBS, PATIENCE, Jupyter, LabPage, finder, lab_notebooks


def pytest_configure(config):
    "The last run's screenshots go, once, before any worker starts."
    if not hasattr(config, "workerinput") and "browser" in (config.option.markexpr or "") and "not" not in config.option.markexpr: shutil.rmtree(ARTIFACTS, ignore_errors=True)

@pytest.fixture(scope="session")
def browser():
    "A headless Chromium, or a failure that says how to install one."
    module = finder()
    path = module.find()
    if path is None: pytest.fail(module.HOW, pytrace=False)
    try: from playwright.sync_api import sync_playwright
    except ImportError: pytest.fail("The Python package playwright is missing: pip install playwright (make test-browser does it).", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS, timeout=1000 * PATIENCE)  # a fresh profile, no sandbox
        try: yield browser
        finally: browser.close()


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory):
    "A running JupyterLab with a copy of the notebooks; each worker of a parallel run has its own."
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    server = Jupyter(tmp_path_factory.mktemp("jupyter"), ARTIFACTS / f"jupyter{os.environ.get('PYTEST_XDIST_WORKER', '')}.log")
    try:
        for path in [*NBS.glob("39_*.ipynb"), *lab_notebooks()]: shutil.copy(path, server.folder)
        server.wait()
        yield server
    finally: server.stop()


@pytest.fixture(scope="session")
def context(browser, jupyter):
    "One browsing context, so that JupyterLab's files are loaded once."
    context = browser.new_context(viewport=dict(width=1280, height=900), reduced_motion="reduce")
    try: yield context
    finally: context.close()


@pytest.fixture
def opened(context, jupyter):
    "opened(name): a context manager that opens, runs and finds a lab, keeps a screenshot of a failure, and ends the kernel."
    @contextmanager
    def open_lab(name):
        page = context.new_page()
        lab = LabPage(page, jupyter, name)
        try:
            lab.open()
            lab.run_all()
            yield lab.find()
        except BaseException:
            try: page.screenshot(path=ARTIFACTS / f"{name}-failed.png")
            except Exception: pass
            raise
        finally:
            try: lab.shut_down()
            except Exception: pass
            page.close()
    return open_lab
