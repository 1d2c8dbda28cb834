"""Build the site with smalldocs from the one _quarto.yml and fail on broken links. The published build uses Quarto."""
import shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    assert (ROOT / "nbs/_quarto.yml").resolve() == ROOT / "_quarto.yml", "nbs/_quarto.yml must be a link to the top-level _quarto.yml"
    smalldocs = [sys.executable, "-m", "smalldocs.cli"] if not shutil.which("smalldocs") else [shutil.which("smalldocs")]
    with tempfile.TemporaryDirectory() as tmp:
        # A copy: building leaves nothing in the checkout.
        shutil.copytree(ROOT / "nbs", Path(tmp) / "nbs", symlinks=False, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "_docs"))
        for command in ("render", "check"):
            done = subprocess.run([*smalldocs, command, "nbs"], cwd=tmp, text=True, capture_output=True)
            print(f"smalldocs {command}:", (done.stdout + done.stderr).strip()[-3000:])
            if done.returncode: sys.exit(f"smalldocs {command} failed")
        pages = list((Path(tmp) / "_docs").rglob("*.html"))
        expected = len(list((ROOT / "nbs").glob("*.ipynb")))
        assert len(pages) >= expected, f"{len(pages)} pages for {expected} notebooks"
        print(f"site: {len(pages)} pages")


if __name__ == "__main__": main()
