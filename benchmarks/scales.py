"""How the size at which the network sees a scan decides its IoU: python benchmarks/scales.py [--root FOLDER] [--out FILE]

CMUNeXt-S with the shipped weights on BUSI's validation half of split 1 (which they have not learned on), at sides from 128 to 384 px and
averaged over views. The masks stay those of 256 px: probabilities are brought back to that size. Takes some minutes on two cores.
"""
import argparse, json
from pathlib import Path

import torch
import cmunext_nb as cn
from cmunext_nb.metrics import reduce_counts, segmentation_counts
from cmunext_nb.predict import at_rest, average_views, resize
from cmunext_nb.weights import preprocess, to_channels
from machine import machine

ROOT = Path(__file__).resolve().parent.parent
SIDES = (128, 160, 192, 224, 256, 288, 320, 384)


def scores(model, data, probabilities, batch=15):
    "Mean over images of IoU and F1, in percent, of what `probabilities(x)` gives for normalised images."
    counts = []
    with at_rest(model):
        for first in range(0, len(data), batch):
            x = preprocess(to_channels(data.images[first:first + batch], 3), model.preprocess)
            counts.append(segmentation_counts(torch.logit(probabilities(x), eps=1e-6), data.masks[first:first + batch]))
    together = [torch.cat(c) for c in zip(*counts)]
    return dict(iou=round(100 * reduce_counts(*together, "iou"), 2), f1=round(100 * reduce_counts(*together, "f1"), 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="folder of BUSI")
    parser.add_argument("--out", type=Path, default=ROOT / "nbs/results/scales.json")
    args = parser.parse_args()
    _, valid = cn.load_dataset("busi", root=args.root, split=1, size=256)
    model = cn.create_model("cmunext_s", pretrained="busi")
    at = lambda side: lambda x: resize(torch.sigmoid(model(resize(x, (side, side)))), x.shape[-2:])
    sides = {side: scores(model, valid, at(side)) for side in SIDES}
    averages = {str(tta): scores(model, valid, lambda x: average_views(model, x, tta)[0]) for tta in (False, "mirror", "scales")}
    result = dict(machine=machine(), model="cmunext_s, pretrained='busi'", data="busi, split 1, validation", n=len(valid), sides=sides, averages=averages)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__": main()
