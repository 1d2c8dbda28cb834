"""The way into Colab: python .ci/colab.py writes it into each notebook but a few; notebooks.py check compares.

A link ends the first cell, and a cell after it installs the package in Colab, fetches the files of the repository that the notebook
reads, and says which device was found and how long the notebook takes. The cell is hidden on the site and left out by tests
(`#| eval: false`). Nothing is written where it stands already. The times are measured, by `.ci/colab_like.py --record`.
"""
import configparser, copy, json, re, sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
MEANT = ("*.ipynb", "howto/*.ipynb", "zoo/*.ipynb")
INSIDE = ("17_*.ipynb", "38_*.ipynb", "39_*.ipynb", "48_*.ipynb")  # the package's own joints: nothing to see or to try there
LABS = "4[0124]_*_lab.ipynb"  # those that open an image of the reader: for its picture they need anywidget
CELL_ID, WORD = "c01ab001", "[Open this notebook in Colab]("
TIMES = ROOT / ".ci/colab_times.json"
EXTRAS = {"pytorch_grad_cam": "explain", "torchinfo": "explain", "onnx": "deploy", "onnxscript": "deploy", "onnxruntime": "deploy", "openvino": "deploy", "nncf": "deploy",
          "timm": "zoo"}  # which Colab lacks, or may
ASKED = {"42_gradcam_lab.ipynb": ["explain"], "52_paper.ipynb": ["zoo"]}  # the extra is asked for by the package; colab_like.py finds where one is forgotten
SOURCE = '''#| hide
#| eval: false
import sys
if "google.colab" in sys.modules:
    %pip install -q {package}{fetch}
import torch
print("Found", f"{{torch.cuda.get_device_name()}}. {gpu}" if torch.cuda.is_available() else "no GPU. {cpu}")'''
FETCH = '''
    import os, urllib.request  # this notebook reads files of the repository
    for name in {names}:
        place = os.path.relpath(name, "{folder}")
        os.makedirs(os.path.dirname(place), exist_ok=True)
        urllib.request.urlretrieve("{raw}" + name, place)'''


def meant():
    "Paths of the notebooks that are meant to be run in Colab."
    return sorted({p for pattern in MEANT for p in (ROOT / "nbs").glob(pattern) if not any(p.match(inside) for inside in INSIDE)})


def repository():
    "Owner and name, and the branch, as GitHub has them."
    cfg = configparser.ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    d = cfg["DEFAULT"]
    return f"{d['user']}/{d['repo']}", d["branch"]


def name_of(path): return path.relative_to(ROOT / "nbs").as_posix()


def address(path):
    "Where Colab opens a notebook of the repository."
    name, branch = repository()
    return f"https://colab.research.google.com/github/{name}/blob/{branch}/nbs/{name_of(path)}"


def raw():
    "Where a file of the repository is fetched from; its name follows."
    name, branch = repository()
    return f"https://raw.githubusercontent.com/{name}/{branch}/"


def times():
    "What was measured, and where: {'machine': words, 'seconds': {notebook: seconds, rounded up}}."
    return json.loads(TIMES.read_text(encoding="utf-8")) if TIMES.exists() else dict(machine="", seconds={})


def needs(nb, path):
    "The extra to install and the files of the repository that its code reads."
    code = "\n".join(c.source for c in nb.cells if c.cell_type == "code" and c.get("id") != CELL_ID)
    extras = sorted({e for package, e in EXTRAS.items() if re.search(rf"^\s*(try: )?(import|from) {package}\b", code, re.M)} | {*ASKED.get(name_of(path), [])})
    patterns = sorted(set(re.findall(r"""["'](?:\.\./)*((?:results|benchmarks)/[^"'\n]+?\.\w+)["']""", code)))
    places = ["nbs/" * p.startswith("results/") + re.sub(r"\{.*?\}", "*", p) for p in patterns]
    files = [f.relative_to(ROOT).as_posix() for p in places for f in sorted(ROOT.glob(p))]
    return extras, files


def in_words(seconds): return f"{seconds} seconds" if seconds < 60 else "a minute" if seconds == 60 else f"{seconds // 60} minutes"


def cell(nb, path):
    "The source of the cell for Colab."
    measured, (extras, files) = times(), needs(nb, path)
    seconds = measured["seconds"].get(name_of(path))
    takes = "How long this notebook takes was not measured" if seconds is None else f"This notebook takes up to {in_words(seconds)} on {measured['machine']}"
    package = (f'"cmunext_nb[{",".join(extras)}]"' if extras else "cmunext_nb") + (" anywidget" if path.match(LABS) else "")  # the rest of the extra `lab` is there
    return SOURCE.format(package=package, fetch=FETCH.format(names=json.dumps(files), folder=path.parent.relative_to(ROOT).as_posix(), raw=raw()) if files else "",
                         cpu=f"{takes}.", gpu=f"{takes}; on a GPU it was not timed.")


def prepared(nb, path):
    "A notebook with link and cell; the same where it has both already."
    nb = copy.deepcopy(nb)
    lines = [l for l in nb.cells[0].source.split("\n") if not l.startswith(WORD)]
    nb.cells[0].source = "\n".join(lines).rstrip() + f"\n\n{WORD}{address(path)})"
    nb.cells = [c for c in nb.cells if c.get("id") != CELL_ID]
    nb.cells.insert(1, nbformat.v4.new_code_cell(cell(nb, path), id=CELL_ID))
    return nb


def problems(path):
    "A sentence where a notebook that is meant for Colab has no way into it, or an old one, or no measured time."
    if path not in meant(): return []
    nb, bad, name = nbformat.read(path, 4), [], path.relative_to(ROOT)
    if [c.source for c in nb.cells[:2]] != [c.source for c in prepared(nb, path).cells[:2]]: bad.append(f"{name}: its way into Colab is missing or old: run `make export`")
    if name_of(path) not in times()["seconds"]:
        bad.append(f"{name}: how long it takes is not in {TIMES.relative_to(ROOT)}: run `python .ci/colab_like.py --record {name}`, then `make export`")
    return bad


def main():
    gone = sorted(set(times()["seconds"]) - {name_of(p) for p in meant()})
    if gone: sys.exit(f"{TIMES.relative_to(ROOT)} names notebooks that are not meant for Colab: {', '.join(gone)}")
    for path in meant():
        nb = nbformat.read(path, 4)
        new = prepared(nb, path)
        if [c.source for c in nb.cells[:2]] == [c.source for c in new.cells[:2]]: continue
        nbformat.write(new, path)
        print(f"{path.relative_to(ROOT)}: link and cell written")


if __name__ == "__main__": sys.exit(main())
