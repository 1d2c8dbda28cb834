"""One training step of `fit` against the plain eager float32 step: python benchmarks/train_step.py [--models cmunext_s cmunext] [--out FILE]

Both steps run in this one process, in turns, on the same batch size and image size, so that the ratio of their medians means
something on a machine whose clock and load vary. The plain step is what a first version of a training script does: a batch that is
ready in float32, forward, loss, backward, SGD. The step of `fit` does all of its own work: it takes uint8 images, augments,
normalises, and trains by the recipe, with mixed precision where the machine has it. Prints JSON; absolute times belong to the machine.
"""
import argparse, json, statistics, time
from pathlib import Path

import torch
from cmunext_nb.loss import BCEDiceLoss
from cmunext_nb.model import create_model
from cmunext_nb.train import _batches, get_recipe, start_run, train_step
from cmunext_nb.weights import preprocess, to_channels

from machine import machine


def blobs(n, size):
    "Noise with a dark ellipse, and the ellipse: enough to time a step with."
    g = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    masks = ((x * 2) ** 2 + (y * 3) ** 2 < 1).byte().expand(n, 1, size, size).contiguous()
    return (torch.randint(60, 180, (n, 1, size, size), generator=g) - 40 * masks).byte(), masks


def plain_step(model, x, masks, loss_fn, optimizer):
    "The step that everybody writes first."
    optimizer.zero_grad()
    loss_fn(model(x), masks).backward()
    optimizer.step()


def measure(name, args):
    "Median seconds of both steps of one network, taken in turns."
    data = blobs(args.batch_size, args.size)
    recipe = get_recipe(args.recipe, batch_size=args.batch_size, sizes=None)
    run = start_run(create_model(name), data, recipe=recipe, device="cpu")
    run.model.train()
    model = create_model(name).train()
    x, masks = preprocess(to_channels(data[0], 3)), data[1].float()
    loss_fn, optimizer = BCEDiceLoss(), torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4)
    index, seconds = _batches(run)[0], dict(plain=[], fit=[])
    steps = dict(plain=lambda: plain_step(model, x, masks, loss_fn, optimizer), fit=lambda: train_step(run, index))
    for i in range(args.warmup + args.rounds):
        for kind, step in steps.items():
            start = time.perf_counter()
            step()
            if i >= args.warmup: seconds[kind].append(time.perf_counter() - start)
        run.step = 0  # stay in the recipe's first epoch
    return report(seconds, run)


def report(seconds, run):
    "Medians, their spread, and the ratio."
    median = {k: statistics.median(v) for k, v in seconds.items()}
    return dict(plain_s=round(median["plain"], 3), fit_s=round(median["fit"], 3), ratio=round(median["fit"] / median["plain"], 3),
                ratio_of_fastest=round(min(seconds["fit"]) / min(seconds["plain"]), 3), precision=str(run.dtype)[6:], rounds=len(seconds["fit"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["cmunext_s"])
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    result = dict(machine=machine(), batch_size=args.batch_size, size=args.size, recipe=args.recipe,
                  models={name: measure(name, args) for name in args.models})
    text = json.dumps(result, indent=2)
    print(text)
    if args.out: args.out.write_text(text + "\n")


if __name__ == "__main__": main()
