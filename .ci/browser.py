"""Find a Chromium for the browser tests, or get one: python .ci/browser.py [--install]

Prints the path of the browser. Where there is none, `--install` (and CI=true) installs Debian's or Ubuntu's package when apt-get
and the right to use it are there, else playwright's own build; otherwise the answer says how to install one, and the status is 1. npm, from
which the test of the browser demo takes its engine, is installed in the same way.
"""
import argparse, os, shutil, subprocess, sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
PLACES = ("/Applications/Chromium.app/Contents/MacOS/Chromium", "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
          r"C:\Program Files\Google\Chrome\Application\chrome.exe", r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe")
HOW = ("There is no browser for the labs' tests. Install Chromium (Debian, Ubuntu: apt-get install chromium; macOS: brew install --cask chromium; "
       "Windows: winget install Google.Chrome; any: python -m playwright install chromium), or name one that you have: CMUNEXT_BROWSER=/path/to/chrome.")


def starts(path):
    "Whether the browser says its version: Ubuntu's `chromium-browser` may be a shell script that only asks for snap. Windows would open a window."
    if sys.platform == "win32": return True
    try: return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired): return False


def playwrights():
    "Path of playwright's own build, whether it is installed or not; None without playwright."
    code = "from playwright.sync_api import sync_playwright as s\nwith s() as p: print(p.chromium.executable_path)"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return got.stdout.strip() if got.returncode == 0 else None


def find():
    "Path of a Chromium: $CMUNEXT_BROWSER, else the system's, else playwright's own; None where there is none."
    named = os.environ.get("CMUNEXT_BROWSER")
    if named:
        path = shutil.which(named)
        if path is None: raise SystemExit(f"CMUNEXT_BROWSER={named} is not a program; set it to the path of a Chromium or Chrome, or unset it.")
        return path
    for path in (*filter(None, map(shutil.which, NAMES)), *(p for p in PLACES if Path(p).exists())):
        if starts(path): return path
    own = playwrights()
    return own if own and Path(own).exists() else None


def apt(*packages):
    "Install packages with apt-get, as root or through sudo without a password; nothing where that is not to be had."
    root = [] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["sudo", "-n"]
    if shutil.which("apt-get") and (not root or (shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0)):
        for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *packages]):
            subprocess.run([*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *command], stdout=sys.stderr)


def install():
    "Install a Chromium with apt-get; where that gives none, playwright's own build."
    apt("chromium", "fonts-liberation")
    if find() is None: subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], stdout=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="install a browser where there is none")
    args, path = parser.parse_args(), find()
    wanted = args.install or os.environ.get("CI") == "true"
    if path is None and wanted:
        install()
        path = find()
    if wanted and shutil.which("npm") is None: apt("npm")
    print(path or HOW, file=sys.stdout if path else sys.stderr)
    sys.exit(path is None)


if __name__ == "__main__": main()
