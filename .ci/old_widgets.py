"""The labs under the ipywidgets of Colab: python .ci/old_widgets.py [--version 7.7.1] [--folder FOLDER] [test or notebook ...]

Colab keeps ipywidgets 7.7.1, everybody else has 8. This installs the old one into a folder of its own (a temporary one, or FOLDER,
which is used again where it is there), puts it in front of this environment's packages, and runs the labs' tests and notebooks so.
Tests that say nothing about widgets are marked `once`, and left out. Nothing in the environment itself is changed. The first time needs the package index; about 2 MB come.
"""
import argparse, os, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROBE = "import ipywidgets, ipywidgets.widgets; print(ipywidgets.__version__, ipywidgets.__file__)"


def old_environment(folder, version):
    "The environment variables under which Python finds the old ipywidgets first; installs it into `folder` where it is not there yet."
    folder = Path(folder).resolve()
    if not (folder / f"ipywidgets-{version}.dist-info").is_dir():
        # Alone: what else it asks for is here already, or serves the front end only. ipython_genutils it imports.
        wanted = [f"ipywidgets=={version}", "ipython_genutils==0.2.0"]
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(folder), *wanted], check=True)
    path = os.pathsep.join([str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = dict(os.environ, PYTHONPATH=path, CMUNEXT_QUIET="1", MPLBACKEND="agg")
    found = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True)
    if found.returncode: sys.exit(f"ipywidgets {version} cannot be imported:\n{found.stderr}")
    there, file = found.stdout.split(maxsplit=1)
    if there != version or folder not in Path(file.strip()).parents: sys.exit(f"asked for ipywidgets {version} of {folder}, got {there} of {file}")
    return env


def run(notebook):
    "All code cells of a notebook, in a fresh kernel; nothing is written."
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.read(notebook, 4)
    nb.cells.insert(0, nbformat.v4.new_code_cell("import ipywidgets\nassert ipywidgets.__version__ == __import__('os').environ['OLD_WIDGETS']"))
    NotebookClient(nb, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(notebook.parent)}}).execute(env=dict(os.environ))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", type=Path, help="tests and notebooks; those of the labs where none is named")
    parser.add_argument("--version", default="7.7.1")
    parser.add_argument("--folder", type=Path, help="keep the old ipywidgets here")
    parser.add_argument("--workers", type=int, default=1, help="tests at a time")
    args = parser.parse_args()
    names = args.names or [*sorted((ROOT / "tests").glob("test_lab*.py")), *sorted((ROOT / "nbs").glob("39_*.ipynb")), *sorted((ROOT / "nbs").glob("4?_*lab*.ipynb")), *sorted((ROOT / "nbs").glob("50_*.ipynb"))]
    tests, notebooks = [n for n in names if n.suffix == ".py"], [n.resolve() for n in names if n.suffix == ".ipynb"]
    with tempfile.TemporaryDirectory() as temporary:
        env = old_environment(args.folder or temporary, args.version)
        print(f"ipywidgets {args.version}: {len(tests)} files of tests, {len(notebooks)} notebooks", flush=True)
        if tests: subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", str(args.workers), "--dist", "loadfile", "-m", "not once", "-W", "ignore::DeprecationWarning", *tests], cwd=ROOT, env=env, check=True)
        os.environ.update(env, OLD_WIDGETS=args.version)
        for notebook in notebooks:
            run(notebook)
            print(f"{notebook.name}: runs", flush=True)


if __name__ == "__main__": main()
