"""Kept memory and the wide norm: corner cases. The everyday path is checked in nbs/14b_cpu.ipynb."""
import copy, os, subprocess, sys, threading

import pytest
import torch
from torch import nn

from cmunext_nb import cpu
from cmunext_nb.cpu import keep_memory, wide_norm
from cmunext_nb.model import create_model
from cmunext_nb.train import fit


def last(*shape, dtype=torch.float64, seed=0):
    "Random numbers, far from zero mean, in channels_last."
    g = torch.Generator().manual_seed(seed)
    return (3 + 2 * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype).contiguous(memory_format=torch.channels_last)


def both(norm, x, grad):
    "Output, gradients and buffers of two copies of a norm, torch's way and the wide one; and the name of the wide one's gradient."
    results = []
    for wide in (False, True):
        n, z = copy.deepcopy(norm), x.clone().requires_grad_()
        if wide:
            with wide_norm(): y = n(z)
        else: y = n(z)
        way = type(y.grad_fn).__name__
        y.backward(grad)
        results.append([y.detach(), z.grad, *(p.grad for p in n.parameters()), *n.buffers()])
    return *results, way


@pytest.mark.parametrize("channels", [2, 3, 5, 8, 12, 20, 24, 40])
def test_the_wide_norm_is_the_norm(channels):
    torch.manual_seed(channels)
    norm = nn.BatchNorm2d(channels).double()
    nn.init.uniform_(norm.weight, -1, 2)
    x, grad = (last(3, channels, 64, 96, seed=s) for s in (0, 1))
    plain, wide, way = both(norm, x, grad)
    assert way == "_WideNormBackward"
    for a, b in zip(plain, wide): torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [dict(momentum=None), dict(track_running_stats=False), dict(eps=0.5), dict(momentum=0.9)], ids=str)
def test_every_option_of_the_norm(options):
    norm, x, grad = nn.BatchNorm2d(8, **options).double(), last(2, 8, 64, 64), last(2, 8, 64, 64, seed=1)
    norm(last(2, 8, 64, 64, seed=2))  # buffers that are not the first ones
    plain, wide, way = both(norm, x, grad)
    assert way == "_WideNormBackward" and len(plain) == len(wide)
    for a, b in zip(plain, wide): torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


def test_a_frozen_norm_gets_no_gradient():
    norm, x = nn.BatchNorm2d(8).requires_grad_(False), last(2, 8, 64, 64, dtype=torch.float32).requires_grad_()
    with wide_norm(): norm(x).sum().backward()
    assert norm.weight.grad is None and x.grad.isfinite().all()


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.SiLU(inplace=True), lambda y: y.add_(1).mul_(2)], ids=["relu", "silu", "tensor"])
def test_an_activation_may_work_in_place(act):
    "As in most networks of other libraries."
    norm, x, gradients = nn.BatchNorm2d(24), last(2, 24, 64, 64, dtype=torch.float32), []
    for mode in (wide_norm(), torch.enable_grad()):
        z = x.clone().requires_grad_()
        with mode: loss = act(norm(z)).square().sum()
        gradients.append(torch.autograd.grad(loss, z)[0])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_a_network_of_another_library_trains():
    "Mobile networks have 8, 24 and 40 channels, and activations that work in place."
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net = nn.Sequential(torchvision.models.mobilenet_v3_small(weights=None).features[:4], nn.Conv2d(24, 1, 1), nn.Upsample(scale_factor=8)).train()
    images, masks = torch.randint(0, 255, (4, 3, 128, 128), dtype=torch.uint8), torch.randint(0, 2, (4, 1, 128, 128), dtype=torch.uint8)
    history = fit(net, (images, masks), recipe="fast", epochs=2, batch_size=2, sizes=None, progress=False, device="cpu")
    assert history.last["loss"] > 0 and all(p.isfinite().all() for p in net.parameters())


def test_a_constant_map_is_no_division_by_zero():
    x = torch.full((2, 8, 64, 64), 7.0).contiguous(memory_format=torch.channels_last).requires_grad_()
    norm = nn.BatchNorm2d(8)
    with wide_norm(): y = norm(x)
    y.square().sum().backward()
    assert y.abs().max() < 1e-2 and x.grad.isfinite().all()


def without_bias(norm):
    norm.register_parameter("bias", None)
    return norm


LEFT = dict(
    evaluation=lambda: (nn.BatchNorm2d(8).eval(), last(2, 8, 64, 64, dtype=torch.float32)),
    no_weights=lambda: (nn.BatchNorm2d(8, affine=False), last(2, 8, 64, 64, dtype=torch.float32)),
    no_bias=lambda: (without_bias(nn.BatchNorm2d(8)), last(2, 8, 64, 64, dtype=torch.float32)),
    plain_layout=lambda: (nn.BatchNorm2d(8), last(2, 8, 64, 64, dtype=torch.float32).contiguous()),
    full_lines=lambda: (nn.BatchNorm2d(16), last(2, 16, 64, 64, dtype=torch.float32)),
    many=lambda: (nn.BatchNorm2d(56), last(2, 56, 64, 64, dtype=torch.float32)),
    small=lambda: (nn.BatchNorm2d(8), last(2, 8, 16, 16, dtype=torch.float32)),
    odd_width=lambda: (nn.BatchNorm2d(8), last(2, 8, 64, 65, dtype=torch.float32)),
    one_channel=lambda: (nn.BatchNorm2d(1), last(2, 1, 256, 256, dtype=torch.float32)),
    three_dimensions=lambda: (nn.BatchNorm1d(8), torch.randn(8, 8, 1024)),
)


@pytest.mark.parametrize("case", LEFT)
def test_other_norms_are_left_alone(case):
    norm, x = LEFT[case]()
    x.requires_grad_()
    with wide_norm(): y = norm(x)
    assert type(y.grad_fn).__name__ != "_WideNormBackward"
    assert torch.equal(y, norm(x))


def test_a_second_derivative_is_an_error_and_not_a_wrong_number():
    norm, x = nn.BatchNorm2d(8), last(2, 8, 64, 64, dtype=torch.float32).requires_grad_()
    with wide_norm(): first, = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiat"): first.sum().backward()


def test_the_context_ends():
    norm, x = nn.BatchNorm2d(8), last(2, 8, 64, 64, dtype=torch.float32).requires_grad_()
    with pytest.raises(ZeroDivisionError), wide_norm(): 1 / 0
    assert type(norm(x).grad_fn).__name__ != "_WideNormBackward"


def test_fit_trains_by_both(monkeypatch):
    "`fit` enters both contexts on the CPU, and the memory goes back when it is over."
    seen = []
    monkeypatch.setattr("cmunext_nb.train.wide_norm", lambda: seen.append(cpu._inside[0]) or wide_norm())
    torch.manual_seed(0)
    images, masks = torch.randint(0, 255, (4, 1, 32, 32), dtype=torch.uint8), torch.randint(0, 2, (4, 1, 32, 32), dtype=torch.uint8)
    fit(create_model("cmunext_s"), (images, masks), recipe="fast", epochs=1, batch_size=2, progress=False, device="cpu")
    assert len(seen) == 2 and cpu._inside == [0]
    assert seen == [1, 1] or cpu._glibc() is None


class Recorder:
    "Stands for the C library and writes down what it is told."
    def __init__(self): self.calls = []
    def mallopt(self, name, value): self.calls.append((name, value))
    def malloc_trim(self, pad): self.calls.append("trim")


@pytest.fixture
def library(monkeypatch):
    found = Recorder()
    monkeypatch.setattr(cpu, "_glibc", lambda: found)
    return found


def test_contexts_may_overlap(library):
    with keep_memory() as outer:
        begun = list(library.calls)
        with keep_memory() as inner: pass
        assert outer and inner and library.calls == begun  # the inner one neither sets nor gives back
    assert library.calls[-1] == "trim" and library.calls.count("trim") == 1 and cpu._inside == [0]


def test_threads_may_overlap(library):
    inside, leave = threading.Barrier(4), threading.Barrier(4)
    def work():
        with keep_memory():
            inside.wait(10)
            leave.wait(10)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads: t.start()
    inside.wait(10)
    assert "trim" not in library.calls and cpu._inside == [3]
    leave.wait(10)
    for t in threads: t.join()
    assert library.calls.count("trim") == 1 and cpu._inside == [0]


def test_an_error_inside_gives_the_memory_back(library):
    with pytest.raises(KeyboardInterrupt), keep_memory(): raise KeyboardInterrupt
    assert library.calls[-1] == "trim" and cpu._inside == [0]


@pytest.mark.parametrize("name, value", [("MALLOC_MMAP_MAX_", "65536"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1000"), ("LD_PRELOAD", "libjemalloc.so")])
def test_somebody_who_has_chosen_is_left_alone(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with keep_memory() as active: assert active is False


def test_another_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(cpu.sys, "platform", "win32")
    with keep_memory() as active: assert active is False


@pytest.mark.skipif(cpu._glibc() is None, reason="another allocator")
def test_memory_is_kept_and_given_back():
    "In a process of its own: once the heap has settled, a step needs hardly a new page, and afterwards the process is as small as before."
    code = """
import resource, torch
from cmunext_nb.cpu import keep_memory
torch.set_num_threads(1)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
size = lambda: int(open("/proc/self/statm").read().split()[1]) // 256  # megabytes
def pages():
    before = faults()
    maps = [torch.ones(1, 8 * (i + 1), 1024, 1024) for i in range(4)]  # 32 to 128 MB, kept to the end of the step
    return faults() - before
outside = [pages() for _ in range(2)][-1]
before = size()
with keep_memory() as active:
    # Freed blocks join and split by where they lie, which differs from process to process: the heap grew for two to
    # seven steps in 48 processes, and then no more.
    steps = [pages() for _ in range(24)]
    inside = size()
print(active, outside, max(steps[-4:]), before, inside, size(), steps)
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    active, outside, again, before, inside, after = done.stdout.split()[:6]
    assert active == "True" and int(again) * 100 < int(outside), done.stdout  # outside: 81,920 pages of 4 KB
    assert int(inside) - int(before) > 250 and int(after) - int(before) < 60, done.stdout
