"""Time of augmentation on whole uint8 batches: python benchmarks/augment.py [--size 256] [--batch 8] [--threads 2]

Prints one JSON object: for each recipe, and for one and three channels, milliseconds a batch by the clock (median and best of
several rounds, the recipes taken in turn so that a busy moment of the machine meets all of them), processor milliseconds
(all threads together; on a shared machine the steadier figure) and images a second.
"""
import argparse, json, statistics, time

import torch

from cmunext_nb.augment import Augment, augment, augmentations
from cmunext_nb.phantom import make_phantom


def once(images, masks, recipe, generator):
    "Milliseconds of one call: by the clock, and of the processor."
    if images.is_cuda: torch.cuda.synchronize()
    start, cpu = time.perf_counter(), time.process_time()
    augment(images, masks, recipe, generator)
    if images.is_cuda: torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - cpu)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("size", 256), ("batch", 8), ("threads", 2), ("rounds", 40)): parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images, masks = (x.to(args.device) for x in make_phantom(args.batch, args.size))
    recipes = {**augmentations, "everything": Augment(0.5, 0.5, 0.5, 20, 0.25, 0.08, 5, 0.4, 0.25, 0.08, 0.5, 0.1)}
    generator, result = torch.Generator().manual_seed(0), {}
    for channels in (1, 3):
        batch = images.expand(-1, channels, -1, -1).contiguous(memory_format=torch.channels_last)
        times = {name: [] for name in recipes}
        for i in range(args.rounds + 3):
            for name, recipe in recipes.items(): times[name].append(once(batch, masks, recipe, generator))
        for name, ms in times.items():
            ms, cpu = zip(*ms[3:])  # the first calls warm up
            result[f"{name}, {channels} channel{'s' * (channels > 1)}"] = dict(
                median_ms=round(statistics.median(ms), 2), best_ms=round(min(ms), 2), processor_ms=round(statistics.median(cpu), 2),
                images_per_s=round(1000 * args.batch / statistics.median(ms)))
    print(json.dumps(dict(batch=args.batch, size=args.size, threads=args.threads, device=args.device, torch=torch.__version__, results=result), indent=1))


if __name__ == "__main__": main()
