"""Notebooks under versions like Colab's: python .ci/colab_like.py [--folder FOLDER] [notebook ...]

ipywidgets 7.7.1 and numpy 2.1 are installed into a folder of their own (a temporary one, or FOLDER, which is used again where they are
there) in front of this environment's packages; PyTorch stays as it is. A module `google.colab` is there, so that cells that ask for it
behave as they do in Colab, and `%pip` answers without installing anything. The cells are run, and nothing is written.
"""
import argparse, subprocess, sys, tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

import colab
from old_widgets import old_environment

ROOT = Path(__file__).resolve().parent.parent
START = '''
import sys, types, numpy, ipywidgets
assert numpy.__version__.startswith("2.1.") and ipywidgets.__version__ == "7.7.1", (numpy.__version__, ipywidgets.__version__)
sys.modules["google"], sys.modules["google.colab"] = types.ModuleType("google"), types.ModuleType("google.colab")
def pip(line): print("in Colab, pip would do:", line)
get_ipython().register_magic_function(pip, "line")
'''


def run(path, env):
    "All cells of a notebook, the one for Colab among them; what that one said."
    nb = nbformat.read(path, 4)
    nb.cells.insert(0, nbformat.v4.new_code_cell(START))
    for c in nb.cells:
        if c.cell_type == "code" and "eval: false" in c.source and c.get("id") != colab.CELL_ID: c.cell_type = "raw"
    NotebookClient(nb, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute(env=env)
    return "".join(o.get("text", "") for c in nb.cells if c.get("id") == colab.CELL_ID for o in c.outputs).strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", type=Path, help="notebooks; all that are meant for Colab where none is named")
    parser.add_argument("--folder", type=Path, help="keep the old versions here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        env = old_environment(folder, "7.7.1")
        if not list(folder.glob("numpy-2.1.*.dist-info")):
            subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(folder), "numpy==2.1.*"], check=True)
        del env["MPLBACKEND"]  # Colab draws into the notebook
        for path in [n.resolve() for n in args.names] or colab.meant(): print(f"{path.name}: {run(path, env)}", flush=True)


if __name__ == "__main__": main()
