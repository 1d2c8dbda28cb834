"""How far the masks of each engine and number format agree with float32: python benchmarks/agreement.py [--root FOLDER] [--out FILE]

Two sets: the 195 validation images of BUSI's split 1 with the weights that are shipped for it (trained on the other 452), and, for what needs
no download, eight phantoms with theirs. "all short": the whole network in the short format; "as deployed": but for the parts of `KEEP`; "and
decoder.1": the `expand` of that fusion in 8 bits too; "biases corrected": with NNCF's correction of biases. The score is the Dice between the masks of both formats, over all pixels of the set and as the mean
of the images. `parts`: bfloat16 with one part of the network at a time in float32. 8 bits are calibrated on 32 training images of each set.
Prints JSON.
"""
import argparse, importlib, json, warnings
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from machine import machine

import cmunext_nb as cn
from cmunext_nb.deploy import KEEP, deploy, export_onnx
from cmunext_nb.weights import preprocess, to_channels

ROOT = Path(__file__).resolve().parent.parent
BLOCK = "encoder.0.blocks.0"
PARTS = ["stem", "encoder.0", f"{BLOCK}.mix_space", f"{BLOCK}.mix_channels", *(f"encoder.{i}" for i in range(1, 5)), *(f"decoder.{i}" for i in range(4)), "head"]


def masks(net, x): return torch.cat([torch.as_tensor(net(x[i:i + 1])) > 0 for i in range(len(x))]).flatten(1)


def score(found, truth):
    "Dice over all pixels, mean and smallest Dice of an image."
    both, either = 2 * (found & truth).sum(1), found.sum(1) + truth.sum(1)
    each = torch.where(either > 0, both / either.clamp(min=1), 1.0)
    return dict(dice=round(float(both.sum() / either.sum()), 5), mean=round(float(each.mean()), 5), worst=round(float(each.min()), 3))


@torch.inference_mode()
def measure(weights, images, calibration, folder):
    "Scores of all engines, and of bfloat16 with single parts in float32."
    model = cn.create_model("cmunext_s", pretrained=weights).eval()
    x, path = preprocess(to_channels(torch.as_tensor(images), 3), model.preprocess), export_onnx(model, folder / f"{weights}.onnx")
    truth = masks(deploy(path, "openvino"), x)
    run = lambda backend, precision, keep: score(masks(deploy(model if backend == "torch" else path, backend, precision, calibration if precision == "int8" else None, keep=keep), x), truth)
    engines = {}
    for backend, precision in (("openvino", "bfloat16"), ("torch", "bfloat16"), ("openvino", "int8"), ("onnxruntime", "int8")):
        keeps = {"all short": (), "as deployed": KEEP[precision]}
        if (backend, precision) == ("openvino", "int8"): keeps.update({f"and {name[:9]}": tuple(k for k in KEEP["int8"] if k != name) for name in KEEP["int8"] if "expand" in name})
        for kept, keep in keeps.items(): engines[f"{backend} {precision}, {kept}"] = run(backend, precision, keep)
    module = importlib.import_module("cmunext_nb.deploy")  # the package's `deploy` is the function
    with mock.patch.object(module, "_openvino_int8", partial(module._openvino_int8, correct_bias=True)):
        engines["openvino int8, biases corrected"] = run("openvino", "int8", KEEP["int8"])
    return dict(images=len(x), engines=engines, parts={name: run("openvino", "bfloat16", (name,)) for name in PARTS})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--root", help="folder of BUSI")
    p.add_argument("--out", type=Path, default=ROOT / "nbs/results/agreement.json")
    a = p.parse_args()
    warnings.simplefilter("ignore")
    train, valid = cn.load_dataset("busi", root=a.root, split=1, size=256)
    import openvino, tempfile
    with tempfile.TemporaryDirectory() as folder:
        result = dict(machine=dict(machine(), capabilities=openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), openvino=openvino.__version__),
                      busi=measure("busi", valid.images, train.images[:32], Path(folder)),
                      phantom=measure("phantom", cn.make_phantom(8, size=256, seed=7)[0], cn.make_phantom(32, size=256, seed=8)[0], Path(folder)))
    a.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__": main()
