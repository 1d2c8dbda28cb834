"""The way into Colab: python .ci/colab.py writes it into each notebook that is meant to be run there; notebooks.py check compares.

A link ends the first cell, and a cell after it installs the package in Colab and says which device was found. The cell is hidden on
the site and left out by tests (`#| eval: false`). Nothing is written where it stands already.
"""
import configparser, copy, sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
MEANT = ("index.ipynb", "howto/*.ipynb", "15_*.ipynb", "16_*.ipynb", "2[0-9]_*.ipynb", "4[0-9]_*_lab.ipynb", "5[0-9]_*.ipynb")
LABS = "4[0124]_*_lab.ipynb"  # those that open an image of the reader
CELL_ID, WORD = "c01ab001", "[Open this notebook in Colab]("
SOURCE = '''#| hide
#| eval: false
import sys
if "google.colab" in sys.modules:
    %pip install -q cmunext_nb
import torch
print("Found", torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: two CPU cores take a minute or two for this notebook")'''


def source(path):
    "The cell of a notebook; Colab has the other parts of the extra `lab` already, so a lab asks for anywidget alone."
    return SOURCE.replace("install -q cmunext_nb", "install -q cmunext_nb anywidget") if path.match(LABS) else SOURCE


def meant():
    "Paths of the notebooks that are meant to be run in Colab."
    return sorted({p for pattern in MEANT for p in (ROOT / "nbs").glob(pattern)})


def address(path):
    "Where Colab opens a notebook of the repository."
    cfg = configparser.ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    d = cfg["DEFAULT"]
    return f"https://colab.research.google.com/github/{d['user']}/{d['repo']}/blob/{d['branch']}/{path.relative_to(ROOT).as_posix()}"


def prepared(nb, path):
    "A notebook with link and cell; the same where it has both already."
    nb = copy.deepcopy(nb)
    lines = [l for l in nb.cells[0].source.split("\n") if not l.startswith(WORD)]
    nb.cells[0].source = "\n".join(lines).rstrip() + f"\n\n{WORD}{address(path)})"
    nb.cells = [c for c in nb.cells if c.get("id") != CELL_ID]
    nb.cells.insert(1, nbformat.v4.new_code_cell(source(path), id=CELL_ID))
    return nb


def problems(path):
    "A sentence where a notebook that is meant for Colab has no way into it, or an old one."
    nb = nbformat.read(path, 4)
    same = path not in meant() or [c.source for c in nb.cells[:2]] == [c.source for c in prepared(nb, path).cells[:2]]
    return [] if same else [f"{path.relative_to(ROOT)}: its way into Colab is missing or old: run `make export`"]


def main():
    for path in meant():
        if problems(path):
            nbformat.write(prepared(nbformat.read(path, 4), path), path)
            print(f"{path.relative_to(ROOT)}: link and cell written")


if __name__ == "__main__": sys.exit(main())
