"""Can each network of the zoo learn eight scans by heart? python benchmarks/zoo_overfit.py [--models unet cmunet ...] [--out FILE]

The cheapest proof that a network, the loss and the optimiser fit together: eight synthetic scans, trained and measured on the same eight,
without augmentation, until the mean IoU of the images exceeds 0.92 or the epochs are over. It says nothing about unseen images. Networks are
done one after the other, the lightest first; the JSON is written after each, so that a run can be cut short and goes on: networks that FILE has already are left out. Times belong to the machine.
"""
import argparse, json, time
from pathlib import Path

import torch
import cmunext_nb as cn
from machine import machine

# lightest first, by multiply-accumulates
ORDER = ("unext medt convunext reduced_unet swin_unet transunet unetpp unet attention_unet cmunet unet3p").split()
LR = dict(swin_unet=1e-3, transunet=1e-3, medt=1e-3)
EPOCHS = dict(swin_unet=400)  # 64 pixels are 16 x 16 patches for it: it learns the outline slowly


def overfit(name, args):
    "Train one network on the scans until it knows them."
    scans, enough = cn.make_phantom(8, size=args.size, seed=3), args.enough
    torch.manual_seed(41)
    model, start = cn.create_model(name), time.perf_counter()
    history = cn.fit(model, scans, scans, recipe="fast", epochs=max(args.epochs, EPOCHS.get(name, 0)), batch_size=4, augment="none", sizes=None, ema=None, lr=LR.get(name, 4e-3),
                     validate_every=2, amp=args.amp, on_epoch=lambda run: run.history.best.get("iou", 0) < enough, device=args.device, progress=False)
    return dict(iou=round(cn.evaluate(model, scans)["iou"], 4), epochs=len(history.rows), seconds=round(time.perf_counter() - start, 1), amp=args.amp)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=ORDER)
    parser.add_argument("--size", type=int, default=64, help="side of the scans in pixels")
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--enough", type=float, default=0.92, help="IoU at which to stop")
    parser.add_argument("--amp", default="auto", choices=["auto", "bf16", "off"], help="precision of the training, as in `Recipe.amp` (default: auto)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    result = dict(machine=machine(), size=args.size, scans=8, models={})
    if args.out.exists() and (old := json.loads(args.out.read_text()))["size"] == args.size: result["models"] = old["models"]  # go on
    if done := [n for n in args.models if n in result["models"]]: print(f"already in {args.out}: {', '.join(done)}; give another --out to measure them again")
    for name in [n for n in args.models if n not in result["models"]]:
        result["models"][name] = overfit(name, args)
        print(name, result["models"][name], flush=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__": main()
