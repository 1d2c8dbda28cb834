"""Latency of CMUNeXt on this machine: python benchmarks/cost.py [--models cmunext_s cmunext cmunext_l] [--threads 2] [--out FILE]

Every network is timed in three settings, float32 as it is, float32 with the channels last, and bfloat16 autocast with the channels
last, on one image of 256 x 256 (batch 1). The settings take turns in one process: a round is one `latency` of a few calls for each of
them, and the median over all calls of all rounds is kept, so that a machine whose clock and load vary treats them alike. The ratios
mean something elsewhere, the times belong to the machine. Prints JSON. `--device cuda` measures on a graphics card.
"""
import argparse, json, statistics
from pathlib import Path

import torch
from cmunext_nb.cost import _device_words, cost_table, latency
from cmunext_nb.model import create_model

from machine import machine

SETTINGS = dict(eager={}, channels_last=dict(channels_last=True), channels_last_bf16=dict(channels_last=True, dtype=torch.bfloat16))


def measure(model, args):
    "Median, middle half and fastest call of each setting, in milliseconds, and ratios to the first setting."
    times = {name: [] for name in SETTINGS}
    for _ in range(args.rounds):
        for name, options in SETTINGS.items():
            times[name] += latency(model, args.size, repeats=args.repeats, warmup=2, threads=args.threads, device=args.device, **options).times
    result = {}
    for name, taken in times.items():
        low, middle, high = statistics.quantiles(taken, n=4)
        result[name] = dict(median_ms=round(middle, 2), middle_half_ms=[round(low, 2), round(high, 2)], fastest_ms=round(min(taken), 2))
    ratio = lambda key: {name: round(result[name][key] / result["eager"][key], 3) for name in result}
    return dict(result, ratio_of_medians=ratio("median_ms"), ratio_of_fastest=ratio("fastest_ms"), calls=args.rounds * args.repeats)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["cmunext_s", "cmunext", "cmunext_l"])
    for name, value in (("size", 256), ("threads", 2), ("rounds", 6), ("repeats", 5)): parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    counts = {row["model"]: dict(parameters=row["parameters"], gmacs=round(row["macs"] / 1e9, 3)) for row in cost_table(args.models, args.size)}
    torch.set_num_threads(args.threads)
    result = dict(machine=dict(machine(), device=_device_words(torch.device(args.device))), size=args.size, batch_size=1,
                  models={name: dict(counts[name], **measure(create_model(name), args)) for name in args.models})
    text = json.dumps(result, indent=1)
    print(text)
    args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__": main()
