"""Everything is read from settings.ini; this file only hands it to setuptools."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(HERE / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

USER_EXTRAS = ("lab", "explain", "zoo", "deploy", "hub")
extras = {name: cfg[f"{name}_requirements"].split() for name in USER_EXTRAS}
extras["all"] = sorted({r for name in USER_EXTRAS for r in extras[name]})
extras["dev"] = sorted({*cfg["dev_requirements"].split(), *extras["lab"], *extras["explain"], *extras["zoo"], *extras["deploy"]})

# The README links to files of the repository; a package page needs whole addresses.
readme = (HERE / "README.md").read_text(encoding="utf-8")
readme = re.sub(r"(!\[[^]]*\]\()(?=nbs/)", rf"\1{cfg['git_url']}/raw/{cfg['branch']}/", readme)
readme = re.sub(r"(\]\()(?=nbs/)", rf"\1{cfg['git_url']}/blob/{cfg['branch']}/", readme)

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme,
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    project_urls={"Documentation": cfg["doc_host"] + cfg["doc_baseurl"], "Changes": cfg["git_url"] + "/blob/main/CHANGELOG.md"},
    license="MIT",
    license_files=["LICENSE"],
    keywords=cfg["keywords"].split(),
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research", "Intended Audience :: Education",
                 "Framework :: Jupyter", "Topic :: Scientific/Engineering :: Medical Science Apps.",
                 *[f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)]],
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    # The synthetic set travels inside the wheel as cmunext_nb/bundled, so that a pip install has it too.
    # Real sets that somebody put into data/ are not among the packages.
    packages=[*find_namespace_packages(include=["cmunext_nb", "cmunext_nb.*"], exclude=["*__pycache__*"]), "cmunext_nb.bundled",
              *(f"cmunext_nb.bundled.{name}" for name in find_namespace_packages("data", include=["phantom", "phantom.*"]))],
    package_dir={"cmunext_nb.bundled": "data"},
    package_data={"": ["*.json", "*.md", "*.png", "*.txt", "*.safetensors"]},
    entry_points={"nbdev": ["cmunext_nb=cmunext_nb._modidx:d"]},
    zip_safe=False,
)
