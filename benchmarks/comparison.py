"""Parameters, MACs and latency of every network of Table 2, in one run: python benchmarks/comparison.py [--rounds 3] [--device cpu] [--out FILE]

One image of 256 x 256, batch 1, float32, random weights, channels first, as a plain PyTorch user would call it. The networks take turns:
a round is a few calls of each, so that a machine whose load varies treats them alike; the median over all rounds is kept, with its middle
half. Ratios to CMUNeXt-S mean something elsewhere, the milliseconds belong to the machine. Notebook 51 reads the file.
"""
import argparse, gc, json, statistics
from pathlib import Path

import torch
from cmunext_nb.cost import cost_table, latency
from cmunext_nb.paper import TABLE2, TABLE3
from cmunext_nb.reproduce import build_system
from machine import machine

ROOT = Path(__file__).resolve().parent.parent


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--repeats", type=int, default=3, help="calls a round")
    p.add_argument("--device", default="cpu")
    p.add_argument("--out", type=Path, default=ROOT / "cmunext_nb/assets/comparison.json")
    a = p.parse_args()
    names, times, rows = list(dict.fromkeys([*TABLE2, *TABLE3])), {}, {}
    for turn in range(a.rounds):
        for name in names:
            model = build_system(name).eval()
            if turn == 0: rows[name] = {k: v for k, v in cost_table({name: model}, 256).rows[0].items() if k in ("parameters", "macs", "flops", "activations_mb")}
            measured = latency(model, 256, repeats=a.repeats, warmup=1, device=a.device, channels_last=False)
            times.setdefault(name, []).extend(measured.times)
            del model
            gc.collect()
            print(turn + 1, name, [round(t, 1) for t in measured.times], flush=True)
    for name, taken in times.items():
        low, middle, high = statistics.quantiles(taken, n=4)
        rows[name].update(latency_ms=round(middle, 1), middle_half_ms=[round(low, 1), round(high, 1)], calls=len(taken),
                          ratio=round(middle / statistics.median(times["cmunext_s"]), 3))
    method = f"median of {a.rounds} x {a.repeats} calls, one image of 256 x 256, float32, random weights, {a.device}"
    result = dict(machine=dict(machine(), device=torch.cuda.get_device_name() if a.device == "cuda" else "CPU"), method=method, networks=rows)
    a.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__": main()
