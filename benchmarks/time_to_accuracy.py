"""Minutes until CMUNeXt-S reaches the paper's validation IoU on BUSI's split 1: python benchmarks/time_to_accuracy.py [--target 68.84] [--recipe fast] [--epochs 150] [--looks 10] [--six scales]

Trains with one schedule of a fixed length, stops after the first validation (of the averaged weights, all 195 images, the mean of per-image
IoU) that reaches the target, and writes the minutes, or the best that was reached where it never did. Validation is part of the time.
Resumes after a kill, since its minutes are those of the epochs. `--start phantom` begins with the shipped weights of synthetic scans.
With `--looks 10` the weights are also scored with six looks at each image, at the three sizes of `--six` (nbs/16_predict.ipynb), after every tenth epoch
and the last: a protocol of its own, reported beside the other, which does not end the training. Its scoring counts in its minutes only.
"""
import argparse, json, sys, time
from pathlib import Path

import torch
import cmunext_nb as cn
from cmunext_nb.predict import TTAWrapper
from cmunext_nb.reproduce import build_system
from cmunext_nb.weights import atomic_write
from machine import machine

ROOT = Path(__file__).resolve().parent.parent


def training_minutes(history): return sum(r["seconds"] for r in history.rows) / 60


def looker(every, epochs, valid, path, six="scales"):
    "A hook that scores the averaged weights with six looks after every so many epochs, into a file of lines, so that a kill loses none."
    def look(run):
        if not every or run.epoch % every and run.epoch < epochs: return
        begun, network = time.monotonic(), TTAWrapper(run.average.model if run.average else run.model, six)
        trained = training_minutes(run.history) + (begun - run.clock) / 60  # since the last row's seconds were taken
        scores = cn.evaluate(network, valid, amp=run.recipe.amp)
        taken = time.monotonic() - begun
        run.clock += taken  # not time of the training
        line = dict(epoch=run.epoch, **{k: round(100 * scores[k], 2) for k in ("iou", "f1")}, trained=trained, looked=taken / 60)
        with open(path, "a") as file: file.write(json.dumps(line) + "\n")
    return look


def looked(path, target):
    "What the lines say: the first that reaches the target, or the best, with the minutes of training and scoring until then; of two of one epoch the later counts."
    if not path.exists(): return None
    rows = list({r["epoch"]: r for r in map(json.loads, path.read_text().splitlines())}.values())
    first = next((r for r in rows if r["iou"] >= target), None)
    row = first or max(rows, key=lambda r: r["iou"])
    minutes = row["trained"] + sum(r["looked"] for r in rows if r["epoch"] <= row["epoch"])
    return dict(reached=first is not None, epoch=row["epoch"], iou=row["iou"], f1=row["f1"], minutes=round(minutes, 1), last={k: rows[-1][k] for k in ("epoch", "iou", "f1")})


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--target", type=float, default=68.84, help="IoU in percent (default: 68.84, the paper's mean of three splits)")
    p.add_argument("--root", help="folder of BUSI")
    p.add_argument("--recipe", default="fast")
    p.add_argument("--epochs", type=int, default=150, help="length of the schedule (default: 150)")
    p.add_argument("--start", help="weights to begin with, as in cmunext_nb.reproduce (default: random)")
    p.add_argument("--seed", type=int, default=41)
    p.add_argument("--looks", type=int, default=0, help="also score with six looks after every so many epochs (default: never)")
    p.add_argument("--six", choices=("scales", "zoom"), default="scales", help="sizes of the six looks, as tta of predict (default: scales)")
    p.add_argument("--device")
    p.add_argument("--out", type=Path, help="(default: benchmarks/time_to_accuracy.json, with another recipe time_to_accuracy_RECIPE.json)")
    a = p.parse_args()
    out = a.out or ROOT / f"benchmarks/time_to_accuracy{'' if a.recipe == 'fast' else '_' + a.recipe}.json"
    train, valid = cn.load_dataset("busi", root=a.root, split=1, size=256)
    model = build_system("cmunext_s", a.seed, start=a.start)
    folder = ROOT / f"runs/time_to_accuracy_{a.recipe}_{a.epochs}_{a.start or 'random'}_{a.seed}"
    look = looker(a.looks, a.epochs, valid, folder / f"looks_{a.six}.jsonl", a.six)
    def below(run):
        look(run)
        return run.history.best.get("iou", 0) < a.target / 100
    history = cn.fit(model, train, valid, a.recipe, epochs=a.epochs, seed=a.seed, device=a.device, on_epoch=below, out=folder)
    if history.interrupted: raise KeyboardInterrupt(history.message)
    result = dict(machine=dict(machine(), device=torch.cuda.get_device_name() if torch.cuda.is_available() and a.device != "cpu" else "CPU"),
                  target=a.target, reached=history.best["iou"] >= a.target / 100, best_iou=round(100 * history.best["iou"], 2), best_epoch=history.best["epoch"], last_iou=round(100 * history.last.get("iou", 0), 2),
                  minutes=round(training_minutes(history), 1), epochs_done=len(history.rows), schedule=f"{a.recipe}, {a.epochs} epochs", start=a.start or "random", seed=a.seed,
                  six=a.six, six_looks=looked(folder / f"looks_{a.six}.jsonl", a.target))
    with atomic_write(out) as file: file.write((json.dumps(result, indent=2) + "\n").encode())
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    try: main()
    except KeyboardInterrupt as e: sys.exit(str(e) or "interrupted; the same command goes on")
