"""Inference in every engine, as ratios: python benchmarks/inference.py [--models cmunext_s cmunext cmunext_l] [--threads 2] [--seconds 30] [--out FILE]

One image of 256 x 256, then batches of 8. Every variant runs in a process of its own that does nothing else, as somebody who uses it would
run it, the plain eager float32 network too, which is the measure of all ratios. They take turns: in a round each waits until the threads of
the one before it sleep, is called for a tenth of a second (two calls at least) without being measured, since a core that was idle is slow at
first, and then three times measured. Rounds go on for so many seconds a network, three at least; the median over all rounds is kept, so that
a machine whose clock and load vary treats them alike. `eager_kept` and the other variants of torch keep their memory (nbs/14b_cpu.ipynb),
the plain network's allocator is as it comes. Beside them stand: how far the masks agree with the plain network's (Dice, phantoms that nothing
was trained on), the machine's own matrix product measured between the rounds, the time of each kind of operation in OpenVINO, and what GELU
takes of bfloat16. S has its shipped weights; the others are trained on phantoms first, for some minutes, once (runs/inference), since the
masks of untrained networks say nothing. Prints JSON. With --threads 1 a machine that is busy with something else disturbs least. Networks
that are not named keep their figures in FILE where they are this machine's.
"""
import argparse, json, multiprocessing, statistics, tempfile, time, warnings
from contextlib import nullcontext
from pathlib import Path

import torch
from machine import machine

import cmunext_nb as cn
from cmunext_nb.cpu import keep_memory
from cmunext_nb.deploy import _in_openvino, deploy, export_onnx, fold
from cmunext_nb.weights import preprocess, to_channels

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = ("eager", "eager_kept", "channels_last", "folded_channels_last", "onnxruntime_float32", "onnxruntime_int8", "openvino_float32", "openvino_bfloat16", "openvino_int8")


def matmul_peak(n=1024):
    "GFLOP/s of one float32 product of n x n matrices, 2 n^3 operations."
    a, b = torch.randn(n, n), torch.randn(n, n)
    a @ b
    start = time.perf_counter()
    a @ b
    return 2e-9 * n**3 / (time.perf_counter() - start)


def network(name):
    "Trained weights: those that are shipped, or some minutes on phantoms of 128 pixels. With the size that the network has learned at."
    if name == "cmunext_s": return cn.create_model(name, pretrained="phantom").eval(), 256
    weights = ROOT / f"runs/inference/{name}.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        model = cn.create_model(name)
        weights.parent.mkdir(parents=True, exist_ok=True)
        train, valid = cn.load_dataset("phantom", size=128)
        cn.fit(model, train, valid, "muon", epochs=30, sizes=None, ema=None)
        cn.save_weights(model, weights)
    return cn.load_weights(weights).eval(), 128


def build(variant, folder, threads):
    "A variant: a callable on images, and the number format that it really uses."
    backend, _, precision = variant.rpartition("_")
    if backend in ("onnxruntime", "openvino"):
        calibration = torch.load(folder / "calibration.pt") if precision == "int8" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the engine really computes in stands in the result
            net = deploy(folder / "net.onnx", backend, precision, calibration=calibration, threads=threads)
        return net, net.computes_in
    layout = torch.channels_last if "channels_last" in variant else torch.contiguous_format
    model = cn.load_weights(folder / "net.safetensors").eval()
    model = (fold(model) if "folded" in variant else model).to(memory_format=layout)
    return lambda x: model(x.to(memory_format=layout)), "float32"


def serve(pipe, variant, *about):
    "One variant in a process of its own, which does nothing else: answers images with the milliseconds that they took, or with its logits."
    torch.set_num_threads(about[-1])
    with torch.inference_mode(), nullcontext() if variant == "eager" else keep_memory():
        net, used = build(variant, *about)
        pipe.send(used)
        for x, logits in iter(pipe.recv, None):
            start = time.perf_counter()
            out = net(x)
            taken = 1000 * (time.perf_counter() - start)
            pipe.send(torch.as_tensor(out).clone().numpy() if logits else taken)


class Alone:
    "The network of `serve`, a process for each size of batch: what an allocator does depends on the largest block that it has seen."
    def __init__(self, *about): self.about, self.workers, self.computes_in = about, {}, None

    def __call__(self, x, logits=False):
        try: return self.ask(x, logits)
        except (EOFError, OSError) as error: raise RuntimeError(f"the process of {self.about[0]} ended with {len(x)} images; is there memory enough?") from error

    def ask(self, x, logits):
        if len(x) not in self.workers:
            spawn = multiprocessing.get_context("spawn")
            mine, theirs = spawn.Pipe()
            process = spawn.Process(target=serve, args=(theirs, *self.about), daemon=True)
            process.start()
            self.workers[len(x)], self.computes_in = (mine, process), mine.recv()
        pipe, _ = self.workers[len(x)]
        pipe.send((x, logits))
        return pipe.recv()

    def close(self):
        "End the processes, and wait until they have given their memory back: that of L would not suffice for both sizes of batch."
        for pipe, process in self.workers.values():
            pipe.send(None)
            process.join()
        self.workers = {}


def clock(net, x):
    "Milliseconds of one call."
    if isinstance(net, Alone): return net(x)
    start = time.perf_counter()
    net(x)
    return 1000 * (time.perf_counter() - start)


def timed(nets, x, seconds, least, calls=3, warm=2):
    "Milliseconds of each variant, `calls` a round, taking turns for so many seconds; and the matrix peak between the rounds."
    for net in nets.values(): clock(net, x)  # starts its process
    times, peaks, begun = {name: [] for name in nets}, [], time.perf_counter()
    while len(peaks) < least or time.perf_counter() - begun < seconds:
        peaks.append(max(matmul_peak() for _ in range(3)))
        for name, net in nets.items():
            time.sleep(0.05)  # threads of OpenMP and ONNX Runtime spin for some milliseconds before they sleep, and would take a core
            done, awake = 0, time.perf_counter()
            while done < warm or time.perf_counter() - awake < 0.1: done += clock(net, x) > 0
            times[name] += [clock(net, x) for _ in range(calls)]
    return times, peaks


def operations(path, x, threads):
    "Milliseconds of each kind of operation in OpenVINO, float32, prepared for this shape, and of the slowest single layers; medians of 40 calls."
    import openvino as ov
    source = ov.Core().read_model(str(path))
    source.reshape(list(x.shape))
    net = ov.Core().compile_model(source, "CPU", dict(PERF_COUNT=True, INFERENCE_NUM_THREADS=threads, PERFORMANCE_HINT="LATENCY", INFERENCE_PRECISION_HINT="f32"))
    request, taken, kinds, layers = net.create_infer_request(), {}, {}, {}
    for i in range(45):
        request.infer(x.numpy())
        for node in request.get_profiling_info() if i >= 5 else ():
            taken.setdefault((node.node_name, node.node_type), []).append(1000 * node.real_time.total_seconds())
    for (name, kind), times in taken.items():
        layers[name] = statistics.median(times)
        kinds[kind] = kinds.get(kind, 0) + layers[name]
    top = lambda table, n: {k: round(v, 2) for k, v in sorted(table.items(), key=lambda item: -item[1])[:n]}
    return dict(engine="openvino_float32", kinds_ms=top(kinds, 10), layers_ms=top(layers, 8))


def activations(path, x, seconds, threads):
    "Milliseconds of the bfloat16 network with GELU as OpenVINO computes it, as `deploy` gives it, and with ReLU in the place of every GELU."
    import openvino as ov
    from openvino import opset13 as op
    exact, without = ov.Core().read_model(str(path)), ov.Core().read_model(str(path))
    for node in without.get_ordered_ops():
        if node.get_type_name() != "Gelu": continue
        users, relu = node.output(0).get_target_inputs(), op.relu(node.input_value(0))
        for user in users: user.replace_source_output(relu.output(0))
    nets = {"all bfloat16, GELU": _in_openvino(exact, threads, "bf16")[0], "as deployed": deploy(path, "openvino", "bfloat16", threads=threads), "all bfloat16, ReLU": _in_openvino(without, threads, "bf16")[0]}
    times, _ = timed(nets, x, seconds, 3)
    return {key: dict(median_ms=round(statistics.median(ms), 2), fastest_ms=round(min(ms), 2)) for key, ms in times.items()}


def measure(name, args):
    "All figures of one network."
    model, size = network(name)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        folder = Path(folder)
        cn.save_weights(model, folder / "net.safetensors")
        torch.save(cn.make_phantom(16, size=size, seed=8)[0], folder / "calibration.pt")
        path, inputs = export_onnx(model, folder / "net.onnx"), [preprocess(to_channels(cn.make_phantom(8, size=n, seed=7)[0], 3), model.preprocess) for n in (256, size)]
        nets = {variant: Alone(variant, folder, args.threads) for variant in VARIANTS}
        x, (one, peaks) = inputs[0], timed(nets, inputs[0][:1], args.seconds, 3)
        for net in nets.values(): net.close()
        eight, _ = timed(nets, x, args.seconds / 3, 1, 1, 1)
        logits = {key: torch.as_tensor(net(inputs[1], logits=True)) for key, net in nets.items()}
        for net in nets.values(): net.close()
        where, gelu = operations(path, x[:1], args.threads), activations(path, x[:1], args.seconds / 4, args.threads)
    truth, macs, peak, result = logits["eager"] > 0, cn.cost_table(name, 256)[0]["macs"], statistics.median(peaks), {}
    for key, net in nets.items():
        ms, ms8, mask = statistics.median(one[key]), statistics.median(eight[key]), logits[key] > 0
        result[key] = dict(computes_in=net.computes_in, calls=len(one[key]), median_ms=round(ms, 2), fastest_ms=round(min(one[key]), 2), times_faster=round(statistics.median(one["eager"]) / ms, 2),
                           batch8_images_per_second=round(8000 / ms8, 1), batch8_times_faster=round(statistics.median(eight["eager"]) / ms8, 2),
                           share_of_matmul_peak=round(2e-6 * macs / ms / peak, 3), max_logit_difference=float(f"{(logits[key] - logits['eager']).abs().max():.2g}"),
                           mask_dice=round(float(2 * (mask & truth).sum() / (mask.sum() + truth.sum())), 5))
    return dict(gmacs=round(macs / 1e9, 3), agreement_size=size, matmul_gflops=round(peak, 1), ms_at_peak=round(2e-6 * macs / peak, 2), variants=result, operations=where, activations=gelu)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["cmunext_s", "cmunext", "cmunext_l"])
    for name, value in (("threads", 2), ("seconds", 30)): parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    import onnxruntime, openvino
    about = dict(machine(), capabilities=openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), onnxruntime=onnxruntime.__version__, openvino=openvino.__version__)
    before = json.loads(args.out.read_text()) if args.out.exists() else {}
    same = all(before.get("machine", {}).get(key) == about[key] for key in ("cpu", "threads", "torch", "openvino", "onnxruntime"))
    result = dict(machine=about, size=256, models=before["models"] if same else {})  # each network is a run of its own
    for name in args.models:
        result["models"][name] = measure(name, args)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__": main()
