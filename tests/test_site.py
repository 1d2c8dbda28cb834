"The parts of the site that are made while it is built: .ci/reference.py, and what stands on its pages."
import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest

import cmunext_nb as cn

pytest.importorskip("nbformat")
pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parent.parent


def ci(name):
    "A script of .ci as a module."
    sys.path.insert(0, str(ROOT / ".ci"))
    try: return importlib.import_module(name)
    finally: sys.path.remove(str(ROOT / ".ci"))


reference = ci("reference")
PAGES = reference.pages()


def entries(): return {name: f"reference/{page}" for page, text in PAGES.items() for name in re.findall(r"^## \w+ \{#(\w+)\}$", text, re.M)}


def exported(package):
    "The exported names of a package's modules, read from the modules themselves."
    folder = ROOT / "cmunext_nb" / package
    return {n for p in folder.glob("*.py") for n in re.findall(r"'(\w+)'", (re.search(r"^__all__ = \[(.*?)\]", p.read_text(encoding="utf-8"), re.M | re.S) or [0, ""])[1])}


def test_no_public_name_is_missing_in_the_reference():
    wanted = {*cn._HOME, *cn.labs.LABS, *exported("labs"), *exported("zoo")}
    assert len(wanted) > 100 and not wanted - set(entries()), f"without an entry: {sorted(wanted - set(entries()))}"
    index = PAGES["index.qmd"]
    assert not [n for n in wanted if f"[`{n}`](" not in index]


@pytest.mark.parametrize("name", sorted(n for n in cn._HOME if inspect.isfunction(getattr(cn, n))))
def test_every_parameter_of_a_function_has_its_row(name):
    text = PAGES[entries()[name].split("/")[1]].split(f"{{#{name}}}")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `\**(\w+)` \|(.*)$", text, re.M)
    assert [n for n, _ in rows] == list(inspect.signature(getattr(cn, name)).parameters)
    assert all(row.rstrip(" |").split("|")[-1].strip() for _, row in rows), f"a parameter of {name} has no meaning"


def test_prose_is_linked_and_code_is_not():
    linked = reference.linked
    assert linked("Call `create_model`.") == "Call [`create_model`](reference/the-network.qmd#create_model)."
    assert linked("`cn.fit(model)` and `fit`", "../") == "[`cn.fit(model)`](../reference/learning.qmd#fit) and `fit`"
    for text in ("# `fit`", "```\n`fit`\n```", "[`fit`](15_train.ipynb)", "`unknown`", "``fit``", "`fit = 3`", "<summary>`fit`</summary>"): assert linked(text) == text, text
    assert linked("# Head\n`iou`").endswith("[`iou`](reference/learning.qmd#iou)")
