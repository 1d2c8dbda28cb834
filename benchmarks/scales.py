"""How the size at which the network sees a scan decides its IoU: python benchmarks/scales.py [--root FOLDER] [--out FILE]

CMUNeXt-S with the shipped weights on BUSI's validation half of split 1 (which they have not learned on), at sides from 128 to 384 px and
averaged over views. The masks stay those of 256 px: probabilities are brought back to that size. Takes some minutes on two cores.
"""
import argparse, json
from pathlib import Path

import torch
import cmunext_nb as cn
from cmunext_nb.predict import TTAWrapper, resize
from machine import machine

ROOT = Path(__file__).resolve().parent.parent
SIDES = (128, 160, 192, 224, 256, 288, 320, 384)


class Shown(torch.nn.Module):
    "A network that sees each image at another size, and answers at the image's own."
    def __init__(self, model, side):
        super().__init__()
        self.model, self.side, self.config, self.preprocess = model, side, model.config, model.preprocess

    def forward(self, x): return torch.logit(resize(torch.sigmoid(self.model(resize(x, (self.side, self.side)))), x.shape[-2:]), eps=1e-6)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="folder of BUSI")
    parser.add_argument("--out", type=Path, default=ROOT / "nbs/results/scales.json")
    args = parser.parse_args()
    _, valid = cn.load_dataset("busi", root=args.root, split=1, size=256)
    model = cn.create_model("cmunext_s", pretrained="busi")
    score = lambda network: {k: round(100 * v, 2) for k, v in cn.evaluate(network, valid).items() if k in ("iou", "f1")}
    sides = {side: score(Shown(model, side)) for side in SIDES}
    averages = {str(tta): score(TTAWrapper(model, tta)) for tta in (False, "mirror", "scales", "zoom")}
    result = dict(machine=machine(), model="cmunext_s, pretrained='busi'", data="busi, split 1, validation", n=len(valid), sides=sides, averages=averages)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__": main()
