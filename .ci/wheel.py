"""Build sdist and wheel, look into them, install the wheel in an environment of its own, and use it.

The environment shares the third-party packages of this one (a second PyTorch would be gigabytes), but not the checkout:
what is imported is the wheel. `--empty` takes a truly empty environment instead and lets pip find everything.
"""
import argparse, json, os, re, subprocess, sys, sysconfig, tarfile, tempfile, venv, zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USE = """
import json, statistics, subprocess, sys, time, torch
def seconds(code): return float(subprocess.run([sys.executable, '-c', 'import time; t = time.perf_counter()\\n' + code + '\\nprint(time.perf_counter() - t)'], capture_output=True, text=True, check=True).stdout)
added = statistics.median(seconds('import torch\\nt = time.perf_counter()\\nimport cmunext_nb') for _ in range(5))
import cmunext_nb as cn
assert cn.__file__.startswith(sys.prefix), cn.__file__
model = cn.create_model('cmunext_s').eval()
train, valid = cn.load_dataset('phantom', size=64)
result = cn.predict(model, valid.images[0])
assert result.mask.shape == (64, 64)
print(json.dumps(dict(import_adds_seconds=round(added, 4), train=len(train), valid=len(valid), version=cn.__version__)))
"""


def run(*args, **kwargs): return subprocess.run([str(a) for a in args], check=True, text=True, **kwargs)


def contents(dist):
    "The wheel holds the code, the data, the licence; the sdist what is needed to build it again."
    wheel = {n for p in dist.glob("*.whl") for n in zipfile.ZipFile(p).namelist()}
    sdist = {n.split("/", 1)[1] for p in dist.glob("*.tar.gz") for n in tarfile.open(p).getnames() if "/" in n}
    for name in ("cmunext_nb/model.py", "cmunext_nb/assets/busi.json", "cmunext_nb/bundled/phantom/train.txt",
                 "cmunext_nb/assets/cmunext_s_phantom.safetensors", "cmunext_nb/assets/cmunext_s_busi.safetensors", "cmunext_nb/assets/runs.jsonl", "cmunext_nb/labs/block.py", "cmunext_nb/zoo/unet.py"): assert name in wheel, f"{name} is missing in the wheel"
    assert any(n.endswith("LICENSE") for n in wheel), "the licence is missing in the wheel"
    for name in ("settings.ini", "setup.py", "LICENSE", "README.md", "data/phantom/train.txt", "cmunext_nb/assets/cmunext_s_phantom.safetensors"): assert name in sdist, f"{name} is missing in the sdist"
    assert not any("busi/images" in n or n.startswith("nbs/") for n in wheel), "the wheel holds what it should not"
    return len(wheel)


def listed(wheel, most=5):
    "What is in the wheel, as lines: files and MB of each kind, and the largest files."
    with zipfile.ZipFile(wheel) as z: sizes = {i.filename: (i.file_size, i.compress_size) for i in z.infolist()}
    kinds = {}
    for name, size in sizes.items(): kinds.setdefault(Path(name).suffix or "without an ending", []).append(size)
    row = lambda name, many: f"  {name}: {len(many)} files, {sum(f for f, _ in many) / 1e6:.2f} MB, {sum(c for _, c in many) / 1e6:.2f} MB packed"
    largest = sorted(sizes, key=lambda n: -sizes[n][1])[:most]
    return [row(k, v) for k, v in sorted(kinds.items(), key=lambda kv: -sum(c for _, c in kv[1]))] + ["  largest: " + ", ".join(f"{n} {sizes[n][1] / 1e6:.2f} MB" for n in largest)]


def page_of(wheel):
    "The text of the package's page: the README, in which every link and picture has a whole address."
    with zipfile.ZipFile(wheel) as z: text = z.read(next(n for n in z.namelist() if n.endswith(".dist-info/METADATA"))).decode()
    text = text.split("\n\n", 1)[1]
    near = [a for a in re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", text, flags=re.S)) if not a.startswith(("https://", "#"))]
    assert not near, f"the package's page has links that lead nowhere there: {near}"
    return text


def lines_of_use(page):
    "The README's lines of use as one program: its blocks of Python up to the reader's own images."
    blocks = re.findall(r"```python\n(.*?)```", page.split("## Your own images")[0], re.S)
    assert len(blocks) == 2 and "cn.fit(" in blocks[0], "the README has lost its lines of use"
    return "\n".join(blocks)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--empty", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        # A copy, so that building leaves nothing in the checkout.
        files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT, capture_output=True).stdout.split("\0")
        for name in filter(None, files):
            if (ROOT / name).is_file():
                (tmp / "src" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp / "src" / name).write_bytes((ROOT / name).read_bytes())
        run(sys.executable, "-m", "build", "-q", "--outdir", tmp / "dist", tmp / "src")
        run(sys.executable, "-m", "twine", "check", "--strict", *sorted((tmp / "dist").iterdir()))
        files = contents(tmp / "dist")
        wheel = next((tmp / "dist").glob("*.whl"))
        venv.create(tmp / "env", with_pip=True)
        python = tmp / "env/bin/python"
        if not args.empty:
            here = sysconfig.get_paths()["purelib"]
            site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", capture_output=True).stdout.strip())
            (site / "shared.pth").write_text(here)
        run(python, "-m", "pip", "install", "-q", *([] if args.empty else ["--no-deps"]), wheel)
        clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # which would bring the checkout back in
        used = run(python, "-c", USE, cwd=tmp, env=clean, stdout=subprocess.PIPE).stdout.strip().splitlines()[-1]
        seen = json.loads(used)
        assert seen["import_adds_seconds"] <= 0.3, f"import cmunext_nb adds {seen['import_adds_seconds']} s to import torch (at most 0.3)"
        (tmp / "use.py").write_text(lines_of_use(page_of(wheel)) + "\nimport sys\nassert cn.__file__.startswith(sys.prefix), cn.__file__\n", encoding="utf-8")
        said = run(python, "use.py", cwd=tmp, env=dict(clean, CMUNEXT_QUIET="1"), stdout=subprocess.PIPE).stdout
        assert "417,505 parameters" in said and "the bottleneck sees" in said, said
        print("README:", said.strip().splitlines()[0])
        print(f"wheel: {wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB, {files} files; used: {used}")
        print("\n".join(listed(wheel)))


if __name__ == "__main__": main()
