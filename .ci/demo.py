"""Make what the browser demo needs beside its page: python .ci/demo.py FOLDER

Writes model.onnx, model.json (how pixels are prepared) and a few synthetic scans into FOLDER, usually a copy of nbs/demo. The weights are
those shipped: "busi" where the package has them, else "phantom". Nothing of it is committed.
"""
import argparse, json, sys
from pathlib import Path

SIZE, SCANS, SEED = 256, 6, 21


def make(folder):
    "The files, in `folder`; their names."
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from PIL import Image
    import cmunext_nb as cn
    from cmunext_nb.deploy import export_onnx, read_onnx_metadata
    from cmunext_nb.model import _shipped
    folder, label = Path(folder), "busi" if "busi" in _shipped("cmunext_s") else "phantom"
    words = dict(busi="The weights were trained on breast ultrasound (BUSI, split 1).", phantom="The weights were trained on synthetic scans like these, and on no real one.")[label]
    export_onnx(cn.create_model("cmunext_s", pretrained=label), folder / "model.onnx", source=words, size=SIZE)
    for i, scan in enumerate(cn.make_phantom(SCANS, size=SIZE, seed=SEED)[0]): Image.fromarray(scan[0].numpy()).save(folder / f"scan{i + 1}.png")
    names = [f"scan{i + 1}.png" for i in range(SCANS)]
    about = dict(preprocess=read_onnx_metadata(folder / "model.onnx")["preprocess"], size=SIZE, scans=names, words=words, weights=label)
    (folder / "model.json").write_text(json.dumps(about), encoding="utf-8")
    assert (folder / "model.onnx").stat().st_size <= 2e6, "the network of the demo is larger than 2 MB"
    return ["model.onnx", "model.json", *names]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(*make(parser.parse_args().folder))
