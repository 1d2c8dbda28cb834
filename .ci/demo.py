"""Make what the browser demo needs beside its page: python .ci/demo.py FOLDER

Writes a network for each of the shipped weights, model.json (which they are, and how pixels are prepared) and a few synthetic scans into
FOLDER, usually a copy of nbs/demo. Nothing of it is committed.
"""
import argparse, json, sys
from pathlib import Path

SIZE, SCANS, SEED = 256, 6, 21
WEIGHTS = (("phantom", "from synthetic scans", "Trained on synthetic scans like those above, and on no real one: right for them, wrong for a patient's."),
           ("busi", "from breast ultrasound (BUSI)", "Trained on 452 breast ultrasound scans (BUSI, split 1): meant for real ones, and unsure about the synthetic scans above."))


def make(folder):
    "The files, in `folder`; their names."
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from PIL import Image
    import cmunext_nb as cn
    from cmunext_nb.deploy import export_onnx, read_onnx_metadata
    folder, networks = Path(folder), []
    for label, name, words in WEIGHTS:
        file = folder / f"{label}.onnx"
        export_onnx(cn.create_model("cmunext_s", pretrained=label), file, source=words, size=SIZE)
        assert file.stat().st_size <= 2e6, f"{file.name} is larger than 2 MB"
        networks.append(dict(name=label, label=name, words=words, file=file.name, preprocess=read_onnx_metadata(file)["preprocess"]))
    names = [f"scan{i + 1}.png" for i in range(SCANS)]
    for file, scan in zip(names, cn.make_phantom(SCANS, size=SIZE, seed=SEED)[0]): Image.fromarray(scan[0].numpy()).save(folder / file)
    (folder / "model.json").write_text(json.dumps(dict(size=SIZE, scans=names, networks=networks)), encoding="utf-8")
    return [*(n["file"] for n in networks), "model.json", *names]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(*make(parser.parse_args().folder))
