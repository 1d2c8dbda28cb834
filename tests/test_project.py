"What holds for the project as a whole: which way imports point, which names are public, what the site lists."
import ast
import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

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


def sidebar():
    "Section of the site's sidebar -> its notebooks, in the order in which the site's own arrows lead through them."
    yaml = pytest.importorskip("yaml")
    sections = [s for s in yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"] if isinstance(s, dict) and isinstance(s.get("contents"), list)]
    return {s["section"]: [n for n in s["contents"] if isinstance(n, str) and n.endswith(".ipynb")] for s in sections}


def links_of(name):
    "Where the links of a notebook lead that stand after `Next: ` in its prose, seen from nbs/."
    prose = ["".join(c["source"]) for c in json.loads((ROOT / "nbs" / name).read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown"]
    found = re.findall(r"^Next: \[.*?\]\(([^)]+)\)", "\n".join(prose), re.M)
    parts = [(PurePosixPath(name).parent / f).as_posix() for f in found]
    return [re.sub(r"[^/]+/\.\./", "", part) for part in parts]


def test_next_leads_where_the_arrows_of_the_site_lead():
    "The notebooks behind the pages lie off this way, and lead back to it."
    way = [n for section, names in sidebar().items() if section != "Behind the pages" for n in names]
    wrong = {name: links_of(name) for name, after in zip(way, way[1:]) if links_of(name) != [after]}
    assert not wrong, f"these end in another `Next: ` than the sidebar's order gives: {wrong}"
    assert all(links_of(name) for name in sidebar()["Behind the pages"])


def test_every_notebook_is_on_the_map():
    text = (ROOT / "nbs/index.ipynb").read_text(encoding="utf-8")
    assert not [n for names in sidebar().values() for n in names if f"]({n})" not in text]


# What Quarto's schema leaves open or its checker does not look into. Names from quarto-cli, src/resources/schema: definitions.yml
# (base-website: navbar, sidebar; sidebar-contents; navigation-item-object), and `tools` of the navbar from the documentation alone.
NAVBAR = set("title logo logo-alt logo-href background foreground search pinned collapse collapse-below left right toggle-position tools tools-collapse".split())
SIDEBAR = set("id title logo logo-alt logo-href search tools contents style background foreground border alignment collapse-level pinned header footer".split())
ITEM = set("aria-label href icon menu text rel target".split())
THEMES = set("cerulean cosmo cyborg darkly flatly journal litera lumen lux materia minty morph pulse quartz sandstone simplex sketchy slate solar spacelab superhero united vapor yeti zephyr".split())


def panache():
    "Path of the linter that holds Quarto's own schema."
    path = shutil.which("panache", path=str(Path(sys.executable).parent)) or shutil.which("panache")
    return path or pytest.fail("panache, which holds Quarto's schema, is missing: pip install panache-cli (make test does it)", pytrace=False)


def said_of(folder, text):
    "What Quarto's schema has against a text of _quarto.yml: a list of lines. The options of `format: html` are looked at as the head of a page."
    yaml = pytest.importorskip("yaml")
    folder.mkdir(exist_ok=True)
    (folder / "_quarto.yml").write_text(text, encoding="utf-8")
    formats = (yaml.safe_load(text).get("format") or {})
    for name, options in formats.items(): (folder / f"{name}.qmd").write_text("---\n" + yaml.safe_dump(options) + "---\n\nText.\n", encoding="utf-8")
    done = subprocess.run([panache(), "lint", "--message-format", "short", "--extend-select", "quarto-schema-unknown-key", "_quarto.yml",
                           *(f"{name}.qmd" for name in formats)], cwd=folder, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in (done.stdout + done.stderr).splitlines() if "warning" in line or "error" in line]


def open_places(config):
    "Keys and themes that are not Quarto's, where its schema would say nothing."
    site, bad = config["website"], []
    bad += set(site["navbar"]) - NAVBAR
    bad += set(site["sidebar"]) - SIDEBAR
    for item in [*site["navbar"].get("left", []), *site["navbar"].get("tools", [])]: bad += set(item) - ITEM
    for item in site["sidebar"]["contents"]:
        if isinstance(item, dict): bad += set(item) - ({"section", "contents", "href"} if "section" in item else ITEM)
    for theme in config["format"]["html"]["theme"].values(): bad += {theme} - THEMES
    return bad


def test_the_sites_configuration_is_valid(tmp_path):
    "Against the schema that Quarto checks its own projects with, as a linter of its documents brings it."
    yaml, text = pytest.importorskip("yaml"), (ROOT / "_quarto.yml").read_text(encoding="utf-8")
    assert not said_of(tmp_path / "ours", text)
    assert not open_places(yaml.safe_load(text))
    for right, wrong in (("toc-depth: 3", "toc-deepth: 3"), ("toc-depth: 3", "toc-depth: three"), ("search: true", "serch: true"), ("output-dir", "output-dirr"), ("[issue]", "[isue]"),
                         ("href: 08_files", "hrf: 08_files"), ("{light: cosmo", "{ligt: cosmo"), ("code-copy: true", "code-copy: 7"), ("website:", "websit:"), ("page-navigation: true", "page-navigation: 3")):
        assert right in text and said_of(tmp_path / "wrong", text.replace(right, wrong, 1)), f"{wrong} is not noticed"
    for right, wrong in (("    tools:", "    toolz:"), ("section: Data", "sectoin: Data"), ("dark: darkly", "dark: darkley"), ("style: floating", "stile: floating")):
        assert right in text and open_places(yaml.safe_load(text.replace(right, wrong, 1))), f"{wrong} is not noticed"


def test_versions_agree():
    cfg = configparser.ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    version = cfg["DEFAULT"]["version"]
    assert cn.__version__ == version
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name, smallest", [("cost", "--models cmunext_s --size 32 --rounds 1 --repeats 2"), ("training_lab", "--size 32 --images 8 --epochs 1 --rounds 1")])
@pytest.mark.once
def test_a_benchmark_says_what_its_figures_depend_on(tmp_path, name, smallest):
    "What is printed is JSON and nothing else, the same as in the file, with the machine and its load beside the figures."
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", *smallest.split(), "--threads", "1", "--out", tmp_path / "out.json"]
    printed = json.loads(subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout)
    assert printed == json.loads((tmp_path / "out.json").read_text()) and {"cpu", "cores", "threads", "load", "torch", "python", "system"} <= set(printed["machine"])
    assert printed["machine"]["threads"] == 1
