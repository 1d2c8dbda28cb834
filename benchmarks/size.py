"""Time and memory of CMUNeXt-S against the image's size: python benchmarks/size.py [--threads 2] [--tiled 8192] [--out FILE]

Sides of 128 to 2048 pixels, each in a process of its own, which reports the median time of a call and the most memory that the process
ever took, less what it took before the first call. Both are fitted as a power of the number of pixels. `--tiled 8192` also runs
`predict_tiled` on an image of that side, with all its memory counted, PyTorch's own included; the engine reads an ONNX file, as it would
where the network is used, since exporting takes memory of its own. 0 leaves it out. Prints JSON.
"""
import argparse, json, math, os, resource, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import torch
from machine import machine

import cmunext_nb as cn
from cmunext_nb.deploy import deploy, export_onnx, predict_tiled

SIDES = (128, 256, 512, 1024, 2048)
UNIT = 1024 if sys.platform == "darwin" else 1  # ru_maxrss counts bytes there, kilobytes elsewhere


def memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / UNIT / 1000


def once(engine, side, threads):
    "Time and memory of one side."
    torch.set_num_threads(threads)
    model = cn.create_model("cmunext_s", pretrained="phantom").eval()
    net = deploy(model, engine) if engine != "eager" else model
    with torch.inference_mode():
        net(torch.zeros(1, 3, 32, 32))
        x, before, times = torch.randn(1, 3, side, side), memory(), []
        for _ in range(max(3, min(15, 2 * 1024**2 // side**2 + 1))):
            start = time.perf_counter()
            net(x)
            times.append(1000 * (time.perf_counter() - start))
    return dict(side=side, median_ms=round(statistics.median(times[1:]), 1), memory_mb=round(memory() - before, 1))


def tiled(file, engine, side, threads, tile):
    "An image too large for the memory, with everything counted that the process ever took."
    torch.set_num_threads(threads)
    scan = cn.make_phantom(1, size=256, seed=3)[0][0]
    image = scan.repeat(1, side // 256, side // 256).numpy()[0]
    net, before = deploy(file, engine), memory()
    start = time.perf_counter()
    mask = predict_tiled(net, image, tile=tile).mask
    return dict(side=side, tile=tile, engine=engine, seconds=round(time.perf_counter() - start, 1), peak_memory_mb=round(memory()), before_mb=round(before), mask_share=round(float(mask.mean()), 4), load=round(os.getloadavg()[0], 1))


def exponent(rows, key):
    "Slope of log(key) over log(pixels) by least squares."
    x, y = [math.log(r["side"]**2) for r in rows], [math.log(max(r[key], 1e-3)) for r in rows]
    mx, my = statistics.mean(x), statistics.mean(y)
    return round(sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx)**2 for a in x), 3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("threads", 2), ("tiled", 8192), ("tile", 832)): parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--engines", nargs="+", default=["eager", "openvino"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--onnx", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        kind, side = args.one[0].split(":"), int(args.one[1])
        print(json.dumps(tiled(args.onnx, kind[1], side, args.threads, args.tile) if kind[0] == "tiled" else once(kind[1], side, args.threads)))
        return
    def run(kind, engine, side, *more):
        command = [sys.executable, __file__, "--one", f"{kind}:{engine}", str(side), "--threads", str(args.threads), "--tile", str(args.tile), *more]
        return json.loads(subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip().splitlines()[-1])
    result = dict(machine=dict(machine(), threads=args.threads), engines={})
    for engine in args.engines:
        rows = [run("once", engine, side) for side in SIDES]
        result["engines"][engine] = dict(rows=rows, time_exponent=exponent(rows, "median_ms"), memory_exponent=exponent(rows[1:], "memory_mb"))
    if args.tiled:
        with tempfile.TemporaryDirectory() as folder:
            file = export_onnx(cn.create_model("cmunext_s", pretrained="phantom").eval(), Path(folder) / "cmunext_s.onnx")
            result["tiled"] = run("tiled", "openvino", args.tiled, "--onnx", str(file))
    text = json.dumps(result, indent=1)
    print(text)
    args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__": main()
