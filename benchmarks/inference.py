"""Inference in every engine, as ratios: python benchmarks/inference.py [--models cmunext_s cmunext cmunext_l] [--threads 2] [--seconds 30] [--out FILE]

One image of 256 x 256, then batches of 8. The variants take turns: a round is one warm-up and two timed calls of each, and rounds go on
for so many seconds a network, three at least; the median over all rounds is kept, so that a machine whose clock and load vary treats
them alike. The measure of all ratios is the plain eager float32 network as anybody runs it: in a process of its own that does nothing else, whose allocator is as it comes.
The other variants share a process that keeps its memory (nbs/14b_cpu.ipynb), and `eager_kept` is the plain network there. Beside them stand: how far the masks agree with its masks (Dice, phantoms), the machine's own matrix
product measured between the rounds, the time of each kind of operation in OpenVINO, and what GELU takes of bfloat16. Prints JSON. With --threads 1 a
machine that is busy with something else disturbs least.
"""
import argparse, copy, json, multiprocessing, statistics, tempfile, time, warnings
from pathlib import Path

import torch
from machine import machine

import cmunext_nb as cn
from cmunext_nb.cpu import keep_memory
from cmunext_nb.deploy import _in_openvino, deploy, export_onnx, fold
from cmunext_nb.weights import preprocess, to_channels


def matmul_peak(n=1024):
    "GFLOP/s of one float32 product of n x n matrices, 2 n^3 operations."
    a, b = torch.randn(n, n), torch.randn(n, n)
    a @ b
    start = time.perf_counter()
    a @ b
    return 2e-9 * n**3 / (time.perf_counter() - start)


def network(name):
    "Trained weights where they are shipped; otherwise norms that have seen phantoms, since a fresh network's masks say nothing."
    torch.manual_seed(0)
    if name == "cmunext_s": return cn.create_model(name, pretrained="phantom").eval()
    net = cn.create_model(name).train()
    with torch.no_grad():
        for _ in range(6): net(preprocess(to_channels(cn.make_phantom(4, size=128, seed=_)[0], 3), "imagenet"))
    net.eval()
    with torch.no_grad(): net.head.bias -= net(preprocess(to_channels(cn.make_phantom(2, size=256, seed=1)[0], 3), "imagenet")).quantile(0.9)
    return net


def serve(pipe, name, threads):
    "The plain network in a process of its own, which does nothing else: answers images with the milliseconds that they took."
    torch.set_num_threads(threads)
    with torch.inference_mode():
        model = cn.create_model(name).eval()
        for x in iter(pipe.recv, None):
            start = time.perf_counter()
            model(x)
            pipe.send(1000 * (time.perf_counter() - start))


class Alone:
    "The network of `serve`, a process for each size of batch: what an allocator does depends on the largest block that it has seen."
    def __init__(self, name, threads): self.about, self.workers = (name, threads), {}

    def milliseconds(self, x):
        if len(x) not in self.workers:
            spawn = multiprocessing.get_context("spawn")
            mine, theirs = spawn.Pipe()
            spawn.Process(target=serve, args=(theirs, *self.about), daemon=True).start()
            self.workers[len(x)] = mine
            self.milliseconds(x)  # warm
        self.workers[len(x)].send(x)
        return self.workers[len(x)].recv()

    def close(self):
        for pipe in self.workers.values(): pipe.send(None)


def clock(net, x):
    "Milliseconds of one call."
    if isinstance(net, Alone): return net.milliseconds(x)
    start = time.perf_counter()
    net(x)
    return 1000 * (time.perf_counter() - start)


def variants(name, model, args, folder):
    "name -> (a callable on images, the number format that it really uses)."
    calibration, path = cn.make_phantom(16, size=256, seed=8)[0], export_onnx(model, folder / "net.onnx")
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    plain = lambda net, layout: lambda x: net(x.to(memory_format=layout))
    found = dict(eager=(Alone(name, args.threads), "float32"), eager_kept=(plain(model, torch.contiguous_format), "float32"), channels_last=(plain(last, torch.channels_last), "float32"),
                 folded_channels_last=(plain(fold(model).to(memory_format=torch.channels_last), torch.channels_last), "float32"))
    for backend, precision in (("onnxruntime", "float32"), ("onnxruntime", "int8"), ("openvino", "float32"), ("openvino", "bfloat16"), ("openvino", "int8")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the engine really computes in stands in the result
            net = deploy(path, backend, precision, calibration=calibration if precision == "int8" else None, threads=args.threads)
        found[f"{backend}_{precision}"] = net, net.computes_in
    return found, path


def timed(nets, x, seconds, least, warm):
    "Milliseconds of each variant, taking turns for so many seconds; and the matrix peak between the rounds."
    times, peaks, begun = {name: [] for name in nets}, [], time.perf_counter()
    while len(peaks) < least or time.perf_counter() - begun < seconds:
        peaks.append(max(matmul_peak() for _ in range(3)))
        for name, (net, _) in nets.items():
            for i in range(3 if warm else 1):
                ms = clock(net, x)
                if i or not warm: times[name].append(ms)
    return times, peaks


def operations(path, x, threads):
    "Milliseconds of each kind of operation in OpenVINO, float32, prepared for this shape, and of the slowest single layers."
    import openvino as ov
    source = ov.Core().read_model(str(path))
    source.reshape(list(x.shape))
    net = ov.Core().compile_model(source, "CPU", dict(PERF_COUNT=True, INFERENCE_NUM_THREADS=threads, PERFORMANCE_HINT="LATENCY", INFERENCE_PRECISION_HINT="f32"))
    request, kinds, layers = net.create_infer_request(), {}, {}
    for i in range(12):
        request.infer(x.numpy())
        if i < 2: continue
        for node in request.get_profiling_info():
            taken = node.real_time.total_seconds() * 100  # milliseconds of one of ten calls
            if not taken: continue
            kinds[node.node_type] = kinds.get(node.node_type, 0) + taken
            layers[node.node_name] = layers.get(node.node_name, 0) + taken
    top = lambda table, n: {k: round(v, 2) for k, v in sorted(table.items(), key=lambda item: -item[1])[:n]}
    return dict(engine="openvino_float32", kinds_ms=top(kinds, 10), layers_ms=top(layers, 8))


def activations(path, deployed, x, seconds, threads):
    "Milliseconds of the bfloat16 network with GELU as OpenVINO computes it, as `deploy` gives it, and with ReLU in the place of every GELU."
    import openvino as ov
    from openvino import opset13 as op
    exact, without = ov.Core().read_model(str(path)), ov.Core().read_model(str(path))
    for node in without.get_ordered_ops():
        if node.get_type_name() != "Gelu": continue
        users, relu = node.output(0).get_target_inputs(), op.relu(node.input_value(0))
        for user in users: user.replace_source_output(relu.output(0))
    nets = {"all bfloat16, GELU": (_in_openvino(exact, threads, "bf16")[0], ""), "as deployed": (deployed, ""), "all bfloat16, ReLU": (_in_openvino(without, threads, "bf16")[0], "")}
    times, _ = timed(nets, x, seconds, 3, True)
    return {key: dict(median_ms=round(statistics.median(ms), 2), fastest_ms=round(min(ms), 2)) for key, ms in times.items()}


def measure(name, args):
    "All figures of one network."
    images = cn.make_phantom(8, size=256, seed=7)[0]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(), keep_memory():
        model = network(name)
        x = preprocess(to_channels(images, 3), model.preprocess)
        nets, path = variants(name, model, args, Path(folder))
        logits = {key: torch.as_tensor(net(x)) for key, (net, _) in nets.items() if key != "eager"}
        (one, peaks), (eight, _) = timed(nets, x[:1], args.seconds, 3, True), timed(nets, x, args.seconds / 3, 1, False)
        where, gelu = operations(path, x[:1], args.threads), activations(path, nets["openvino_bfloat16"][0], x[:1], args.seconds / 4, args.threads)
        nets["eager"][0].close()
    logits["eager"] = logits["eager_kept"]  # the same network
    truth, macs = logits["eager"] > 0, cn.cost_table(name, 256)[0]["macs"]
    peak, result = statistics.median(peaks), {}
    for key, (_, used) in nets.items():
        ms, ms8, mask = statistics.median(one[key]), statistics.median(eight[key]), logits[key] > 0
        result[key] = dict(computes_in=used, calls=len(one[key]), median_ms=round(ms, 2), fastest_ms=round(min(one[key]), 2), times_faster=round(statistics.median(one["eager"]) / ms, 2),
                           batch8_images_per_second=round(8000 / ms8, 1), batch8_times_faster=round(statistics.median(eight["eager"]) / ms8, 2),
                           share_of_matmul_peak=round(2e-6 * macs / ms / peak, 3), max_logit_difference=float(f"{(logits[key] - logits['eager']).abs().max():.2g}"),
                           mask_dice=round(float(2 * (mask & truth).sum() / (mask.sum() + truth.sum())), 5))
    return dict(gmacs=round(macs / 1e9, 3), matmul_gflops=round(peak, 1), ms_at_peak=round(2e-6 * macs / peak, 2), variants=result, operations=where, activations=gelu)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["cmunext_s", "cmunext", "cmunext_l"])
    for name, value in (("threads", 2), ("seconds", 30)): parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    import onnxruntime, openvino
    about = dict(machine(), capabilities=openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), onnxruntime=onnxruntime.__version__, openvino=openvino.__version__)
    result = dict(machine=about, size=256, models={})
    for name in args.models:
        result["models"][name] = measure(name, args)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__": main()
