"""Images a second of `make_phantom`: python benchmarks/phantom.py [--n 64] [--size 256] [--threads 2] [--out FILE]

Makes the images once to warm up, then in several rounds, and reports the best round, since other work on the machine can only slow
it down. `cpu_ms` is the processor time that one image took, over all threads. Prints JSON; absolute figures belong to the machine.
"""
import argparse, json, platform, time
from pathlib import Path

import numpy as np
import torch
from cmunext_nb.phantom import make_phantom


def measure(n, size, rounds):
    "Images a second and processor time of the best of several rounds."
    make_phantom(min(n, 8), size)
    best = dict(images_per_second=0.0)
    for seed in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        make_phantom(n, size, seed)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if n / wall > best["images_per_second"]: best = dict(images_per_second=round(n / wall, 1), cpu_ms=round(1000 * cpu / n, 1))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("n", 64), ("size", 256), ("threads", 2), ("rounds", 5)): parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = dict(measure(args.n, args.size, args.rounds), n=args.n, size=args.size, threads=args.threads, target=60,
                  numpy=np.__version__, torch=torch.__version__, python=platform.python_version(), system=platform.system())
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__": main()
