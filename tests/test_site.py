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


def site_of(tmp_path, **pages):
    "A folder with a few pages of HTML."
    for name, body in pages.items(): (tmp_path / f"{name}.html").write_text(f"<html><body>{body}</body></html>", encoding="utf-8")
    return tmp_path


def test_the_check_of_links_finds_what_is_wrong(tmp_path):
    links = ci("links")
    good = site_of(tmp_path, index='<h1 id="top">A</h1><a href="other.html#there">b</a><a href="#top">c</a><a href="https://example.org">d</a>',
                   other='<p id="there"><img alt="dot" src="data:image/png;base64,AA"></p>')
    bad, count, _ = links.check(good)
    assert not bad and count["links"] == 2 and count["anchors"] == 2 and count["outside"] == 1
    for body, word in (('<a href="gone.html">', "not there"), ('<a href="other.html#gone">', "anchor"), ('<a href="#gone">', "anchor"), ('<img src="other.html">', "without a description"),
                       ('<img alt="x" src="gone.png">', "not there"), ("x" * (links.MAX_PAGE + 1), "bytes")):
        (bad,), *_ = links.check(site_of(tmp_path, index=body))
        assert word in bad, bad


def test_made_pages():
    pages, nbs = ci("pages"), ROOT / "nbs"
    models, exercises = pages.models(nbs), pages.exercises(nbs)
    for path in (ROOT / "cmunext_nb/assets").glob("*.safetensors"): assert path.name in models
    assert 'cn.create_model("cmunext_s", pretrained="phantom")' in models and "0.9117" in models and "not a medical" in models.replace("none of them is a medical", "not a medical")
    with_exercises = [p for p in nbs.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts and '"## Exercises' in p.read_text(encoding="utf-8")]
    assert len(with_exercises) > 30 and all(f"]({p.relative_to(nbs).as_posix()})" in exercises for p in with_exercises)
    assert exercises.count("<details>") == exercises.count("</details>") >= len(with_exercises)
    assert pages.changelog(nbs).count("\n## ") == (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").count("\n## ")


def test_notebooks_for_colab_have_their_way_in():
    import nbformat
    colab = ci("colab")
    assert len(colab.meant()) >= 50 and not [p for path in colab.meant() for p in colab.problems(path)]
    path = ROOT / "nbs/24_measure.ipynb"
    nb = nbformat.read(path, 4)
    once = colab.prepared(nb, path)
    assert colab.prepared(once, path) == once and len(once.cells) == len(nb.cells), "writing twice is writing once"
    assert "%pip install -q cmunext_nb" in once.cells[1].source and "#| eval: false" in once.cells[1].source and "google.colab" in once.cells[1].source


def test_the_readme_has_a_picture_in_place_of_the_slider():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "](nbs/images/scrubbed.png)" in readme and (ROOT / "nbs/images/scrubbed.png").stat().st_size < 300_000
    assert "<input" not in readme and "data:image" not in readme


def test_the_cell_for_colab_installs_and_fetches_what_its_notebook_needs(tmp_path):
    nbformat, colab = pytest.importorskip("nbformat"), ci("colab")
    cells = {colab.name_of(p): colab.cell(nbformat.read(p, 4), p) for p in colab.meant()}
    assert '"cmunext_nb[explain]"' in cells["21_gradcam.ipynb"] and '"cmunext_nb[explain]"' in cells["42_gradcam_lab.ipynb"]
    assert '"nbs/results/busi_split1_s.json"' in cells["15_train.ipynb"] and '"benchmarks/zoo_overfit.json"' in cells["zoo/kit.ipynb"] and cells["20_receptive_field.ipynb"].count(".safetensors") == 3
    assert "[" not in re.search("%pip install -q (.*)", cells["index.ipynb"])[1] and "urllib" not in cells["index.ipynb"]


def test_how_long_a_notebook_takes_is_measured_and_does_not_waver():
    colab, rounded = ci("colab"), ci("colab_like").rounded
    told = colab.times()
    assert set(told["seconds"]) == {colab.name_of(p) for p in colab.meant()} and "core" in told["machine"], "run `python .ci/colab_like.py --record` and `make export`"
    assert [rounded(s) for s in (4, 9, 24, 25, 59, 200, 5000)] == [10, 30, 30, 60, 120, 300, 3600]
    assert rounded(59, 60) == 60 and rounded(61, 60) == 120 and rounded(29, 120) == 60 and rounded(3, 10) == 10, "what is recorded stays while it is near"
    assert [colab.in_words(s) for s in (30, 60, 180)] == ["30 seconds", "a minute", "3 minutes"]
