"""Keep the notebooks in order: python .ci/notebooks.py {run,check,readme} [notebook ...]

run     execute each notebook from the top in a fresh kernel and keep its small, clean outputs
check   fail on execution counts, widget state, machine paths, oversized files, pictures without a description,
        a missing way into Colab, a stale export, a stale README
readme  write README.md from nbs/index.ipynb
"""
import argparse, base64, html, io, os, re, shutil, subprocess, sys, tempfile, time
from pathlib import Path

import nbformat

import colab

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
    drawn = lambda c: any(kind.startswith("image/") or kind == "text/html" for o in c.outputs for kind in o.get("data", {}))
    blank = [c.id for c in code if re.search(r"^#\|\s*fig-(alt|cap):", c.source, re.M) and not drawn(c)]
    bad = [(any(c.execution_count is not None for c in code), "holds execution counts"),
           ("widgets" in nb.metadata or "widget-state" in text, "holds widget state"),
           (MACHINE_PATH.search(text), "names a path of one machine"),
           (errors, "keeps the output of an error"),
           (any("image/png" in o.get("data", {}) for c in code if "fig-alt:" not in c.source for o in c.outputs), "has a picture without `#| fig-alt:`"),
           (blank, f"describes a picture that is not there, cells {', '.join(blank)}: run it"),
           (path.stat().st_size > MAX_KB * 1024, f"is larger than {MAX_KB} KB")]
    return [f"{path.relative_to(ROOT)}: {what}" for wrong, what in bad if wrong] + colab.problems(path)


def stale():
    "What nbdev_export and nbdev_clean would change, tried on a copy so that a check changes nothing."
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        for name in ("nbs", "cmunext_nb"): shutil.copytree(ROOT / name, tmp / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        for name in ("settings.ini", "pyproject.toml", "setup.py", "_quarto.yml", "README.md"): shutil.copy(ROOT / name, tmp)
        for command in ("nbdev_export", "nbdev_clean"):
            subprocess.run([Path(sys.executable).parent / command], cwd=tmp, check=True, stdout=subprocess.DEVNULL)
        made = [p.relative_to(tmp) for folder in ("nbs", "cmunext_nb") for p in (tmp / folder).rglob("*") if p.suffix in (".ipynb", ".py")]
        bad = [p for p in made if not (ROOT / p).exists() or (ROOT / p).read_bytes() != (tmp / p).read_bytes()]
        kept = [p.relative_to(ROOT) for p in (ROOT / "cmunext_nb").rglob("*.py")]
        bad += [p for p in kept if "File to edit: " not in (ROOT / p).read_text(encoding="utf-8") and p.name != "_modidx.py" and (ROOT / p).stat().st_size]
    return [f"{p}: differs from what nbdev_export and nbdev_clean make: run `make export`" for p in sorted(set(bad))]


def scrubbed(o):
    "Description and pictures of a `Scrubber` in an output, or None."
    text = o.get("data", {}).get("text/html", "")
    if 'class="scrubber"' not in text: return None
    alt = re.search(r'alt="([^"]*?) [^".]*: [^"]*"', text)[1]
    return html.unescape(alt), [base64.b64decode(d) for d in re.findall(r'src="data:image/\w+;base64,([^"]+)"', text)]


def static_picture(pictures):
    "The pictures of a scrubber side by side, two in a row, as a PNG file: what stands in the README in its place."
    from PIL import Image
    images = [Image.open(io.BytesIO(p)).convert("RGB") for p in pictures]
    (w, h), rows = images[0].size, -(-len(images) // 2)
    sheet, out = Image.new("RGB", (2 * w, rows * h), "white"), io.BytesIO()
    for i, image in enumerate(images): sheet.paste(image, (i % 2 * w, i // 2 * h))
    sheet.quantize(160, method=Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def readme_text(pictures=None):
    "nbs/index.ipynb as Markdown: prose, shown code and text outputs, without hidden cells and directives. Pictures of a scrubber go into the list."
    nb, parts = nbformat.read(NBS / "index.ipynb", 4), []
    for c in nb.cells:
        if c.cell_type == "markdown": parts.append(RELATIVE.sub(r"](nbs/\1", c.source))
        if c.cell_type != "code" or re.search(r"^#\|\s*(hide|default_exp|include:\s*false)", c.source, re.M): continue
        source = "\n".join(l for l in c.source.splitlines() if not l.startswith("#|")).strip()
        if source and not re.search(r"^#\|\s*echo:\s*false", c.source, re.M): parts.append(f"```python\n{source}\n```")
        for o in c.outputs:
            if found := scrubbed(o):
                parts.append(f"![{found[0]}](nbs/images/scrubbed.png)")
                if pictures is not None: pictures.append(static_picture(found[1]))
                continue
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
    if args.command == "readme":
        readme.write_text(readme_text(pictures := []), encoding="utf-8")
        for picture in pictures: (NBS / "images/scrubbed.png").write_bytes(picture)
    if args.command == "check":
        bad = [p for path in notebooks(args.names) for p in problems(path)]
        if not readme.exists() or readme.read_text(encoding="utf-8") != readme_text(): bad.append("README.md differs from nbs/index.ipynb: run `make readme`")
        bad += stale()
        print("\n".join(bad) or "notebooks: clean, exported, and the README is theirs")
        sys.exit(bool(bad))


if __name__ == "__main__": main()
