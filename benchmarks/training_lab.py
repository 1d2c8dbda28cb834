"""How much the training lab slows a training down: python benchmarks/training_lab.py [--size 64] [--rounds 5] [--threads 2] [--out FILE]

The same training, same seeds, same data, in one process and in turns: in a thread without anybody watching (`Training`), and in the
lab, which draws curves and four predictions meanwhile. What counts is the ratio of the medians; absolute times belong to the machine.
The clock runs from the first step to the last, so that making a network and the last picture, which happen once, are left out. Prints JSON.
"""
import argparse, json, statistics, time
from pathlib import Path

import torch
from cmunext_nb.labs.training import Training, TrainingLab
from cmunext_nb.model import create_model
from cmunext_nb.phantom import make_phantom

from machine import machine


def plain(train, valid, args):
    "Seconds from the first step to the last, without a lab."
    torch.manual_seed(41)
    times = []
    training = Training(create_model(args.model), train, valid, lambda t: times.append(time.perf_counter()) if t.running else None,
                        recipe=args.recipe, epochs=args.epochs, validate_every=1)
    training.start()
    training.wait()
    return times[-1] - times[0]


def with_lab(lab, args):
    "The same in the lab, the number of pictures, and the milliseconds of one."
    times, pictures, watch, paint = [], [], lab._watch, lab._paint
    def timed(training):
        watch(training)
        if training.running: times.append(time.perf_counter())
    def counted():
        start = time.perf_counter()
        paint()
        pictures.append(1000 * (time.perf_counter() - start))
    lab._watch, lab._paint = timed, counted
    try:
        lab.start()
        lab.wait()
    finally: lab._watch, lab._paint = watch, paint
    if lab.training.trouble: raise lab.training.trouble
    return times[-1] - times[0], len(pictures), statistics.median(pictures)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cmunext_s")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, valid = make_phantom(args.images, size=args.size, seed=1), make_phantom(16, size=args.size, seed=2)
    lab = TrainingLab(train, valid, epochs=args.epochs, recipe=args.recipe)
    lab.put(variant=args.model)
    rows = [(plain(train, valid, args), *with_lab(lab, args)) for _ in range(args.rounds + 1)][1:]  # the first round warms up
    alone, seen, pictures, cost = (statistics.median(column) for column in zip(*rows))
    result = dict(machine=machine(), model=args.model, recipe=args.recipe, size=args.size, images=args.images, epochs=args.epochs, rounds=args.rounds,
                  plain_s=round(alone, 2), lab_s=round(seen, 2), ratio=round(seen / alone, 3),
                  ratio_of_fastest=round(min(r[1] for r in rows) / min(r[0] for r in rows), 3), pictures=pictures, picture_ms=round(cost))
    text = json.dumps(result, indent=1)
    print(text)
    args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__": main()
