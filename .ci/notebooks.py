"""Keep the notebooks in order: python .ci/notebooks.py {run,check,readme} [notebook ...]

run     execute each notebook from the top in a fresh kernel and keep its small, clean outputs
check   fail on execution counts, widget state, machine paths, oversized files, a stale README
readme  write README.md from nbs/index.ipynb
"""
import argparse, base64, io, os, re, sys, time
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|Users|mnt|tmp)/")
RELATIVE = re.compile(r"\]\((?!https?:|#)([^)]+)")  # a link or picture beside the notebooks
MAX_KB = 600


def notebooks(names):
    "The named notebooks, or all of them in reading order."
    if names: return [Path(n).resolve() for n in names]
    return sorted(p for p in NBS.rglob("*.ipynb") if not any(x.startswith((".", "_")) for x in p.relative_to(NBS).parts))


def small_png(data):
    "A base64 PNG with a palette of 256 colours: a quarter of the size, and no difference that a reader could see."
    from PIL import Image
    raw = base64.b64decode(data)
    image, out = Image.open(io.BytesIO(raw)).convert("RGB"), io.BytesIO()
    # Maximum coverage keeps rare colours (a legend's patch); median cut would merge them. k-means then smooths the greys.
    image.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    best = min(out.getvalue(), raw, key=len)
    return base64.b64encode(best).decode() + "\n"


def clean_outputs(cell):
    "Drop what differs from run to run or from machine to machine: counts, stderr, progress bars, widgets."
    cell.execution_count, cell.metadata, kept = None, {}, []
    for o in cell.outputs:
        if o.output_type == "stream" and (o.name == "stderr" or "\r" in o.text): continue
        data = o.get("data", {})
        if "application/vnd.jupyter.widget-view+json" in data: continue
        if "image/png" in data: data["image/png"] = small_png(data["image/png"])
        if "execution_count" in o: o.execution_count = None
        if "metadata" in o: o.metadata = {}
        kept.append(o)
    cell.outputs = kept


def run(paths):
    from nbclient import NotebookClient
    for path in paths:
        start, nb = time.perf_counter(), nbformat.read(path, 4)
        skipped = [c for c in nb.cells if c.cell_type == "code" and re.search(r"^#\|\s*eval:\s*false", c.source, re.M)]
        for c in skipped: c.cell_type = "raw"
        env = dict(os.environ, CMUNEXT_QUIET="1")
        NotebookClient(nb, timeout=600, coalesce_streams=True, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute(env=env)
        for c in skipped: c.cell_type = "code"
        for c in nb.cells:
            if c.cell_type == "code": clean_outputs(c)
        nb.metadata = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
        nbformat.write(nb, path)
        print(f"{path.relative_to(ROOT)}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1024:.0f} KB", flush=True)


def problems(path):
    "What is wrong with one notebook, as a list of sentences."
    nb, text = nbformat.read(path, 4), path.read_text(encoding="utf-8")
    code = [c for c in nb.cells if c.cell_type == "code"]
    errors = [o for c in code for o in c.outputs if o.output_type == "error"]
    bad = [(any(c.execution_count is not None for c in code), "holds execution counts"),
           ("widgets" in nb.metadata or "widget-state" in text, "holds widget state"),
           (MACHINE_PATH.search(text), "names a path of one machine"),
           (errors, "keeps the output of an error"),
           (path.stat().st_size > MAX_KB * 1024, f"is larger than {MAX_KB} KB")]
    return [f"{path.relative_to(ROOT)}: {what}" for wrong, what in bad if wrong]


def readme_text():
    "nbs/index.ipynb as Markdown: prose, shown code and text outputs, without hidden cells and directives."
    nb, parts = nbformat.read(NBS / "index.ipynb", 4), []
    for c in nb.cells:
        if c.cell_type == "markdown": parts.append(RELATIVE.sub(r"](nbs/\1", c.source))
        if c.cell_type != "code" or re.search(r"^#\|\s*(hide|default_exp|include:\s*false)", c.source, re.M): continue
        source = "\n".join(l for l in c.source.splitlines() if not l.startswith("#|")).strip()
        if source: parts.append(f"```python\n{source}\n```")
        for o in c.outputs:
            shown = o.get("text") or o.get("data", {}).get("text/plain", "")
            if shown and "image/png" not in o.get("data", {}): parts.append("\n".join("    " + l for l in shown.rstrip().splitlines()))
    return "<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook. -->\n\n" + "\n\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "check", "readme"])
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    if args.command == "run": run(notebooks(args.names))
    if args.command == "readme": readme.write_text(readme_text(), encoding="utf-8")
    if args.command == "check":
        bad = [p for path in notebooks(args.names) for p in problems(path)]
        if not readme.exists() or readme.read_text(encoding="utf-8") != readme_text(): bad.append("README.md differs from nbs/index.ipynb: run `make readme`")
        sys.exit("\n".join(bad) or 0)


if __name__ == "__main__": main()
