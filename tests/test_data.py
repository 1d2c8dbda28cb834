"Every layout, split and trap of the data loader, on sets written here; BUSI itself where it is present."
import json
import os
import re
import time
import unicodedata
import warnings
import zipfile
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmunext_nb import data as D
from cmunext_nb.data import (DATASETS, Sample, SegmentationData, busi_lists, clean_subset, data_report, data_roots, find_dataset, identical_pairs,
                             list_busi, load_dataset, near_pairs, pair_files, read_samples, split_names)

BUSI = next((r for r in data_roots("busi") if r.is_dir()), None)
needs_busi = pytest.mark.skipif(BUSI is None, reason="BUSI is not here")
rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CMUNEXT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("CMUNEXT_QUIET", "1")


def noise(h=40, w=50): return np.asarray(Image.fromarray(rng.integers(0, 255, (h // 4, w // 4), dtype=np.uint8)).resize((w, h)))


def box(top, left, h=40, w=50, side=10):
    m = np.zeros((h, w), np.uint8); m[top:top + side, left:left + side] = 255
    return m


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


def folder_of(root, names="abcdefghij", masks="masks"):
    for i, n in enumerate(names): save(root / "images" / f"{n}.png", noise()), save(root / masks / f"{n}.png", box(i % 20, i % 30))
    return root


# one's own folder

@pytest.mark.parametrize("masks", ["masks", "masks/0"])
def test_folder(tmp_path, masks):
    train, valid = load_dataset("folder", root=folder_of(tmp_path, masks=masks), size=32)
    assert (len(train), len(valid)) == (7, 3) and not set(train.names) & set(valid.names)
    assert train.images.shape == (7, 3, 32, 32) and train.images.dtype == train.masks.dtype == torch.uint8
    assert train.masks.shape == (7, 1, 32, 32) and set(train.masks.unique().tolist()) == {0, 1}
    again = load_dataset("folder", root=tmp_path, size=32)
    assert again[1].names == valid.names and torch.equal(again[1].images, valid.images)
    assert load_dataset("folder", root=tmp_path, size=32, split=2)[1].names != valid.names
    everything, nothing = load_dataset("folder", root=tmp_path, size=32, split="all", channels=1)
    assert everything.names == list("abcdefghij") and len(nothing) == 0 and nothing.images.shape == (0, 1, 32, 32)


def test_side_by_side_with_several_masks(tmp_path):
    image = noise()
    save(tmp_path / "x 2.jpg", image); save(tmp_path / "x 2_mask.png", box(0, 0)); save(tmp_path / "x 2_mask_1.png", box(20, 20))
    save(tmp_path / "x 2_mask_2.png", Image.fromarray(box(25, 25)).convert("RGBA")); save(tmp_path / "x 10.png", image); save(tmp_path / "x 10_mask.png", box(5, 5))
    train, _ = load_dataset("folder", root=tmp_path, size=64, split="all", channels=1)
    assert train.names == ["x 2", "x 10"]
    union = (box(0, 0) | box(20, 20) | box(25, 25)) > 0
    assert abs(train.masks[0].float().mean() - union.mean()) < 0.01


@pytest.mark.parametrize("where, names", [("", ("train.txt", "val.txt")), ("", ("train.txt", "valid.txt")), ("splits", ("train1.txt", "val1.txt"))])
def test_split_lists(tmp_path, where, names):
    folder_of(tmp_path); (tmp_path / where).mkdir(exist_ok=True)
    (tmp_path / where / names[0]).write_text("c\nb\n\n"); (tmp_path / where / names[1]).write_text("a\n")
    train, valid = load_dataset("folder", root=tmp_path, size=16)
    assert (train.names, valid.names) == (["c", "b"], ["a"])
    with pytest.raises(ValueError, match="splits 1 and 'all', not 2"): load_dataset("folder", root=tmp_path, split=2)


def test_wrong_lists(tmp_path):
    folder_of(tmp_path); (tmp_path / "train.txt").write_text("a\nb\n")
    with pytest.raises(FileNotFoundError, match="val.txt"): load_dataset("folder", root=tmp_path)
    (tmp_path / "val.txt").write_text("b\n")
    with pytest.raises(ValueError, match="'b'"): load_dataset("folder", root=tmp_path)
    (tmp_path / "val.txt").write_text("nobody\n")
    with pytest.raises(FileNotFoundError, match="'nobody'"): load_dataset("folder", root=tmp_path)


def test_a_name_means_one_image(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "train.txt").write_text("a\nb\na\n"); (tmp_path / "val.txt").write_text("c\n")
    with pytest.raises(ValueError, match="1 names stand twice in .*train.txt, for example 'a'"): load_dataset("folder", root=tmp_path)
    (tmp_path / "train.txt").write_text("a\nb\n"); (tmp_path / "val.txt").write_text("c\nc\n")
    with pytest.raises(ValueError, match="stand twice in .*val.txt"): load_dataset("folder", root=tmp_path)
    (tmp_path / "val.txt").write_text("c\n"); save(tmp_path / "images/d.bmp", noise())
    with pytest.raises(ValueError, match="1 names in .*images belong to more than one image: d. Keep one"): load_dataset("folder", root=tmp_path)


def test_notes_are_no_list(tmp_path):
    folder_of(tmp_path)
    for name in ("training notes.txt", "train_log.txt"): (tmp_path / name).write_text("rate 0.01\n")
    assert [len(part) for part in load_dataset("folder", root=tmp_path, size=16)] == [7, 3]


def test_lists_with_a_partner_are_lists_whatever_their_name(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "train_a.txt").write_text("a\nb\n"); (tmp_path / "val_a.txt").write_text("c\n")
    assert [part.names for part in load_dataset("folder", root=tmp_path, split="_a", size=16)] == [["a", "b"], ["c"]]


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"): load_dataset("folder", root=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="No images"): load_dataset("folder", root=tmp_path)
    with pytest.raises(ValueError, match="root="): load_dataset("folder")
    folder_of(tmp_path)
    (tmp_path / "masks/c.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 10 images .* c.png"): load_dataset("folder", root=tmp_path)
    save(tmp_path / "masks/c.png", box(0, 0, h=30))
    with pytest.raises(ValueError, match=r"c.png is 50 x 30 pixels, its image .*c.png 50 x 40"): load_dataset("folder", root=tmp_path)
    save(tmp_path / "masks/c.png", box(0, 0) // 255 + 2 * (box(20, 20) // 255))
    with pytest.raises(ValueError, match=r"c.png has 3 levels"): load_dataset("folder", root=tmp_path)
    save(tmp_path / "masks/c.png", box(0, 0))
    whole = (tmp_path / "images/d.png").read_bytes(); (tmp_path / "images/d.png").write_bytes(whole[:-60])
    with pytest.raises(ValueError, match="d.png is cut short"): load_dataset("folder", root=tmp_path)
    (tmp_path / "images/d.png").write_text("no picture")
    with pytest.raises(ValueError, match="d.png is not an image"): load_dataset("folder", root=tmp_path)
    (tmp_path / "images/d.png").write_bytes(whole)
    assert len(load_dataset("folder", root=tmp_path)[0]) == 7  # nothing bad was kept
    (tmp_path / "masks/0").mkdir(); (tmp_path / "masks/1").mkdir()
    with pytest.raises(ValueError, match="a folder a class"): load_dataset("folder", root=tmp_path)


def test_empty_mask_and_tiny_image(tmp_path):
    save(tmp_path / "images/a.png", np.full((1, 1), 7, np.uint8)); save(tmp_path / "masks/a.png", np.zeros((1, 1), np.uint8))
    train, valid = load_dataset("folder", root=tmp_path, size=32)
    assert len(train) == 1 and len(valid) == 0 and not train.masks.any() and (train.images == 7).all()
    assert data_report(train).facts["train"]["empty"] == ["a"]


@pytest.mark.parametrize("options", [dict(size=0), dict(size=1.5), dict(size="256"), dict(size=True), dict(channels=True), dict(channels=2), dict(split=0.5), dict(split="first")])
def test_bad_options(tmp_path, options):
    with pytest.raises(ValueError): load_dataset("folder", root=folder_of(tmp_path), **options)


# cache

def test_cache_is_used_and_notices_changes(tmp_path, monkeypatch):
    folder_of(tmp_path)
    first = load_dataset("folder", root=tmp_path, size=32)
    monkeypatch.setattr(D, "_read_sample", lambda *a: pytest.fail("the files were read again"))
    for split, channels in ((1, 3), (2, 3), (1, 1)): second = load_dataset("folder", root=tmp_path, size=32, split=split, channels=channels)
    assert torch.equal(second[0].images, first[0].images[:, :1]) and torch.equal(second[1].masks, first[1].masks) and second[0].meta == first[0].meta
    monkeypatch.undo()
    os.utime(tmp_path / "masks/a.png", (1, 1))
    monkeypatch.setattr(D, "_read_sample", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError): load_dataset("folder", root=tmp_path, size=32)


def test_damaged_and_unwritable_cache(tmp_path, monkeypatch):
    samples = pair_files(folder_of(tmp_path) / "images", tmp_path / "masks")
    path = D._cache_file(samples, 32, "x"); path.parent.mkdir(parents=True); path.write_bytes(b"rubbish")
    with pytest.warns(UserWarning, match="damaged"): good = read_samples(samples, 32, label="x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(read_samples(samples, 32, label="x").images, good.images)
    blocked = tmp_path / "blocked"; blocked.write_text("a file, not a folder")
    monkeypatch.setenv("CMUNEXT_CACHE", str(blocked))
    with pytest.warns(UserWarning, match="could not be kept"): assert torch.equal(read_samples(samples, 32, label="x").images, good.images)


def test_colour(tmp_path):
    colour = np.stack([noise(), noise(), noise()], 2)
    sample = Sample("c", save(tmp_path / "c.png", colour), (save(tmp_path / "m.png", box(3, 3)),))
    grey = Sample("g", save(tmp_path / "g.png", noise()), sample.masks)
    for _ in range(2):  # fresh, then from the cache
        three, one = read_samples([grey, sample], 40), read_samples([grey, sample], 40, channels=1)
        assert three.meta["colour"] == [False, True] and (three.images[1, 0] != three.images[1, 1]).any() and (three.images[0, 0] == three.images[0, 2]).all()
        assert (one.images[1, 0] == torch.from_numpy(np.array(Image.fromarray(D.resize_square(colour, 40)).convert("L")))).all()


# SegmentationData

def test_segmentation_data():
    d = SegmentationData(torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1), torch.zeros(5, 1, 1, 1, dtype=torch.uint8), "abcde", dict(sizes=[(i, i) for i in range(5)], x=1))
    for index, names in ((slice(1, 3), "bc"), ([4, 0], "ea"), (torch.tensor([1, 2]), "bc"), (np.array([True] + [False] * 4), "a"), ([], ""), (slice(None, None, -1), "edcba")):
        part = d[index]
        assert part.names == list(names) and part.images.flatten().tolist() == ["abcde".index(n) for n in names]
        assert part.meta == dict(sizes=[("abcde".index(n),) * 2 for n in names], x=1)
    assert d[-1][0].item() == 4 and len(list(d)) == 5 and "5 images, 1 x 1 x 1" in repr(d)
    with pytest.raises(KeyError, match="'z'"): d.subset("az")
    with pytest.raises(ValueError, match="must agree"): SegmentationData(d.images, d.masks[:4], "abcde")
    with pytest.raises(ValueError, match="must agree"): SegmentationData(d.images, d.masks, "abc")
    with pytest.raises(ValueError, match="mask of 'c' holds 255.*divide by 255"): SegmentationData(d.images, torch.tensor([0, 1, 255, 0, 0], dtype=torch.uint8).view(5, 1, 1, 1), "abcde")
    for images, masks in ((d.images / 255, d.masks), (d.images, d.masks.bool()), (d.images, d.masks.float())):
        with pytest.raises(TypeError, match="expected torch.uint8"): SegmentationData(images, masks, "abcde")


def test_split_names():
    names = [f"n{i}" for i in range(100)]
    train, valid = split_names(names, 0.3, 1)
    assert len(valid) == 30 and sorted(train + valid) == sorted(names) and split_names(reversed(names))[1] == valid[::-1]
    assert valid[:3] == ["n12", "n13", "n17"]  # the same on every machine and Python
    assert split_names(["a"]) == (["a"], []) and split_names(["a", "b"])[1] in (["a"], ["b"])


# the sets

def test_busi_raw_archive(tmp_path):
    names = [n for part in busi_lists()["splits"]["1"].values() for n in part]
    image, mask = save(tmp_path / "i.png", noise(8, 8)).read_bytes(), save(tmp_path / "m.png", box(0, 0, 8, 8, 4)).read_bytes()
    root = tmp_path / "busi" / "Dataset_BUSI_with_GT"
    for kind in ("benign", "malignant", "normal"): (root / kind).mkdir(parents=True)
    for n in [*names, "normal (1)"]:
        (root / n.split()[0] / f"{n}.png").write_bytes(image); (root / n.split()[0] / f"{n}_mask.png").write_bytes(mask)
    save(root / "benign/benign (4)_mask_1.png", Image.fromarray(box(4, 4, 8, 8, 4)).convert("RGB"))
    for given in (tmp_path / "busi", root):
        train, valid = load_dataset("busi", root=given, split=3, size=8, channels=1)
        assert (len(train), len(valid)) == (452, 195) and valid.names == busi_lists()["splits"]["3"]["valid"]
    both = [d[d.names.index("benign (4)")][1] for d in (train, valid) if "benign (4)" in d.names][0]
    assert both.sum() == 32 and len(list_busi(root)[0]) == 647
    with pytest.raises(ValueError, match="splits 1, 2, 3 and 'all', not 4"): load_dataset("busi", root=root, split=4, size=8)


def test_busi_lists_are_whole():
    lists = busi_lists()
    everyone = {n for part in lists["splits"]["1"].values() for n in part}
    assert len(everyone) == 647 and sum(n.startswith("benign") for n in everyone) == 437
    for split in lists["splits"].values():
        assert set(split["train"]) | set(split["valid"]) == everyone and not set(split["train"]) & set(split["valid"])
        assert (len(split["train"]), len(split["valid"])) == (452, 195)
    keep = {f"{kind} ({i})" for kind, ids in lists["curated"].items() for i in ids}
    assert [len(keep & set(s["valid"])) for s in lists["splits"].values()] == [118, 122, 123]


def bus_bra(root, ending=""):
    for n in ("0001-l", "0001-r", "0002-l", "0003-s"):
        save(root / "Images" / f"bus_{n}.png", noise()); save(root / "Masks" / f"mask_{n}.png", Image.fromarray(box(5, 5)).convert("1"))
    (root / "5-fold-cv.csv").write_text("ID,Case,kFold\n" + "".join(f"bus_{n}{ending},x,{k}\n" for n, k in (("0001-l", 1), ("0001-r", 1), ("0002-l", 2), ("0003-s", 3))))
    return root


@pytest.mark.parametrize("inner", ["", "BUSBRA"])
@pytest.mark.parametrize("ending", ["", ".png"])
def test_bus_bra(tmp_path, inner, ending):
    bus_bra(tmp_path / inner, ending)
    train, valid = load_dataset("bus_bra", root=tmp_path, split=1, size=40)
    assert valid.names == ["bus_0001-l", "bus_0001-r"] and train.names == ["bus_0002-l", "bus_0003-s"] and (valid.masks.sum((1, 2, 3)) > 0).all()
    (tmp_path / inner / "5-fold-cv.csv").write_text("ID,kFold\nbus_0001-l,1\n")
    with pytest.raises(ValueError, match="no fold for 3 images"): load_dataset("bus_bra", root=tmp_path)
    (tmp_path / inner / "5-fold-cv.csv").unlink()
    with pytest.raises(FileNotFoundError, match="5-fold-cv.csv"): load_dataset("bus_bra", root=tmp_path)


def test_bus_bra_is_fetched_and_unpacked(tmp_path, monkeypatch, capsys):
    bus_bra(tmp_path / "BUSBRA")
    made = tmp_path / "made.zip"
    with zipfile.ZipFile(made, "w") as z:
        for p in (tmp_path / "BUSBRA").rglob("*.*"): z.write(p, p.relative_to(tmp_path))
    asked = []

    def fetch(url, known, path, progress):
        asked.append((url, known)); Path(path).parent.mkdir(parents=True, exist_ok=True); Path(path).write_bytes(made.read_bytes())
        return Path(path)
    monkeypatch.setattr(D, "fetch", fetch); monkeypatch.setattr(D, "data_roots", lambda name: [tmp_path / "cache" / name])
    for _ in range(2): assert len(load_dataset("bus_bra", size=32)[1]) == 2
    assert asked == [(DATASETS["bus_bra"].url, "md5:1f8b2be6476d58fc97bfb5e5a1ea9bab")] and "fetching" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["bus_bra"]


def test_tn3k(tmp_path):
    for part, i in (("trainval", 0), ("trainval", 1), ("test", 0)):
        save(tmp_path / f"{part}-image/{i:04}.jpg", noise(80, 96)); save(tmp_path / f"{part}-mask/{i:04}.jpg", box(20, 20, 80, 96, 40), quality=70)
    train, valid = load_dataset("tn3k", root=tmp_path, size=96)
    assert train.names == ["trainval/0000", "trainval/0001"] and valid.names == ["test/0000"]
    assert abs(valid.masks.float().mean() - 1600 / 80 / 96) < 0.01
    (tmp_path / "test-mask/0000.jpg").unlink(); (tmp_path / "test-mask").rmdir()
    with pytest.raises(FileNotFoundError, match="test-mask"): load_dataset("tn3k", root=tmp_path)


@pytest.mark.parametrize("name, images, masks", [("udiat", "original", "GT"), ("tnscui", "image", "mask"), ("bus", "images", "masks"), ("busis", "images", "masks"),
                                                 ("tus", "images", "masks")])
def test_sets_that_need_a_form(tmp_path, monkeypatch, name, images, masks):
    with pytest.raises(FileNotFoundError) as e: load_dataset(name)
    assert images in str(e.value) and masks in str(e.value) and "CMUNEXT_DATA" in str(e.value) and re.search("Ask|Register|Send|private", str(e.value))
    for n in "abc": save(tmp_path / name / images / f"{n}.png", noise()), save(tmp_path / name / masks / f"{n}.png", box(2, 2))
    monkeypatch.setenv("CMUNEXT_DATA", str(tmp_path))
    assert sum(map(len, load_dataset(name, size=16))) == 3


def npz(path, n=(4, 1, 3), side=128):
    arrays = {}
    for part, k in zip(("train", "val", "test"), n):
        arrays[f"{part}_images"] = np.stack([noise(side, side) for _ in range(k)]); arrays[f"{part}_label"] = np.stack([box(9, 9, side, side) // 255] * k)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return arrays


def test_medsegbench_stands_in_for_busi(tmp_path, monkeypatch, capsys):
    arrays, asked = npz(tmp_path / "made.npz"), []

    def fetch(url, known, path, progress):
        asked.append((url, known)); Path(path).parent.mkdir(parents=True, exist_ok=True); Path(path).write_bytes((tmp_path / "made.npz").read_bytes())
        return Path(path)
    monkeypatch.setattr(D, "fetch", fetch); monkeypatch.setattr(D, "data_roots", lambda name: [tmp_path / name])
    train, valid = load_dataset("busi", size=128)
    assert "cannot be compared" in capsys.readouterr().out
    assert asked == [("https://zenodo.org/records/13358372/files/busi_128.npz?download=1", "md5:68877751adef0ab639de73946aac0985")]
    assert (len(train), len(valid)) == (4, 4) and valid.names == ["val_0000", "test_0000", "test_0001", "test_0002"] and train.images.shape == (4, 3, 128, 128)
    assert (train.images[2, 1].numpy() == arrays["train_images"][2]).all() and (valid.masks[0, 0].numpy() == arrays["val_label"][0]).all()
    assert load_dataset("medsegbench_busi", size=64, channels=1)[0].images.shape == (4, 1, 64, 64) and len(asked) == 1
    with pytest.raises(ValueError, match="splits 1 and 'all', not 2"): load_dataset("busi", size=128, split=2)
    load_dataset("busi", size=129); load_dataset("busi", size=600)
    assert [re.search(r"busi_\d+", u)[0] for u, _ in asked] == ["busi_128", "busi_256", "busi_512"]
    with pytest.raises(ValueError, match="BUSI's"): clean_subset(valid)
    with pytest.raises(FileNotFoundError, match="kaggle"): load_dataset("busi", download=False)
    (tmp_path / "medsegbench_busi/busi_128.npz").write_bytes(b"PK broken")
    with pytest.raises(ValueError, match="not a whole MedSegBench file"): load_dataset("medsegbench_busi", size=128)
    with pytest.raises(FileNotFoundError, match="zenodo"): load_dataset("medsegbench_busi", root=tmp_path / "elsewhere")


def test_phantom(monkeypatch, tmp_path):
    train, valid = load_dataset("phantom", size=64)
    assert (len(train), len(valid)) == (48, 16) and train.images.shape == (48, 3, 64, 64) and not set(train.names) & set(valid.names)
    monkeypatch.setattr(D, "data_roots", lambda name: [tmp_path / name])
    train, valid = load_dataset("phantom", size=64, channels=1)
    assert (len(train), len(valid)) == (48, 16) and train.images.shape == (48, 1, 64, 64) and (train.masks.flatten(1).sum(1) > 0).all()


def test_unknown_names():
    with pytest.raises(ValueError, match="Did you mean 'busi'"): load_dataset("bussi")
    with pytest.raises(ValueError, match="phantom"): load_dataset("fantom")
    assert set(DATASETS) >= {"phantom", "busi", "bus_bra", "tn3k", "folder", "bus", "busis", "tnscui", "udiat", "tus"}
    with pytest.raises(FileNotFoundError, match="TN3K.rar"): find_dataset("tn3k")


# duplicates

def sets_with_a_leak(tmp_path):
    pictures = [noise(64, 64) for _ in range(6)]
    for i, p in enumerate(pictures[:4]): save(tmp_path / f"t/images/t{i}.png", p), save(tmp_path / f"t/masks/t{i}.png", box(5, 5, 64, 64, 20))
    for i, p in enumerate(pictures[4:]): save(tmp_path / f"v/images/v{i}.png", p), save(tmp_path / f"v/masks/v{i}.png", box(5, 5, 64, 64, 20))
    save(tmp_path / "v/images/copy.png", pictures[1]); save(tmp_path / "v/masks/copy.png", box(5, 10, 64, 64, 20))
    save(tmp_path / "v/images/resaved.png", Image.fromarray(pictures[2]).convert("RGB")); save(tmp_path / "v/masks/resaved.png", box(5, 5, 64, 64, 20))
    save(tmp_path / "v/images/brighter.png", (pictures[3] // 2 + 90).astype(np.uint8)); save(tmp_path / "v/masks/brighter.png", np.zeros((64, 64), np.uint8))
    return [load_dataset("folder", root=tmp_path / part, split="all", size=64)[0] for part in "tv"]


def test_duplicates_are_found(tmp_path):
    train, valid = sets_with_a_leak(tmp_path)
    assert sorted(identical_pairs(valid, train)) == [("copy", "t1", "file", 0.6), ("resaved", "t2", "pixels", 1.0)]
    assert {(a, b) for a, b, _ in near_pairs(valid, train)} == {("copy", "t1"), ("resaved", "t2"), ("brighter", "t3")}
    report = data_report(train, valid)
    assert report.facts["valid"]["empty"] == ["brighter"] and len(report.facts["near"]) == 3 and report.facts["train"]["heights"] == (64, 64)
    assert "copy = t1 (same file, masks agree to IoU 0.60)" in repr(report) and "2 pairs" in repr(report)
    assert identical_pairs(train) == near_pairs(train) == [] == identical_pairs(train, train[[]])
    copies = train[[0, 1, 0]]
    assert data_report(copies, copies[[]]).facts == data_report(copies).facts and len(data_report(copies, copies[[]]).facts["identical"]) == 1
    assert torch.equal(train[torch.tensor(1)][0], train[1][0])
    assert identical_pairs(train[[0, 1, 0]])[0][:3] == ("t0", "t0", "file") and near_pairs(train[[0, 1, 0]])[0][:2] == ("t0", "t0")


def test_duplicates_where_only_one_side_came_from_files():
    train, _ = load_dataset("phantom", size=64, channels=1)
    colour, _ = load_dataset("phantom", size=64)
    plain = SegmentationData(train.images, train.masks, train.names)
    for one, other in ((plain, train), (train, plain), (plain, colour)):
        assert [p[0] == p[1] and p[2:] == ("pixels", 1.0) for p in identical_pairs(one, other)] == [True] * 48
    assert identical_pairs(plain) == [] and "(same pixels, masks agree to IoU 1.00)" in str(data_report(plain, plain))


def test_report_of_odd_data():
    import matplotlib
    matplotlib.use("Agg")
    flat = SegmentationData(torch.zeros(3, 1, 20, 30, dtype=torch.uint8), torch.zeros(3, 1, 20, 30, dtype=torch.uint8), "abc")
    report = flat.report()
    assert "no lesion" in repr(report) and report.facts["near"] == [] and len(report.facts["identical"]) == 3
    assert data_report(flat[:1], flat[[]]).figure(images=2) and data_report(flat, flat).figure(images=0)
    coloured = SegmentationData(torch.tensor([1, 2, 3] * 4, dtype=torch.uint8).view(4, 3, 1, 1), torch.ones(4, 1, 1, 1, dtype=torch.uint8), "abcd")
    assert data_report(coloured).facts["train"]["colour"] == list("abcd")
    json.dumps(report.facts)


def test_clean_subset():
    d = SegmentationData(*torch.zeros(2, 3, 1, 1, 1, dtype=torch.uint8), ["benign (433)", "benign (20)", "malignant (145)"])
    assert "benign (20)" in clean_subset(d).names and "benign (433)" not in clean_subset(d).names
    with pytest.raises(ValueError, match="'busi' only"): clean_subset(d, "tn3k")


# BUSI itself

@pytest.fixture(scope="module")
def busi(tmp_path_factory):
    before = {k: os.environ.get(k) for k in ("CMUNEXT_CACHE", "CMUNEXT_QUIET")}
    os.environ.update(CMUNEXT_CACHE=str(tmp_path_factory.mktemp("busi")), CMUNEXT_QUIET="1")
    times = []
    for _ in range(3):
        start = time.process_time(); load_dataset("busi"); times.append(time.process_time() - start)
    parts = {k: load_dataset("busi", split=k, channels=1) for k in (1, 2, 3)}
    for k, v in before.items(): os.environ.pop(k, None) if v is None else os.environ.__setitem__(k, v)
    return times, parts


@needs_busi
def test_busi_is_read_fast(busi):
    first, *later = busi[0]  # seconds of processor time: a busy machine does not count
    assert first < 40 and min(later) < 1


@needs_busi
def test_busi_splits(busi):
    for k, (train, valid) in busi[1].items():
        assert (len(train), len(valid)) == (452, 195) and valid.names == busi_lists()["splits"][str(k)]["valid"]
        assert len(clean_subset(valid)) == {1: 118, 2: 122, 3: 123}[k] and (train.masks.flatten(1).sum(1) > 0).all()
        assert sum(train.meta["colour"]) + sum(valid.meta["colour"]) == 15
        assert len({*train.meta["sizes"], *valid.meta["sizes"]}) == 545
        identical = [(set(p[:2]), p[2]) for p in identical_pairs(valid, train)]
        assert identical == ([({"benign (433)", "malignant (145)"}, "file")] if k == 2 else [])
        assert 15 <= len(near_pairs(valid, train, alike=0.98)) <= 25 and near_pairs(clean_subset(valid), train) == []


# what is left out, and names that look alike

def renamed(folder, old, new):
    "Save a picture of a folder under another name, or as another type, instead."
    Image.open(folder / old).save(folder / new)
    (folder / old).unlink()


@pytest.mark.parametrize("kind", ["gif", "jfif", "ppm", "pgm", "jp2", "tga", "PNG"])
def test_usual_types_are_read(tmp_path, kind):
    folder_of(tmp_path, "abc")
    for part in ("images", "masks"): renamed(tmp_path / part, "b.png", f"b.{kind}")
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "table.csv", "readme.md", "net.safetensors", ".hidden.dcm"): (tmp_path / "images" / name).write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_dataset("folder", root=tmp_path, size=32, split="all")[0].names == list("abc")


def test_files_that_are_left_out_are_named_once(tmp_path):
    folder_of(tmp_path, "abcd")
    for name in ("images/b.png", "masks/c.png"): (tmp_path / name).rename((tmp_path / name).with_suffix(".dcm"))
    (tmp_path / "images/c.png").unlink()
    with pytest.warns(UserWarning) as told: assert load_dataset("folder", root=tmp_path, size=32, split="all")[0].names == ["a", "d"]
    said, = [str(w.message) for w in told]
    assert re.search(r"1 in \S*images of no image type that is read: b.dcm; 1 in \S*masks of no image type that is read: c.dcm; 1 in \S*masks without an image: b.png", said)


def test_masks_of_an_unread_type_are_named_before_the_error(tmp_path):
    folder_of(tmp_path, "ab")
    (tmp_path / "masks/a.png").rename(tmp_path / "masks/a.npy")
    with pytest.warns(UserWarning, match="a.npy"), pytest.raises(FileNotFoundError, match="1 of 2 images.*a.png"): pair_files(tmp_path / "images", tmp_path / "masks")


@pytest.mark.parametrize("forms", [("NFD", "NFC", "NFD"), ("NFC", "NFD", "NFC"), ("NFD", "NFD", "NFC"), ("NFC", "NFC", "NFD")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_accents_of_one_or_two_characters(tmp_path, forms, encoding):
    image, mask, listed = (unicodedata.normalize(form, "Übung é") for form in forms)
    folder_of(tmp_path, "ab")
    renamed(tmp_path / "images", "a.png", f"{image}.png"); renamed(tmp_path / "masks", "a.png", f"{mask}_mask.png")
    (tmp_path / "train.txt").write_text(f"{listed}\n", encoding=encoding); (tmp_path / "val.txt").write_text("b\n", encoding=encoding)
    assert [part.names for part in load_dataset("folder", root=tmp_path, size=32)] == [[unicodedata.normalize("NFC", "Übung é")], ["b"]]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_list_in_another_encoding(tmp_path, encoding):
    folder_of(tmp_path, "ab")
    (tmp_path / "train.txt").write_text("Übung\n", encoding=encoding); (tmp_path / "val.txt").write_text("b\n")
    with pytest.raises(ValueError, match="train.txt is no text in UTF-8.*Save it as UTF-8"): load_dataset("folder", root=tmp_path, size=32)


def test_a_mask_of_an_image_that_exif_turned(tmp_path):
    exif = Image.Exif(); exif[274] = 6
    folder_of(tmp_path, "ab")
    save(tmp_path / "images/a.jpg", noise(), exif=exif); (tmp_path / "images/a.png").unlink()
    with pytest.raises(ValueError, match=r"is 50 x 40 pixels, its image \S*a.jpg 40 x 50.*own size. The image is stored as 50 x 40 pixels and turned by its EXIF orientation: draw"):
        load_dataset("folder", root=tmp_path, size=32)
    renamed(tmp_path / "images", "a.jpg", "a.png")  # without the tag
    save(tmp_path / "masks/a.png", box(0, 0, 50, 40))
    with pytest.raises(ValueError, match="own size.$"): load_dataset("folder", root=tmp_path, size=32)


@pytest.mark.parametrize("whole", [np.int64, np.uint8])
def test_a_size_of_numpy(tmp_path, whole):
    folder_of(tmp_path, "ab")
    assert load_dataset("folder", root=tmp_path, size=whole(32), split="all")[0].images.shape == (2, 3, 32, 32)
