"""Minutes until CMUNeXt-S reaches the paper's validation IoU on BUSI's split 1: python benchmarks/time_to_accuracy.py [--target 68.84] [--epochs 150]

Trains with one schedule of a fixed length, stops after the first validation (of the averaged weights, all 195 images, the mean of per-image
IoU) that reaches the target, and writes the minutes, or the best that was reached where it never did. Validation is part of the time.
Resumes after a kill, since its minutes are those of the epochs. `--start phantom` begins with the shipped weights of synthetic scans.
"""
import argparse, json
from pathlib import Path

import torch
import cmunext_nb as cn
from cmunext_nb.reproduce import build_system
from machine import machine

ROOT = Path(__file__).resolve().parent.parent


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--target", type=float, default=68.84, help="IoU in percent (default: 68.84, the paper's mean of three splits)")
    p.add_argument("--root", help="folder of BUSI")
    p.add_argument("--recipe", default="fast")
    p.add_argument("--epochs", type=int, default=150, help="length of the schedule (default: 150)")
    p.add_argument("--start", help="weights to begin with, as in cmunext_nb.reproduce (default: random)")
    p.add_argument("--seed", type=int, default=41)
    p.add_argument("--device")
    p.add_argument("--out", type=Path, default=ROOT / "benchmarks/time_to_accuracy.json")
    a = p.parse_args()
    train, valid = cn.load_dataset("busi", root=a.root, split=1, size=256)
    model = build_system("cmunext_s", a.seed, start=a.start)
    below = lambda run: run.history.best.get("iou", 0) < a.target / 100
    history = cn.fit(model, train, valid, a.recipe, epochs=a.epochs, seed=a.seed, device=a.device, on_epoch=below,
                     out=ROOT / f"runs/time_to_accuracy_{a.recipe}_{a.epochs}_{a.start or 'random'}_{a.seed}")
    minutes = sum(r["seconds"] for r in history.rows) / 60
    result = dict(machine=dict(machine(), device=torch.cuda.get_device_name() if torch.cuda.is_available() and a.device != "cpu" else "CPU"),
                  target=a.target, reached=history.best["iou"] >= a.target / 100, best_iou=round(100 * history.best["iou"], 2), best_epoch=history.best["epoch"],
                  minutes=round(minutes, 1), epochs_done=len(history.rows), schedule=f"{a.recipe}, {a.epochs} epochs", start=a.start or "random", seed=a.seed)
    a.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__": main()
