"""How long looking takes: python benchmarks/receptive_field.py [--threads 2] [--rounds 5] [--out FILE]

Times `receptive_field` (theory, no gradient) for the three variants, `effective_receptive_field` on 16 images of 256 px with
CMUNeXt-S (target: 5 s on 2 cores), and one movement of each kind of the ReceptiveFieldLab (targets: 150 ms where no gradient is
needed, 400 ms where one is). Each is run once to warm up and then in several rounds; the median and the best are reported, since
other work on the machine can only slow it down. Prints JSON; absolute times belong to the machine.
"""
import argparse, json, statistics, time
from pathlib import Path

import torch
from cmunext_nb.model import create_model
from cmunext_nb.phantom import make_phantom
from cmunext_nb.receptive_field import effective_receptive_field, receptive_field

from machine import machine


def timed(action, rounds):
    "Median and best milliseconds of an action that is given the number of the round."
    action(0)
    taken = []
    for i in range(1, rounds + 1):
        start = time.perf_counter()
        action(i)
        taken.append(1000 * (time.perf_counter() - start))
    return dict(median_ms=round(statistics.median(taken), 1), best_ms=round(min(taken), 1))


def functions(rounds):
    "The two functions themselves."
    nets = {name: create_model(name) for name in ("cmunext_s", "cmunext", "cmunext_l")}
    images, small = make_phantom(16, 256, 5)[0], nets["cmunext_s"]
    rows = {f"theory, {name}, {layer or 'logits'}": timed(lambda i: receptive_field(net, layer), rounds)
            for name, net in nets.items() for layer in ("encoder.4", None)}
    rows["effective, cmunext_s, logits, 1 image"] = timed(lambda i: effective_receptive_field(small, images[i:i + 1]), rounds)
    rows["effective, cmunext_s, logits, 16 images"] = dict(timed(lambda i: effective_receptive_field(small, images), min(rounds, 3)), target_ms=5000)
    return rows


def lab(rounds):
    "One movement of each kind in the lab, as a reader makes it: one control, one new picture that was not seen before."
    from cmunext_nb.labs.receptive_field import ReceptiveFieldLab
    model, images, rows = create_model("cmunext_s", pretrained="phantom"), make_phantom(rounds + 1, 256, 5)[0], {}
    layers = ["encoder.4", "encoder.3", "encoder.2", "encoder.1", "decoder.0", "decoder.1", "decoder.2", "encoder.4.blocks", "encoder.3.blocks"]
    values = dict(row=range(8, 250, 9), image=range(rounds + 1), layer=layers, K5=range(3, 21, 2))
    for heat, layer, target in (("none", "encoder.4", 150), ("none", "logits", 150), ("logarithmic", "encoder.4", 400), ("logarithmic", "logits", 400)):
        for name in values:
            if name == "layer" and layer == "logits": continue
            made = ReceptiveFieldLab(model, images).put(heat=heat, layer=layer)
            options = [v for v in values[name] if v != made.state[name] and (name != "layer" or v in made.layers)]
            move = lambda i: setattr(made.controls[name], "value", options[i % len(options)])
            rows[f"{name}, at {layer}, heat {heat}"] = dict(timed(move, min(rounds, len(options) - 1)), target_ms=target)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = dict(machine=machine(), size=256, rounds=args.rounds, functions=functions(args.rounds), lab=lab(args.rounds))
    result["met"] = all(row["median_ms"] <= row["target_ms"] for part in ("functions", "lab") for row in result[part].values() if "target_ms" in row)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__": main()
