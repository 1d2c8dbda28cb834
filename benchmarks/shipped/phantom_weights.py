"""Train CMUNeXt-S on synthetic scans and write the weights that the explaining notebooks open with.

    python benchmarks/shipped/phantom_weights.py                            # the shipped ones: cmunext_nb/assets/cmunext_s_phantom.safetensors
    python benchmarks/shipped/phantom_weights.py --kernels 3 3 3 3 3        # a variant to compare with: nbs/results/phantom_k33333.safetensors

Trains on 240 phantoms made with seed 1000 at 256 px, recipe `fast`, 36 epochs, seed 41, and reports IoU on the 64 bundled phantoms
(seed 0), which are never trained on. Kill it and call it again: it resumes. The weights are stored in half precision.
"""
import argparse, json, time
from pathlib import Path

import torch

import cmunext_nb as cn

ROOT = Path(__file__).resolve().parents[2]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kernels", type=int, nargs=5, help="kernel sizes of the five stages, instead of CMUNeXt-S's own 3 3 7 7 9")
    p.add_argument("--images", type=int, default=240, help="phantoms to train on (default: 240)")
    p.add_argument("--epochs", type=int, default=36, help="(default: 36)")
    return p.parse_args()


def main():
    a = arguments()
    name = "_k" + "".join(map(str, a.kernels)) if a.kernels else ""
    path = ROOT / (f"nbs/results/phantom{name}.safetensors" if name else "cmunext_nb/assets/cmunext_s_phantom.safetensors")
    train = cn.make_phantom(a.images, size=256, seed=1000)
    parts = cn.load_dataset("phantom", size=256)
    bundled = tuple(torch.cat([getattr(p, kind)[:, :1] for p in parts]) for kind in ("images", "masks"))
    torch.manual_seed(41)
    model = cn.create_model("cmunext_s", **(dict(kernel_sizes=tuple(a.kernels)) if a.kernels else {}))
    start = time.time()
    history = cn.fit(model, train, bundled, "fast", epochs=a.epochs, seed=41, out=ROOT / f"runs/phantom{name}", validate_every=6)
    minutes = sum(r["seconds"] for r in history.rows) / 60
    cn.save_weights(model, path, dtype=torch.float16, data=f"{a.images} phantoms, make_phantom(seed=1000), 256 px", recipe="fast", epochs=a.epochs, seed=41)
    scores = {k: round(v, 4) for k, v in cn.evaluate(cn.load_weights(path), bundled).items()}
    cn.save_weights(model, path, dtype=torch.float16, data=f"{a.images} phantoms, make_phantom(seed=1000), 256 px", recipe="fast", epochs=a.epochs, seed=41,
                    tested_on="the 64 bundled phantoms, make_phantom(seed=0)", scores=scores, minutes=round(minutes, 1),
                    hardware=f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}", command="python benchmarks/shipped/phantom_weights.py" + (f" --images {a.images} --epochs {a.epochs}" if a.kernels else "") + (f" --kernels {' '.join(map(str, a.kernels))}" if a.kernels else ""))
    print(json.dumps(dict(file=str(path.relative_to(ROOT)), kilobytes=round(path.stat().st_size / 1024), minutes=round(minutes, 1), wall=round((time.time() - start) / 60, 1), **scores)))


if __name__ == "__main__": main()
