"""Batch norm on the CPU by number of channels: python benchmarks/batch_norm.py [--out FILE]

Forward and backward of one norm in training, in channels_last, with one thread and with two, by torch and by `wide_norm`, in nanoseconds for each
number of the map; medians, all ways in turns, memory kept. Prints JSON.
"""
import argparse, json, statistics, time
from contextlib import nullcontext
from pathlib import Path

import torch
from cmunext_nb.cpu import keep_memory, wide_norm
from torch import nn

from machine import machine

WAYS = dict(one_thread=(1, nullcontext), two_threads=(2, nullcontext), two_threads_wide=(2, wide_norm))


def passes(channels, dtype, pixels=1 << 19):
    "A function that makes both passes of one norm, and the numbers in its map."
    shape = (8, channels, pixels // 8 // 256, 256)
    x, grad = (torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2))
    norm = nn.BatchNorm2d(channels)
    x.requires_grad_()
    return lambda: norm(x).backward(grad), x.numel()


def measure(channels, dtype, rounds):
    "Median nanoseconds a number in each way."
    both, numbers = passes(channels, dtype)
    seconds = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, (threads, context) in WAYS.items():
            torch.set_num_threads(threads)
            for timed in (False, True, True):
                start = time.perf_counter()
                with context(): both()
                if timed: seconds[way].append(time.perf_counter() - start)
    return {way: round(1e9 * statistics.median(s) / numbers, 2) for way, s in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[4, 8, 12, 16, 20, 24, 32, 40, 48, 56, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args, result = parser.parse_args(), dict(machine=machine(), nanoseconds={})
    with keep_memory():
        for dtype in (torch.float32, torch.bfloat16):
            result["nanoseconds"][str(dtype)[6:]] = {c: measure(c, dtype, args.rounds) for c in args.channels}
    text = json.dumps(result, indent=1)
    print(text)
    if args.out: args.out.write_text(text + "\n")


if __name__ == "__main__": main()
