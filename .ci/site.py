"""Build the site from the notebooks and the one _quarto.yml: python .ci/site.py [--out _docs] [--tool smalldocs|quarto]

Both tools get the same copy of nbs/, in which `#| hide` cells and export marks are left out. Without --out the site is built
into a temporary folder and checked: every page is there, no link or anchor is broken, every picture has a description, no page is too
heavy. The reference, gallery, exercises, models and changes are made here. The published build uses Quarto. The
network and the scans of the browser demo are made here too, which needs the package with its extra `deploy`; a check does without.
"""
import argparse, importlib.util, re, shutil, subprocess, sys, tempfile
from pathlib import Path

import nbformat

import links, pages, reference

ROOT = Path(__file__).resolve().parent.parent
HIDDEN = re.compile(r"^#\|\s*(hide|default_exp)\b", re.M)
MARK = re.compile(r"^#\|\s*(export|exports)\b.*\n?", re.M)


def for_readers(path):
    "Leave out of a notebook what is for the machine."
    nb = nbformat.read(path, 4)
    nb.cells = [c for c in nb.cells if not (c.cell_type == "code" and HIDDEN.search(c.source))]
    for c in nb.cells: c.source = MARK.sub("", c.source) if c.cell_type == "code" else c.source
    nbformat.write(nb, path)


def copied(folder):
    "A copy of nbs/ in `folder`, so that building leaves nothing in the checkout."
    assert (ROOT / "nbs/_quarto.yml").resolve() == ROOT / "_quarto.yml", "nbs/_quarto.yml must be a link to the top-level _quarto.yml"
    shutil.copytree(ROOT / "nbs", folder / "nbs", symlinks=False, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "_docs", ".quarto"))
    for path in (folder / "nbs").rglob("*.ipynb"): for_readers(path)
    return folder / "nbs"


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, text=True, capture_output=True)
    print(f"{' '.join(command)}:", (done.stdout + done.stderr).strip()[-3000:])
    if done.returncode: sys.exit(f"{' '.join(command)} failed")


def demo(folder, needed):
    "The files that the browser demo needs beside its page."
    absent = [p for p in ("torch", "onnx", "onnxscript") if importlib.util.find_spec(p) is None]
    if not absent: return run(sys.executable, str(ROOT / ".ci/demo.py"), ".", cwd=folder)
    why = f"the browser demo's network cannot be made without {', '.join(absent)}: pip install \".[deploy]\""
    if needed: sys.exit(why)
    print(f"site: {why}; it is left out of this check")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="folder to put the site into; without it the site is only checked")
    parser.add_argument("--tool", choices=["smalldocs", "quarto"], default="quarto" if shutil.which("quarto") else "smalldocs")
    args = parser.parse_args()
    tool = str(Path(sys.executable).parent / "smalldocs") if args.tool == "smalldocs" else "quarto"
    with tempfile.TemporaryDirectory() as tmp:
        nbs = copied(Path(tmp))
        demo(nbs / "demo", needed=bool(args.out))
        print("pages:", ", ".join(pages.write(nbs)))
        print(f"reference: {len(reference.public())} public names, {reference.write(nbs)} links to them from the notebooks")
        run(tool, "render", ".", cwd=nbs)
        if args.tool == "smalldocs": run(tool, "check", ".", cwd=nbs)
        missing = [p for p in nbs.rglob("*.ipynb") if not (Path(tmp) / "_docs" / p.relative_to(nbs).with_suffix(".html")).exists()]
        bad = [f"no page was made of {p.name}" for p in missing] + links.main(Path(tmp) / "_docs")
        bad += [f"the site lacks demo/{p.name}" for p in (nbs / "demo").iterdir() if not (Path(tmp) / "_docs/demo" / p.name).is_file()]
        if args.out:
            shutil.rmtree(args.out, ignore_errors=True)
            shutil.copytree(Path(tmp) / "_docs", args.out)
        if bad: sys.exit(f"site: {len(bad)} problems, see above")
        print("site: nothing is broken" + (f"; it lies in {args.out}" if args.out else ""))


if __name__ == "__main__": main()
