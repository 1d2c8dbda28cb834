"What holds for the project as a whole: which way imports point, which names are public, what the site lists."
import ast
import configparser
import re
from pathlib import Path

import pytest

import cmunext_nb as cn

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cmunext_nb"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "_modidx.py" and "File to edit: " in p.read_text(encoding="utf-8"))


def notebook_of(path):
    "The notebook that a module is exported from, by the line that nbdev writes."
    return re.search(r"File to edit: (?:\.\./)+nbs/(\S+?)\.ipynb", path.read_text(encoding="utf-8")).group(1)


def module_of(path):
    "`labs.block` for cmunext_nb/labs/block.py, `labs` for cmunext_nb/labs/__init__.py."
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imported(path, node):
    "The module of ours that a `from` line imports from, or None."
    if not (isinstance(node, ast.ImportFrom) and node.level): return None
    folder = path.parent
    for _ in range(node.level - 1): folder = folder.parent
    return module_of(folder / (node.module or "__init__").replace(".", "/"))


NUMBER = {module_of(p): notebook_of(p) for p in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_imports_come_from_lower_numbers(path):
    "Only imports at the top of a module count: `create_model(pretrained=...)` may ask for weights when it is called."
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        name = imported(path, node)
        if name in (None, "plot"): continue  # the drawing kit imports nothing of ours
        if name.startswith("zoo.") and module_of(path).startswith("zoo."): continue  # the zoo has no numbers; its networks share parts
        assert NUMBER[name] < NUMBER[module_of(path)], f"{NUMBER[module_of(path)]} imports from {NUMBER[name]}"


def test_the_drawing_kit_imports_nothing_of_ours():
    tree = ast.walk(ast.parse((ROOT / "cmunext_nb/plot.py").read_text(encoding="utf-8")))
    assert not [n.module for n in tree if isinstance(n, ast.ImportFrom) and (n.level or (n.module or "").startswith("cmunext_nb"))]


@pytest.mark.parametrize("name", sorted(cn._HOME))
def test_public_names_are_documented(name):
    assert (getattr(cn, name).__doc__ or "").strip(), f"cn.{name} has no docstring"


def test_the_contract_of_names():
    for name in ("create_model list_models load_upstream make_phantom load_dataset BCEDiceLoss segmentation_counts iou f1 hd95 fit predict "
                 "SegmentationData data_report").split(): assert callable(getattr(cn, name)), name


def test_the_site_lists_every_notebook():
    listed = set(re.findall(r"[\w/]+\.ipynb", (ROOT / "_quarto.yml").read_text(encoding="utf-8")))
    there = {p.relative_to(ROOT / "nbs").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    assert there == listed, f"not in _quarto.yml: {there - listed}; not there: {listed - there}"


def test_versions_agree():
    cfg = configparser.ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    version = cfg["DEFAULT"]["version"]
    assert cn.__version__ == version
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
