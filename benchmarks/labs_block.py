"""How long the block lab takes for each movement: python benchmarks/labs_block.py [--rounds 9] [--out FILE]

A movement is what a learner waits for in the kernel: the control's value is set, the block is computed, the picture is drawn and packed,
the words are made. Each control goes to and fro between two values, in turns with the others, and the median and the slowest of all
rounds are kept, in milliseconds, and the processor's time. The first picture of a trained block, which runs the network, is timed apart. The way to the browser
is not in it. Writes benchmarks/labs_block.json and prints it; absolute times belong to the machine.
"""
import argparse, json, statistics, time
from pathlib import Path

import ipywidgets
import matplotlib
import numpy as np
import torch
from cmunext_nb.labs import BlockLab, new_figure, png
from cmunext_nb.labs.block import Sheet

from machine import machine

MOVES = {"row": (3, 8), "column": (3, 8), "channel": (0, 3), "part": ("channels", "space"), "kernel": ("blur", "edge"), "kernel_size": (9, 5), "channels": (16, 4),
         "expansion": (8, 4), "residual": (False, True)}
STATES = {"default": {}, "3 x 3": dict(kernel_size=3), "9 x 9 in the corner": dict(kernel_size=9, row=0, column=0), "16 channels": dict(channels=16),
          "mix": dict(part="channels"), "mix, 16 channels, ratio 8": dict(part="channels", channels=16, expansion=8), "trained 7 x 7": dict(kernel="encoder.2.blocks.0"),
          "trained 9 x 9": dict(kernel="encoder.4.blocks.0"), "trained, mix of 64 channels": dict(kernel="encoder.4.blocks.0", part="channels")}


def milliseconds(action):
    "Time on the wall, and of the processor, which says less of what else the machine does."
    start = time.perf_counter(), time.process_time()
    action()
    return 1000 * (time.perf_counter() - start[0]), 1000 * (time.process_time() - start[1])


def report(pairs):
    wall, cpu = zip(*pairs)
    return dict(median_ms=round(statistics.median(wall), 1), slowest_ms=round(max(wall), 1), cpu_ms=round(statistics.median(cpu), 1))


def controls(lab, rounds):
    "Each control moved to and fro, in turns."
    taken = {name: [] for name in MOVES}
    for i in range(rounds + 1):
        for name, values in MOVES.items():
            for value in values:
                ms = milliseconds(lambda: setattr(lab.controls[name], "value", value))
                if i: taken[name].append(ms)  # the first round warms up
    return {name: report(v) for name, v in taken.items()}


def steps(lab, rounds):
    "A step to the next pixel, in states that draw little and much."
    found, start = {}, lab.state
    for name, state in STATES.items():
        lab.put(**{**start, **state})
        column = lab.controls["column"]
        found[name] = report([milliseconds(lambda: setattr(column, "value", 1 - min(column.value, 1))) for _ in range(rounds + 2)][2:])
    lab.put(**start)
    return found


def first_sight(lab):
    "The first picture of each trained block after a new image."
    found = {}
    for name in lab.blocks:
        lab.put(kernel="edge")
        lab._take(lab.pixels)
        found[name] = report([milliseconds(lambda: setattr(lab.controls["kernel"], "value", name))])
    lab.put(kernel="edge")
    return found


def drawing(rounds, n=243):
    "As many numbers as a 9 x 9 step has, as texts of matplotlib and as outlines of the lab's sheet, in turns."
    values, taken = torch.randn(n // 9, 9).numpy(), dict(texts=[], outlines=[])
    def texts():
        figure = new_figure(8.4, 4.8)
        ax = figure.add_axes((0, 0, 1, 1), xlim=(0, 9), ylim=(n / 9, 0))
        for (i, j), v in np.ndenumerate(values): ax.text(j + 0.5, i + 0.5, f"{v:.2f}", ha="center", va="center", fontsize=6)
        png(figure)
    def outlines():
        figure = new_figure(8.4, 4.8)
        sheet = Sheet(figure)
        sheet.numbers(values, (0, 0, 840, 480))
        sheet.finish()
        png(figure)
    for i in range(rounds + 1):
        for name, action in dict(texts=texts, outlines=outlines).items():
            ms = milliseconds(action)
            if i: taken[name].append(ms)
    return {name: report(v) for name, v in taken.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    about, lab = dict(machine(), matplotlib=matplotlib.__version__, ipywidgets=ipywidgets.__version__), BlockLab()
    result = dict(machine=about, rounds=args.rounds, goal_ms=150, opening=report([milliseconds(BlockLab)]), first_sight=first_sight(lab),
                  controls=controls(lab, args.rounds), a_step=steps(lab, args.rounds), numbers=drawing(args.rounds))
    medians = [r["median_ms"] for r in (*result["controls"].values(), *result["a_step"].values(), *result["first_sight"].values())]
    result["slowest_median_ms"] = max(medians)
    text = json.dumps(result, indent=2)
    print(text)
    args.out.write_text(text + "\n")


if __name__ == "__main__": main()
