"""Notebooks under conditions like Colab's: python .ci/colab_like.py [--folder FOLDER] [--record] [notebook ...]

ipywidgets 7.7.1 and numpy 2.1 are installed into a folder of their own (a temporary one, or FOLDER, which is used again where they are
there) in front of this environment's packages, and beside them lies the package as a wheel has it; PyTorch stays as it is. A notebook is
run in an empty folder, for Colab has no file of the repository but the notebook: what its first cell fetches comes from the checkout. Packages
that Colab lacks are hidden until that cell installs them. A module `google.colab` is there, and `%pip` answers without installing.

Said are the seconds of waiting and of processor time, with one thread. --record keeps the second, in which other work on the machine
hardly counts, in .ci/colab_times.json, rounded up generously; an entry stays while it is near what is measured, so that noise changes
nothing. `make export` then writes it into the notebooks.
"""
import argparse, json, re, shutil, subprocess, sys, tempfile, time
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import colab
from cmunext_nb.train import cpu_has_bfloat16
from old_widgets import old_environment

ROOT = Path(__file__).resolve().parent.parent
STEPS = (10, 30, 60, 120, 180, 300, 600, 900, 1200, 1800, 3600)  # seconds that a notebook may be said to take
START = '''
import pathlib, shutil, sys, types, urllib.request
import numpy, ipywidgets, cmunext_nb
try: import google  # a namespace that others share: protobuf is google.protobuf
except ImportError: google = sys.modules["google"] = types.ModuleType("google")
assert numpy.__version__.startswith("2.1.") and ipywidgets.__version__ == "7.7.1", (numpy.__version__, ipywidgets.__version__)
assert pathlib.Path(cmunext_nb.__file__).is_relative_to(FOLDER), cmunext_nb.__file__
google.colab = sys.modules["google.colab"] = types.ModuleType("google.colab")
class Hiding:
    "An import finder that does not find what Colab lacks. It answers None as if there were nothing: PyTorch asks after such packages, and must not be told by an error."
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None): return None if name.split(".")[0] in EXTRAS else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Hiding(f) if hasattr(f, "find_spec") else f for f in sys.meta_path]
def pip(line):
    for package, extra in list(EXTRAS.items()):
        if extra in line: del EXTRAS[package]
get_ipython().register_magic_function(pip, "line")
def urlretrieve(url, name):
    assert url.startswith(RAW), url
    shutil.copy(pathlib.Path(ROOT) / url.removeprefix(RAW), name)
urllib.request.urlretrieve = urlretrieve
'''


def environment(folder):
    "The environment variables under which Python finds the versions of Colab and a copy of the package, and not the checkout."
    env = old_environment(folder, "7.7.1")
    if not list(folder.glob("numpy-2.1.*.dist-info")):
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(folder), "numpy==2.1.*"], check=True)
    shutil.rmtree(folder / "cmunext_nb", ignore_errors=True)
    shutil.copytree(ROOT / "cmunext_nb", folder / "cmunext_nb", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "data/phantom", folder / "cmunext_nb/bundled/phantom")  # as setup.py has it
    del env["MPLBACKEND"]  # Colab draws into the notebook
    return dict(env, PYTHONPATH=str(folder), OMP_NUM_THREADS="1")


def run(path, env):
    "All cells of a notebook, the one for Colab among them: what that one said, seconds of waiting, seconds of processor time."
    nb = nbformat.read(path, 4)
    given = dict(FOLDER=env["PYTHONPATH"], ROOT=str(ROOT), RAW=colab.raw(), EXTRAS=colab.EXTRAS)
    nb.cells.insert(0, nbformat.v4.new_code_cell("\n".join(f"{k} = {v!r}" for k, v in given.items()) + START))
    for c in nb.cells:
        if c.cell_type == "code" and "eval: false" in c.source and c.get("id") != colab.CELL_ID: c.cell_type = "raw"
    import resource  # not on Windows
    spent = lambda: (time.perf_counter(), sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]))
    start = spent()
    with tempfile.TemporaryDirectory() as empty:
        (home := Path(empty) / "content/nbs/zoo").mkdir(parents=True)  # deep enough for what is fetched to a folder above
        NotebookClient(nb, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(home)}}).execute(env=env)
    said = "".join(o.get("text", "") for c in nb.cells if c.get("id") == colab.CELL_ID for o in c.outputs).strip()
    return (said, *(b - a for a, b in zip(start, spent())))


def cpu(): return Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""


def machine():
    "Words for where it was measured."
    found = re.search(r"^model name\s*:\s*(.+)$", cpu(), re.M)
    name = found[1] if found else "unnamed processor"
    return f"one core of an {re.sub(r'[(](R|TM)[)]', '', name).split(' @')[0].replace('Processor', '').replace('CPU', '').strip()}"


def rounded(seconds, old=None):
    "The step that leaves a fifth of it free; the old one while the time is below it and above a quarter of it."
    if old and old / 4 <= seconds <= old: return old
    return next((s for s in STEPS if s >= 1.25 * seconds), STEPS[-1])


def record(seconds):
    "Keep {notebook: seconds} in .ci/colab_times.json, beside what stands there for other notebooks."
    meant, told = {colab.name_of(p) for p in colab.meant()}, colab.times()
    new = {**told["seconds"], **{n: rounded(s, told["seconds"].get(n)) for n, s in seconds.items()}}
    kept = dict(machine=machine(), pytorch=version("torch"), bfloat16_units=cpu_has_bfloat16(), seconds={n: new[n] for n in sorted(new) if n in meant})
    colab.TIMES.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", type=Path, help="notebooks; all that are meant for Colab where none is named")
    parser.add_argument("--folder", type=Path, help="keep the old versions here")
    parser.add_argument("--record", action="store_true", help="keep the times in .ci/colab_times.json")
    args, failed = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as temporary:
        env = environment((args.folder or Path(temporary)).resolve())
        for path in [n.resolve() for n in args.names] or colab.meant():
            try: said, waited, processor = run(path, env)
            except CellExecutionError as error:
                failed.append(path.name)
                print(f"{path.name}: FAILS\n{re.sub(chr(27) + r'.[0-9;]*m', '', str(error))[-3000:]}", flush=True)
                continue
            print(f"{path.name}: {waited:.0f} s, {processor:.0f} s of processor time. {said}", flush=True)
            if args.record: record({colab.name_of(path): processor})
    if failed: sys.exit(f"{len(failed)} notebooks fail: {', '.join(failed)}")


if __name__ == "__main__": main()
