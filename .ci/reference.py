"""Pages of the API reference, and links to them from the notebooks' prose: used by site.py, never committed.

Modules are read, not imported, so that the site can be built where not even PyTorch is installed. A page belongs to a section of the
sidebar, and lists what that section's notebooks export: public names with parameters and meaning, other names with one line.
"""
import ast, io, re, tokenize
from functools import lru_cache
from pathlib import Path

import nbformat, yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cmunext_nb"
CELL = re.compile(r"^# %% (?:\.\./)+nbs/(\S+\.ipynb) #(\w+)$")
CODE = re.compile(r"(?<![`\w\[])`(?:cn\.|cmunext_nb\.)?(?:labs\.|zoo\.)?([A-Za-z_]\w*)(\([^`\n]*\))?`(?!`)")  # one backticked name, or a call of it


class Module:
    "A module of the package: its tree, its comments, and the notebook cell that each line comes from."
    def __init__(self, path):
        self.path, text = path, path.read_text(encoding="utf-8")
        self.name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        self.tree, self.lines = ast.parse(text), text.splitlines()
        self.comments = {t.start[0]: t.string.lstrip("# ").strip() for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT}
        self.cells = [(n, *m.groups()) for n, line in enumerate(self.lines, 1) if (m := CELL.match(line))]
        self.notebook = self.cells[0][1] if self.cells else None
        self.nodes, self.methods = {}, {}
        for node in self.tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)): self.nodes[node.name] = node
            if isinstance(node, ast.Assign): self._assigned(node)
        self.all = ast.literal_eval(self.nodes["__all__"].value) if "__all__" in self.nodes and self.name != "__init__" else []

    def _assigned(self, node):
        "Constants, and functions that become methods of a class further down."
        for target in node.targets:
            many = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            for t, v in zip(target.elts, node.value.elts) if many else [(target, node.value)]:
                if isinstance(t, ast.Name): self.nodes[t.id] = node
                if isinstance(t, ast.Attribute) and isinstance(t.value, ast.Name) and isinstance(v, ast.Name): self.methods.setdefault(t.value.id, {})[t.attr] = v.id

    def cell(self, node):
        "Notebook and cell that define a node."
        return next(((nb, cell) for n, nb, cell in reversed(self.cells) if n <= node.lineno), (self.notebook, None))


@lru_cache
def modules():
    "Every exported module, by name."
    found = [Module(p) for p in sorted(PACKAGE.rglob("*.py")) if p.name != "_modidx.py" and p.stat().st_size]
    return {m.name: m for m in found if m.notebook}


@lru_cache
def public():
    "Public name -> module: the table of notebook 17, the labs, and what the zoo exports."
    table = ast.literal_eval(modules()["__init__"].nodes["PUBLIC"].value)
    home = {name: module for module, names in table.items() for name in names}
    labs = modules()["labs"].nodes["LABS"]
    home |= {k.arg: f"labs.{k.value.value}" for k in labs.value.keywords}
    for m in modules().values():
        if m.name.split(".")[0] in ("labs", "zoo"): home |= {name: m.name for name in m.all if name not in home}
    defines = lambda name, module: name in modules()[module].nodes
    return {name: m if defines(name, m) else next(o for o in modules() if defines(name, o)) for name, m in home.items()}  # some are passed on


def sections():
    "Sidebar section -> its notebooks, from _quarto.yml."
    contents = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    return {c["section"]: [n for n in c["contents"] if isinstance(n, str) and n.endswith(".ipynb")] for c in contents if isinstance(c, dict) and isinstance(c.get("contents"), list)}


def slug(text): return re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", text.lower()).strip())


@lru_cache
def page_of(notebook):
    "File name of the reference page on which a notebook's names stand."
    return next((slug(title) for title, notebooks in sections().items() if notebook in notebooks), "behind-the-pages") + ".qmd"


@lru_cache
def headings(notebook):
    "Cell id -> anchor of the last heading above it; only headings without code or mathematics, which every tool turns into the same anchor."
    nb, last, found, seen = nbformat.read(ROOT / "nbs" / notebook, 4), "", {}, set()
    for c in nb.cells:
        for line in re.sub(r"```.*?```", "", c.source, flags=re.S).splitlines() if c.cell_type == "markdown" else ():
            if m := re.match(r"#{2,4} (.+)", line):
                plain = re.fullmatch(r"[A-Za-z][A-Za-z ]*", m[1])
                last = f"#{slug(m[1])}" if plain and slug(m[1]) not in seen else ""
                seen.add(slug(m[1]))
        found[c.id] = last
    return found


def text(value):
    "Plain text as one cell of a Markdown table: nothing in it is markup but `code`."
    parts = re.split(r"(`[^`]*`)", " ".join(value.split()))
    return "".join(p.replace("|", "\\|") if p.startswith("`") else re.sub(r"([*_\[\]<>$|@~^\\])", r"\\\1", p) for p in parts)


def code(value): return f"`{value}`".replace("|", "\\|") if value else ""


def source(node): return ast.unparse(node) if node is not None else ""


def parameters(module, function):
    "Rows (name, type, default, meaning) of a function, and the same for what it returns."
    a = function.args
    plain = [*a.posonlyargs, *a.args]
    defaults = dict(zip([x.arg for x in reversed(plain)], reversed(a.defaults))) | {x.arg: d for x, d in zip(a.kwonlyargs, a.kw_defaults) if d is not None}
    rows, last = [], function.lineno
    listed = [("", x) for x in plain] + [("*", a.vararg)] * bool(a.vararg) + [("", x) for x in a.kwonlyargs] + [("**", a.kwarg)] * bool(a.kwarg)
    shared = {}
    for _, x in listed: shared.setdefault((defaults.get(x.arg) or x).end_lineno, []).append(x.arg)
    for stars, x in listed:
        line = (defaults.get(x.arg) or x).end_lineno
        last = max(last, line)
        if x.arg in ("self", "cls"): continue
        meaning = module.comments.get(line, "") if len([n for n in shared[line] if n not in ("self", "cls")]) == 1 or line != function.lineno else ""
        rows.append((stars + x.arg, source(x.annotation), source(defaults.get(x.arg)), meaning))
    below = [module.comments[n] for n in range(last + 1, function.body[0].lineno) if n in module.comments]
    return rows, (source(function.returns), below[0] if below else "")


def find_class(name):
    "Module and node of a class of ours."
    return next(((m, m.nodes[name]) for m in modules().values() if isinstance(m.nodes.get(name), ast.ClassDef)), (None, None))


def constructor(module, node):
    "Rows of a class: of `__init__`, else its fields, else those of the class that it inherits from."
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None: return parameters(module, init)[0]
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    if fields: return [(n.target.id, source(n.annotation), source(n.value), module.comments.get(n.end_lineno, "")) for n in fields]
    for base in node.bases:
        home, found = find_class(source(base).split(".")[-1])
        if found is not None: return constructor(home, found)
    return []


def methods(module, node):
    "Public methods as (name, first line of the docstring): those of the body, and those given to the class later."
    own = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")}
    own |= {name: module.nodes[f] for name, f in module.methods.get(node.name, {}).items() if not name.startswith("_") and f in module.nodes}
    for n in node.body:  # `look, fields = _look, _fields` in the class's body
        if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Tuple) and isinstance(n.value, ast.Tuple):
            own |= {t.id: module.nodes[v.id] for t, v in zip(n.targets[0].elts, n.value.elts)
                    if isinstance(t, ast.Name) and isinstance(v, ast.Name) and not t.id.startswith("_") and isinstance(module.nodes.get(v.id), ast.FunctionDef)}
    shown = [(name, n) for name, n in own.items() if isinstance(n, ast.FunctionDef) and name not in ("forward", "draw", "words") and ast.get_docstring(n)]
    return [(name, any(source(d) == "property" for d in n.decorator_list), parameters(module, n)[0], ast.get_docstring(n)) for name, n in shown]


def about(module, node):
    "What a name means: its docstring, or the comment beside a constant."
    return (module.comments.get(node.end_lineno) if isinstance(node, ast.Assign) else ast.get_docstring(node)) or "A constant."


def call(name, rows):
    "The signature as code, on one line where it fits."
    args = [n + (f": {t}" if t else "") + (f" = {d}" if d and t else f"={d}" if d else "") for n, t, d, _ in rows]
    short = f"{name}({', '.join(args)})"
    return short if len(short) <= 76 else f"{name}(\n" + "".join(f"    {a},\n" for a in args) + ")"


def table(rows, head):
    "A Markdown table; columns without entries are left out."
    keep = [i for i in range(len(head)) if any(r[i] for r in rows)]
    lines = [[head[i] for i in keep], ["---"] * len(keep), *([r[i] for i in keep] for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def where(module, node):
    "Link to the place in the notebook that defines a node."
    notebook, cell = module.cell(node)
    return f"../{notebook}{headings(notebook).get(cell, '')}"


def entry(name, module):
    "One public name: signature, sentence, parameters, result, methods."
    node = module.nodes[name]
    top, lab = module.name.split(".")[0], any(k.arg == name for k in modules()["labs"].nodes["LABS"].value.keywords)
    address = f"cn.labs.{name}" if lab or module.name == "labs" else name if top in ("labs", "zoo") else f"cn.{name}"
    parts = [f"## {name} {{#{name}}}", ""]
    if isinstance(node, ast.Assign): signature, rows = "\n".join(module.lines[node.lineno - 1:min(node.end_lineno, node.lineno + 11)]), []
    else:
        rows, result = (constructor(module, node), ("", "")) if isinstance(node, ast.ClassDef) else parameters(module, node)
        signature = call(address, rows)
    sentence = about(module, node)
    parts += [text(sentence), "", "```python", signature, "```", ""]
    if any(r[3] for r in rows): parts += [table([(code(n), code(t), code(d), text(m)) for n, t, d, m in rows], ("parameter", "type", "default", "meaning")), ""]
    if not isinstance(node, (ast.Assign, ast.ClassDef)) and any(result): parts += ["Returns " + ", ".join(filter(None, (code(result[0]), text(result[1])))) + ".", ""]
    if isinstance(node, ast.ClassDef) and (own := methods(module, node)):
        rows = [(code(n if is_property else f"{n}({', '.join(a[0] for a in args)})"), text(doc)) for n, is_property, args, doc in own]
        parts += [table(rows, ("method", "meaning")), ""]
    notebook = module.cell(node)[0]
    parts += [f"Defined in [{Path(notebook).stem}]({where(module, node)}), module `cmunext_nb.{module.name}`.".replace(".__init__`", "`"), ""]
    return parts


def others(module):
    "Names that a module exports and that are not public: one line each."
    names = [n for n in module.all if public().get(n) != module.name and n in module.nodes]
    rows = [(f"[`{n}`]({where(module, module.nodes[n])})", text(about(module, module.nodes[n]))) for n in names]
    return [f"### Also in `cmunext_nb.{module.name}`", "", table(rows, ("name", "meaning")), ""] if rows else []


def pages():
    "File name -> text of every page of the reference."
    homes, made, index = public(), {}, []
    front = "---\ntitle: {}\norder: {}\n---\n\n"
    for i, (title, notebooks) in enumerate([*sections().items()], 2):
        body, rows = [], []
        for m in sorted((m for m in modules().values() if page_of(m.notebook) == slug(title) + ".qmd"), key=lambda m: notebooks.index(m.notebook)):
            names = [n for n, home in homes.items() if home == m.name]
            for n in names:
                body += entry(n, m)
                node = m.nodes[n]
                rows.append((f"[`{n}`]({slug(title)}.qmd#{n})", text(about(m, node)), f"[{Path(m.cell(node)[0]).stem}]({where(m, node)})"))
            body += others(m)
        if not body: continue
        made[slug(title) + ".qmd"] = front.format(f'"Reference: {title}"', i) + "\n".join(body)
        if rows: index += [f"## {title}", "", table(rows, ("name", "meaning", "notebook")), ""]
    start = ("Every public name, made from the docstrings and the comments beside the parameters. `import cmunext_nb as cn` brings those that are "
             "written as `cn.name` here; networks of the zoo come from `cn.create_model`, and their parts from `cmunext_nb.zoo`.\n\n")
    made["index.qmd"] = front.format("Reference", 1) + start + "\n".join(index)
    return made


@lru_cache
def targets():
    "Public name -> page and anchor, without names so common that prose uses them for other things."
    common = {"png", "slider", "choice", "switch", "button", "upload", "shift", "relative", "resized", "mirrored", "Down", "Node", "Lab", "Panel", "PUBLIC"}
    return {n: f"reference/{page_of(modules()[home].notebook)}#{n}" for n, home in public().items() if n not in common}


def linked(markdown, up=""):
    "Prose in which the first mention of each public name is a link; headings, links and code blocks are left alone."
    seen, parts = set(), re.split(r"(```.*?```|^#{1,6} [^\n]*$|\[(?:[^\[\]]|\[[^\]]*\])*\]\([^)]*\)|^<[^\n]*$|\$\$.*?\$\$)", markdown, flags=re.S | re.M)

    def link(m):
        name = m[1]
        if name not in targets() or name in seen: return m[0]
        seen.add(name)
        return f"[{m[0]}]({up}{targets()[name]})"
    return "".join(p if i % 2 else CODE.sub(link, p) for i, p in enumerate(parts))


def write(nbs):
    "Write the pages into a copy of nbs/, and link the prose of its notebooks to them."
    (nbs / "reference").mkdir(exist_ok=True)
    for name, body in pages().items(): (nbs / "reference" / name).write_text(body, encoding="utf-8")
    links = 0
    for path in nbs.rglob("*.ipynb"):
        nb, up = nbformat.read(path, 4), "../" * (len(path.relative_to(nbs).parts) - 1)
        for c in nb.cells:
            if c.cell_type == "markdown":
                new = linked(c.source, up)
                links += new.count("](" + up + "reference/") - c.source.count("](" + up + "reference/")
                c.source = new
        nbformat.write(nb, path)
    return links
