"""One training step of `fit` against the plain eager float32 step: python benchmarks/train_step.py [--models cmunext_s cmunext] [--out FILE]

All ways run in turns, on the same batch size and image size, so that the ratio of their medians means something on a machine whose
clock and load vary; in two processes, one of which never touches its allocator. The plain step is what a first version of a training script does: a batch that is
ready in float32, forward, loss, backward, SGD. The step of `fit` does all of its own work: it takes uint8 images, augments,
normalises, and trains by the recipe, with mixed precision where the machine has it. Between them stand the plain step in memory that is
kept (nbs/14b_cpu.ipynb), and the step of `fit` without kept memory or without the wide norm. Prints JSON; absolute times belong to the machine.

With `--device cuda` a third way runs beside them: `fit` with its steps recorded as a CUDA graph, as it does by itself on a GPU. The set is on
the card, and `network_s` is the time of the network's own kernels in a step (forward, loss and backward, recorded and played back alone).
"""
import argparse, json, multiprocessing, statistics, time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from cmunext_nb import train
from cmunext_nb.cpu import keep_memory
from cmunext_nb.loss import BCEDiceLoss
from cmunext_nb.model import create_model
from cmunext_nb.train import _batches, _forward, get_batch, get_recipe, start_run, train_step
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


def ways_of(name, args):
    "The run of `fit`, and its step, the plain one, and that of `fit` with torch's own norms."
    data = blobs(args.batch_size, args.size)
    run = start_run(create_model(name), data, recipe=get_recipe(args.recipe, batch_size=args.batch_size, sizes=None, **dict(amp=args.amp) if args.amp else {}), device="cpu")
    run.model.train()
    model, index = create_model(name).train(), _batches(run)[0]
    x, masks = preprocess(to_channels(data[0], 3)), data[1].float()
    loss_fn, optimizer = BCEDiceLoss(), torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4)
    def fit_step():
        train_step(run, index)
        run.step = 0  # stay in the recipe's first epoch
    def narrow_step():
        with patch.object(train, "wide_norm", nullcontext): fit_step()
    return run, dict(plain=lambda: plain_step(model, x, masks, loss_fn, optimizer), fit=fit_step, narrow=narrow_step)


def serve(pipe, name, args, keep):
    "A process that times steps of the ways it is asked for: one to settle, then two on the clock. Without `keep` its allocator is as it comes."
    run, ways = ways_of(name, args)
    with keep_memory() if keep else nullcontext():
        pipe.send(str(run.dtype)[6:])
        for way in iter(pipe.recv, None):
            ways[way]()
            seconds = []
            for _ in range(2):
                start = time.perf_counter()
                ways[way]()
                seconds.append(time.perf_counter() - start)
            pipe.send(seconds)


WAYS = dict(plain=("plain", False), plain_kept=("plain", True), fit_fresh=("fit", False), fit_narrow=("narrow", True), fit=("fit", True))


def measure(name, args):
    "Median seconds of a step of one network in each way, in turns, in two processes: once set, an allocator never is as it came."
    spawn, pipes, workers = multiprocessing.get_context("spawn"), {}, []
    for keep in (False, True):
        pipes[keep], theirs = spawn.Pipe()
        workers.append(spawn.Process(target=serve, args=(theirs, name, args, keep), daemon=True))
        workers[-1].start()
    precision, seconds = [p.recv() for p in pipes.values()][0], {k: [] for k in WAYS}
    for _ in range(args.rounds):
        for kind, (way, keep) in WAYS.items():
            pipes[keep].send(way)
            seconds[kind] += pipes[keep].recv()
    for p, w in zip(pipes.values(), workers):
        p.send(None)
        w.join()
    return report(seconds, precision)


def wait(): torch.cuda.synchronize()


def lap(call, rounds):
    "Seconds of one of so many calls, with the GPU at rest before and after."
    wait()
    start = time.perf_counter()
    for _ in range(rounds): call()
    wait()
    return (time.perf_counter() - start) / rounds


def epoch_of(run, rounds):
    "A function that makes one step after another, as an epoch of `fit` does, each naming the next batch."
    batches = _batches(run)
    def step():
        run.following, run.epoch = batches[(run.step + 1) % len(batches)], 0
        train_step(run, batches[run.step % len(batches)])
        run.images_seen = 1  # never the first step of an epoch
        if run.step == run.steps - 1: run.step = 0
    return step


def network_alone(run):
    "A recording of forward, loss and backward, without augmentation, optimizer and average."
    x, masks = get_batch(run, _batches(run)[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run.optimizer.zero_grad(set_to_none=True)
        _forward(run, x, masks).backward()
    return graph.replay


def measure_cuda(name, args):
    "Median seconds of a plain step, of `fit` launched and recorded, and of the network's kernels, in turns; and the largest memory."
    torch.cuda.reset_peak_memory_stats()
    data = blobs(args.batch_size * 8, args.size)
    recipe = get_recipe(args.recipe, batch_size=args.batch_size, sizes=None, **dict(amp=args.amp) if args.amp else {})
    runs = {k: start_run(create_model(name), data, recipe=recipe, device="cuda", cuda_graph=k == "fit") for k in ("launched", "fit")}
    model = create_model(name).train().cuda()
    x, masks = preprocess(to_channels(data[0][:args.batch_size], 3)).cuda(), data[1][:args.batch_size].float().cuda()
    loss_fn, optimizer = BCEDiceLoss(), torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4)
    steps = dict(plain=lambda: plain_step(model, x, masks, loss_fn, optimizer), **{k: epoch_of(run, args.rounds) for k, run in runs.items()})
    for step in steps.values(): lap(step, 8)
    steps["network"] = network_alone(runs["fit"])
    seconds = {k: [] for k in steps}
    for _ in range(args.rounds):
        for kind, step in steps.items(): seconds[kind].append(lap(step, 20))
    median = {f"{k}_s": round(statistics.median(v), 6) for k, v in seconds.items()}
    recorded = runs["fit"].cuda_graph and any(not isinstance(r, int) for r in runs["fit"].recorded.values())
    return dict(median, ratio=round(median["fit_s"] / median["plain_s"], 3), share_of_network=round(median["network_s"] / median["fit_s"], 3), recorded=recorded,
                images_per_second=round(args.batch_size / median["fit_s"]), precision=str(runs["fit"].dtype)[6:], memory_mb=round(torch.cuda.max_memory_allocated() / 1e6))


def report(seconds, precision):
    "Medians, and the ratio."
    median = {f"{k}_s": round(statistics.median(v), 3) for k, v in seconds.items()}
    return dict(median, ratio=round(median["fit_s"] / median["plain_s"], 3), ratio_of_fastest=round(min(seconds["fit"]) / min(seconds["plain"]), 3),
                times_faster=round(median["plain_s"] / median["fit_s"], 2), precision=precision, steps=len(seconds["fit"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["cmunext_s"])
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--amp", help="instead of the recipe's: auto, bf16, fp16 or off")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    about, how = (dict(machine(), gpu=torch.cuda.get_device_name()), measure_cuda) if args.device == "cuda" else (machine(), measure)
    result = dict(machine=about, batch_size=args.batch_size, size=args.size, recipe=args.recipe,
                  models={name: how(name, args) for name in args.models})
    text = json.dumps(result, indent=2)
    print(text)
    if args.out: args.out.write_text(text + "\n")


if __name__ == "__main__": main()
