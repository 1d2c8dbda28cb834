"""Pages that are made from what is there already, while the site is built: used by site.py, never committed.

gallery.qmd     every described picture of the notebooks, each a link to its notebook
exercises.qmd   the exercises of all notebooks with their hidden answers
models.qmd      a card for each file of weights in the package, from its own metadata
changelog.qmd   CHANGELOG.md
"""
import base64, html, io, json, re, struct
from pathlib import Path

import nbformat

import reference

ROOT = Path(__file__).resolve().parent.parent
FRONT = "---\ntitle: {}\n---\n\n"
ALT = re.compile(r"^#\|\s*fig-alt:\s*(.+)$", re.M)
WIDTH = 360  # pixels of a picture in the gallery, at most


def chapters(nbs):
    "Section of the sidebar -> its notebooks as (path, title, notebook), in reading order."
    read = lambda name: (name, *(lambda nb: (title(nb), nb))(nbformat.read(nbs / name, 4)))
    return {section: [read(n) for n in names if (nbs / n).exists()] for section, names in reference.sections().items()}


def title(nb): return next((m[1] for c in nb.cells if (m := re.match(r"# (.+)", c.source))), "?")


def thumbnail(data):
    "A picture (bytes) made small, as bytes; as it is where Pillow is missing."
    try: from PIL import Image
    except ImportError: return data
    picture, out = Image.open(io.BytesIO(data)).convert("RGB"), io.BytesIO()
    picture.thumbnail((WIDTH, WIDTH), Image.LANCZOS)
    picture.quantize(64, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return min(out.getvalue(), data, key=len)


def gallery(nbs):
    "Every picture with a description, small, under the title of its section; a click leads to the notebook that made it."
    parts, folder, count = [], nbs / "gallery", 0
    folder.mkdir(exist_ok=True)
    for section, notebooks in chapters(nbs).items():
        cards = []
        for name, head, nb in notebooks:
            for c in nb.cells:
                alt, pictures = ALT.search(c.source), [o.data["image/png"] for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
                if not alt or not pictures: continue
                file, count = folder / f"{count:03d}.png", count + 1
                file.write_bytes(thumbnail(base64.b64decode(pictures[0])))
                said = html.escape(alt[1].strip().strip("\"'"))
                target = name.replace(".ipynb", ".html")
                cards.append(f'<a class="gallery-card" href="{target}"><img loading="lazy" src="gallery/{file.name}" alt="{said}"><span>{html.escape(head)}</span></a>')
        if cards: parts += [f"## {section}", "", "```{=html}", '<div class="gallery">', *cards, "</div>", "```", ""]
    start = f"{count} pictures, each made by a notebook that runs. A click leads to the one that made it.\n\n"
    return FRONT.format("Gallery") + start + "\n".join(parts)


def exercises(nbs):
    "The sections `Exercises` of all notebooks, answers included."
    parts, count = [], 0
    for section, notebooks in chapters(nbs).items():
        found = []
        for name, head, nb in notebooks:
            text = "\n\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
            if not (m := re.search(r"^## Exercises\n(.*?)(?=^## |^Next: |^This was the last|\Z)", text, re.M | re.S)): continue
            up = name.rsplit("/", 1)[0] + "/" if "/" in name else ""
            body = re.sub(r"\]\((?!https?:|#|/)([^)]+)\)", lambda l: f"]({_joined(up, l[1])})", m[1].strip())
            count += len(re.findall(r"^\d+\. ", body.split("<details>")[0], re.M))
            found += [f"### [{head}]({name})", "", body, ""]
        if found: parts += [f"## {section}", "", *found]
    start = f"{count} exercises from the ends of the notebooks. Try first; the answers are folded away below each set.\n\n"
    return FRONT.format("Exercises") + start + "\n".join(parts)


def _joined(up, link):
    "A link of a notebook in a folder, seen from the top."
    parts = []
    for part in (up + link).split("/"):
        if part == ".." and parts: parts.pop()
        else: parts.append(part)
    return "/".join(parts)


def metadata(path):
    "The metadata and the number of values in a safetensors file, read without the library."
    with path.open("rb") as file: head = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    told = head.pop("__metadata__", {})
    product = lambda shape: shape[0] * product(shape[1:]) if shape else 1
    return told, sum(product(t["shape"]) for t in head.values())


def facts(value, name=""):
    "Rows (name, text) of nested metadata; JSON is taken apart, the outer names are left out."
    try: value = json.loads(value) if isinstance(value, str) else value
    except ValueError: pass
    if isinstance(value, dict) and any(isinstance(v, dict) for v in value.values()) or name in ("", "cmunext_nb", "config", "metadata"):
        return [row for k, v in value.items() for row in facts(v, k)]
    if isinstance(value, dict): value = ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
    return [(name.replace("_", " "), f"`{value}`" if name == "command" else reference.text(", ".join(map(str, value)) if isinstance(value, list) else str(value)))]


def models(nbs):
    "A card for each file of weights in the package."
    parts = []
    for path in sorted((ROOT / "cmunext_nb/assets").glob("*.safetensors")):
        told, numbers = metadata(path)
        name, _, data = path.stem.rpartition("_")
        rows = [("file", f"`{path.name}`, {path.stat().st_size / 1e6:.1f} MB, {numbers:,} numbers with running statistics")]
        rows += facts(told)
        parts += [f"## {name}, trained on {data}", "", "```python", f'model = cn.create_model("{name}", pretrained="{data}")', "```", "", reference.table(rows, ("", "what the file says")), ""]
    start = ("The weights that come with the package, and what their files say about themselves. They are for learning and research, and none of them is a medical "
             "device: no person's care may depend on what they draw. Every score holds for the data, the split and the protocol that stand beside it, and for no others. "
             "A network trained on synthetic scans has seen no tissue at all.\n\n")
    return FRONT.format("Models") + start + "\n".join(parts)


def changelog(nbs):
    "CHANGELOG.md without its title."
    return FRONT.format("Changes") + re.sub(r"\A# .*\n+", "", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))


def write(nbs):
    "Write all of them into a copy of nbs/; their names and sizes."
    made = {f"{page.__name__}.qmd": page(nbs) for page in (gallery, exercises, models, changelog)}
    for name, text in made.items(): (nbs / name).write_text(text, encoding="utf-8")
    return {name: len(text) for name, text in made.items()}
