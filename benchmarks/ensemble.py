"""How sure a mask is, asked in four ways, and what several networks know together: python benchmarks/ensemble.py --runs FOLDER ... [--recipe fast] [--epochs 200] [--six scales] [--root FOLDER] [--out FILE]

The folders are those of python -m cmunext_nb.reproduce (--out). Each run in them that trained CMUNeXt-S by the recipe for so many epochs is a member,
with its last weights, if its seed was trained on every split that is there. A network is shown the size that it was trained at (the recipe half: 128 pixels),
with six looks also the other sizes of --six, as tta of predict; its probabilities are enlarged, and the masks are those of 256 pixels. On the
validation part of each split: the IoU of one network, of two, ..., with one look, mirrored and with six looks; that of one look at five sizes; for each
scan its IoU and four measures of doubt; and how often a pixel of each probability is lesion. Takes some three minutes a network of 256 pixels on one core.
"""
import argparse, itertools, json, re
from pathlib import Path

import numpy as np
import torch
import cmunext_nb as cn
from cmunext_nb.metrics import mask_counts, reduce_counts
from cmunext_nb.predict import Prediction, resize, view_sizes, views
from cmunext_nb.weights import preprocess, to_channels
from machine import machine

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 3 / 4, 7 / 8, 1, 9 / 8, 5 / 4  # of the side that a network was trained at, for one look each


def pixels(model): return max(getattr(model, "trained_size", None) or (256,))


def looks_of(tta, side): return [(size[0], bool(axes)) for size in view_sizes(tta, (side, side)) for axes, _ in views(tta)]


def look(model, x, side, mirrored):
    "Probabilities (N, 256, 256) of one look as `predict` has them, in half precision to save memory: the view is made of what the network is shown, its logits are brought back to that size, the probabilities enlarged."
    shown, answers = (pixels(model),) * 2, []
    with torch.inference_mode():
        for part in x.split(16):
            seen = resize(part, shown)
            view = resize(seen.flip(-1) if mirrored else seen, (side, side))
            p = resize(torch.sigmoid(resize(model(view.contiguous(memory_format=torch.channels_last)), shown)), x.shape[-2:])
            answers.append((p.flip(-1) if mirrored else p)[:, 0].half())
    return torch.cat(answers)


def per_scan(p, truth, metric="iou"): return reduce_counts(*mask_counts((p > 0.5)[:, None], truth[:, None]), metric, "none")[:, 0]


def merged(answers):
    "Mean and spread of several answers."
    p = torch.stack([a.float() for a in answers])
    return p.mean(0), p.std(0, unbiased=False)


def doubt(answers, truth, measure):
    "The IoU of each scan's mask, and what the measure says about it without the truth."
    p, spread = merged(answers)
    results = [Prediction(None, one.numpy(), spread=s.numpy()) for one, s in zip(p, spread)]
    return dict(iou=np.round(per_scan(p, truth).tolist(), 4).tolist(), trust=[round(measure(r), 4) for r in results])


def reliability(p, truth):
    "By tenths of the probability: how many pixels, the sum of their probabilities, and how many are lesion."
    p, truth = p.flatten().double().numpy(), truth.flatten().numpy()
    tenth = np.minimum((10 * p).astype(int), 9)
    return dict(n=np.bincount(tenth, minlength=10).tolist(), said=np.bincount(tenth, p, 10).round().astype(int).tolist(), true=np.bincount(tenth, truth, 10).astype(int).tolist())


def one_split(split, runs, root, six):
    _, valid = cn.load_dataset("busi", root=root, split=split, size=256)
    truth, x = valid.masks[:, 0] > 0, preprocess(to_channels(valid.images, 3))
    seen = {}
    for seed, folder in runs.items():
        model = cn.load_weights(folder / "last.safetensors").eval().to(memory_format=torch.channels_last)
        looks_at = {name: looks_of(tta, pixels(model)) for name, tta in (("one", False), ("mirror", "mirror"), (six, six))}
        single = sorted({round(share * pixels(model) / 16) * 16 for share in SHOWN})
        seen[seed] = {view: look(model, x, *view) for view in {*looks_at[six], *((side, False) for side in single)}}
        print(f"split {split}, seed {seed}", flush=True)
    ask = lambda seeds, looks: [seen[s][v] for s in seeds for v in looks_at[looks]]
    scores = []
    for k, looks in itertools.product(range(1, len(runs) + 1), looks_at):
        for seeds in itertools.combinations(runs, k):
            p = merged(ask(seeds, looks))[0]
            scores.append(dict(seeds=list(seeds), looks=looks, **{m: round(100 * per_scan(p, truth, m).mean().item(), 2) for m in ("iou", "f1")}))
    sides = {side: [round(100 * per_scan(seen[s][side, False].float(), truth).mean().item(), 2) for s in runs] for side in single}
    stability, agreement, area = lambda r: r.stability, lambda r: r.agreement, lambda r: r.area
    doubts = {kind: [doubt(ask(seeds, looks), truth, measure) for seeds in groups] for kind, groups, looks, measure in (
        ("one look", [[s] for s in runs], "one", stability), ("two views", [[s] for s in runs], "mirror", agreement),
        ("all networks", [list(runs)], "one", agreement), ("all networks, six looks", [list(runs)], six, agreement), ("size of the mask", [[s] for s in runs], "one", area))}
    says = {kind: reliability(merged(ask(seeds, looks))[0], truth) for kind, seeds, looks in (
        ("one look", list(runs)[:1], "one"), ("two views", list(runs)[:1], "mirror"), ("all networks", list(runs), "one"), ("all networks, six looks", list(runs), six))}
    return dict(split=split, seeds=list(runs), names=list(valid.names), scores=scores, sides=sides, doubts=doubts, reliability=says)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", type=Path, required=True, help="folders of finished runs (--out of reproduce)")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--six", choices=("scales", "zoom"), default="scales", help="sizes of the six looks, as tta of predict (default: scales)")
    parser.add_argument("--root", help="folder of BUSI")
    parser.add_argument("--out", type=Path, help="(default: nbs/results/ensemble.json, with another recipe ensemble_RECIPE.json)")
    args = parser.parse_args()
    out = args.out or ROOT / f"nbs/results/ensemble{'' if args.recipe == 'fast' else '_' + args.recipe}.json"
    run = re.compile(rf"busi_split(\d)_cmunext_s_{re.escape(args.recipe)}_{args.epochs}epochs_256px_seed(\d+)$")
    found = {}
    for folder in sorted(f for runs in args.runs for f in runs.iterdir()):
        if (name := run.match(folder.name)) and (folder / "last.safetensors").exists(): found.setdefault(int(name[1]), {})[int(name[2])] = folder
    shared = sorted(set.intersection(*map(set, found.values()))) if found else []
    if len(shared) < 2: parser.error(f"expected runs busi_split*_cmunext_s_{args.recipe}_{args.epochs}epochs_256px_seed* with two seeds that every split has in {', '.join(map(str, args.runs))}")
    splits = [one_split(split, {seed: runs[seed] for seed in shared}, args.root, args.six) for split, runs in sorted(found.items())]
    out.write_text(json.dumps(dict(machine=machine(), model="cmunext_s", recipe=f"{args.recipe}, {args.epochs} epochs", splits=splits)) + "\n")


if __name__ == "__main__": main()
