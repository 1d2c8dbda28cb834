"""Phantoms: the same every time, masks that are exact, a committed set that is what the command makes."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmunext_nb.phantom import (ANGLES, KINDS, Lesion, Probe, Scene, add_lesion, lesion_outline, make_phantom, phantom_pair, phantom_scene,
                                random_lesions, receive, scan, scan_grid, write_phantoms)

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "data" / "phantom"


@pytest.fixture
def threads():
    "Set torch's thread count in a test, and put it back."
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_image_depends_on_seed_and_number_alone(threads):
    threads(1)
    images, masks = make_phantom(5, 64, seed=2)
    threads(4)
    again = make_phantom(5, 64, seed=2)
    assert torch.equal(images, again[0]) and torch.equal(masks, again[1])
    fewer = make_phantom(2, 64, seed=2)
    assert torch.equal(images[:2], fewer[0]) and torch.equal(masks[:2], fewer[1])
    assert not torch.equal(images, make_phantom(5, 64, seed=3)[0])
    assert len({m.numpy().tobytes() for m in images}) == 5


def test_global_generators_are_left_alone():
    np.random.seed(0), torch.manual_seed(0)
    expected = np.random.rand(), torch.rand(1).item()
    np.random.seed(0), torch.manual_seed(0)
    make_phantom(2, 32)
    assert (np.random.rand(), torch.rand(1).item()) == expected


@pytest.mark.parametrize("size", [32, 33, 100, 160])
def test_shapes_types_values(size):
    images, masks = make_phantom(3, size, seed=1)
    assert images.shape == masks.shape == (3, 1, size, size) and images.dtype == masks.dtype == torch.uint8
    assert masks.unique().tolist() == [0, 1] and masks.sum((1, 2, 3)).min() > 0
    assert images.float().std((1, 2, 3)).min() > 15


@pytest.mark.parametrize("wrong", [dict(n=0), dict(n=-1), dict(n=1.5), dict(n=None), dict(n="4"), dict(n=True), dict(n=1, size=31), dict(n=1, size=64.0),
                                   dict(n=1, seed=-1), dict(n=1, seed=0.5)])
def test_numbers_that_cannot_be(wrong):
    name, = [k for k in wrong if k != "n"] or ["n"]
    with pytest.raises(ValueError, match=f"make_phantom needs {name} to be a whole number"): make_phantom(**wrong)


def polygon_mask(lesion, size):
    "Another way to the mask: pixel centres inside the polygon of the outline's 720 points."
    from matplotlib.path import Path as Polygon
    outline = np.stack([lesion.x + lesion.radius * np.cos(ANGLES), lesion.y + lesion.radius * np.sin(ANGLES)], 1)
    y, x = np.meshgrid(*[(np.arange(size) + 0.5) / size] * 2, indexing="ij")
    return Polygon(outline).contains_points(np.stack([x.ravel(), y.ravel()], 1)).reshape(size, size)


@pytest.mark.parametrize("kind", list(KINDS))
def test_mask_is_the_outline(kind):
    size = 192
    for seed in range(4):
        radius = lesion_outline(np.random.default_rng(seed), kind, 0.06)
        lesion = Lesion(kind, 0.47, 0.52, radius, -20, 0, 0, 0, 0.01, np.zeros((0, 3)))
        scene = Scene(*np.zeros((2, size, size), np.float32), np.zeros((size, size), bool))
        add_lesion(scene, lesion, np.random.default_rng(0), *scan_grid(size))
        differ = (scene.mask != polygon_mask(lesion, size)).sum()
        assert differ <= 0.002 * scene.mask.sum() + 2, (kind, seed, differ)
        assert abs(scene.mask.mean() - 0.06) < 0.001


def test_mask_edge_is_where_the_echo_changes():
    "The echo map crosses half way between inside and outside exactly at the mask's edge."
    size = 256
    lesion = Lesion("oval", 0.5, 0.5, lesion_outline(np.random.default_rng(3), "lobulated", 0.1), -20, 0, 0, 0, 0.01, np.zeros((0, 3)))
    scene = Scene(*np.zeros((2, size, size), np.float32), np.zeros((size, size), bool))
    add_lesion(scene, lesion, np.random.default_rng(0), *scan_grid(size))
    assert ((scene.level < -10) != scene.mask).mean() < 0.003


def test_calcifications_lie_inside_the_mask():
    found = 0
    for seed in range(60):
        scene = phantom_scene(np.random.default_rng((7, seed)), 128)
        for y, x, _ in np.concatenate(scene.grains):
            found += 1
            assert scene.mask[int(y * 128), int(x * 128)], (seed, y, x)
    assert found > 20


def test_lesions_are_one_to_three_and_apart():
    from scipy.ndimage import label
    counts = []
    for seed in range(60):
        lesions = random_lesions(np.random.default_rng(seed))
        counts.append(len(lesions))
        scene = Scene(*np.zeros((2, 160, 160), np.float32), np.zeros((160, 160), bool))
        for lesion in lesions: add_lesion(scene, lesion, np.random.default_rng(0), *scan_grid(160))
        assert label(scene.mask, np.ones((3, 3)))[1] == len(lesions), seed
    assert min(counts) == 1 and 2 <= max(counts) <= 3 and np.mean(np.array(counts) == 1) > 0.7


def test_areas_are_like_busi():
    share = make_phantom(300, 32, seed=5)[1].float().mean((1, 2, 3))
    low, middle, high = np.percentile(share, [25, 50, 75])
    assert 0.015 < low < 0.045 and 0.04 < middle < 0.085 and 0.09 < high < 0.16  # BUSI: 0.022, 0.058, 0.131


def test_speckle_is_fully_developed():
    scene = Scene(*np.zeros((2, 256, 256), np.float32), np.zeros((256, 256), bool))
    envelope = receive(scene, np.random.default_rng(0), Probe(fade=0))
    assert abs(envelope.mean() / envelope.std() - np.sqrt(np.pi / (4 - np.pi))) < 0.05
    power = envelope ** 2 / (envelope ** 2).mean()
    assert abs((power > 1).mean() - np.exp(-1)) < 0.015  # the square of a Rayleigh length falls off exponentially


def test_greys_alone_do_not_solve_it_and_size_keeps_the_anatomy():
    images, masks = make_phantom(24, 96, seed=8)
    truth = masks.bool()
    iou = [float(((images <= t) & truth).sum() / ((images <= t) | truth).sum()) for t in range(0, 150, 5)]
    assert max(iou) < 0.45
    inside, outside = images[truth].float().mean(), images[~truth].float().mean()
    assert inside + 25 < outside
    small = torch.from_numpy(np.stack([phantom_pair(8, i, 48)[1] for i in range(6)])).float()
    halved = torch.nn.functional.avg_pool2d(masks[:6, 0].float(), 2)
    assert (small - halved).abs().mean() < 0.01


def test_scan_is_repeatable():
    scene = phantom_scene(np.random.default_rng(1), 64)
    assert (scan(scene, np.random.default_rng(2)) == scan(scene, np.random.default_rng(2))).all()


def test_write_phantoms(tmp_path):
    folder = write_phantoms(tmp_path / "set", n=5, size=40, seed=3)
    train, valid = ((folder / f"{s}.txt").read_text().split() for s in ("train", "valid"))
    assert train == [f"phantom_{i:03d}" for i in range(4)] and valid == ["phantom_004"]
    images, masks = make_phantom(5, 40, 3)
    for i, name in enumerate(train + valid):
        with Image.open(folder / "images" / f"{name}.png") as file: assert file.mode == "L" and (np.array(file) == images[i, 0].numpy()).all()
        with Image.open(folder / "masks" / f"{name}.png") as file: assert file.mode == "1" and (np.array(file) == masks[i, 0].numpy()).all()
    with pytest.raises(ValueError, match="write_phantoms needs n to be a whole number, 2 or more"): write_phantoms(tmp_path / "none", n=1)
    assert not (tmp_path / "none").exists()


def test_command_line(tmp_path):
    words = [sys.executable, "-W", "error::RuntimeWarning", "-m", "cmunext_nb.phantom", str(tmp_path / "out"), "--n", "2", "--size", "32", "--seed", "4"]
    said = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert said.returncode == 0, said.stderr
    assert (tmp_path / "out" / "masks" / "phantom_001.png").exists() and "2 phantoms" in said.stdout


@pytest.mark.skipif(not COMMITTED.exists(), reason="an installed package has no data folder beside it")
def test_committed_set_is_what_the_command_makes():
    train, valid = ((COMMITTED / f"{s}.txt").read_text().split() for s in ("train", "valid"))
    assert len(train) == 48 and len(valid) == 16 and not set(train) & set(valid)
    files = [p for p in COMMITTED.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 3_000_000 and len(files) == 2 * 64 + 2
    images, masks = make_phantom(64, 256, 0)
    read = lambda kind: np.stack([np.array(Image.open(COMMITTED / kind / f"{n}.png")) for n in train + valid]).astype(int)
    grey = np.abs(read("images") - images[:, 0].numpy())
    assert grey.max() <= 1 and (grey > 0).mean() < 0.001  # the last digit of exp and of the transform is the processor's own
    assert (read("masks") != masks[:, 0].numpy()).sum() <= 8
