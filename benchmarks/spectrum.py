"""The spectra's claims, measured: accuracy, the null, speed on a GPU and on a CPU, memory.

Usage: python benchmarks/spectrum.py [--part accuracy|gpu|cpu|memory ...] [--layers 32] [--tiny]
[--results DIR]; writes rows of spectrum.json. Models of the
real shape have random weights; peers run in the same process on one matrix of each shape.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measurements import arguments, folder_of, row, show, update
from safetensors.torch import save_file

from paretune.runner.spectrum import devices
from paretune.runner.tuned import tuned_in
from paretune.spectrum.compute import spectra
from paretune.spectrum.matrices import matrices_of
from paretune.spectrum.measures import effective_rank, rank_for, stable_rank
from paretune.spectrum.measuring import Options, Tuned
from paretune.spectrum.null import null, signal_count
from paretune.spectrum.singular import gram, singular_values
from paretune.spectrum.weights import Weights

SEVEN_B = {"q_proj": (4096, 4096), "k_proj": (4096, 4096), "v_proj": (4096, 4096),
           "o_proj": (4096, 4096), "gate_proj": (11008, 4096), "up_proj": (11008, 4096),
           "down_proj": (4096, 11008)}  # fmt: skip
ONE_B = {"q_proj": (2048, 2048), "k_proj": (512, 2048), "v_proj": (512, 2048),
         "o_proj": (2048, 2048), "gate_proj": (8192, 2048), "up_proj": (8192, 2048),
         "down_proj": (2048, 8192)}  # fmt: skip
TEN_SHAPES = [(64, 64), (128, 128), (256, 256), (400, 400), (64, 256), (256, 64), (192, 512),
              (512, 192), (100, 1000), (300, 800)]  # fmt: skip
RANK = 16


def path_of(layer: int, module: str) -> str:
    """A tensor's name, as Llama models have it."""
    part = "self_attn" if module in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
    return f"model.layers.{layer}.{part}.{module}.weight"


def write_pair(
    folder: Path, shapes: dict[str, tuple[int, int]], layers: int, device: torch.device
) -> None:
    """A base and a full finetune of it in bf16, a shard a layer, and a rank-16 adapter."""
    torch.manual_seed(0)
    adapter: dict[str, torch.Tensor] = {}
    for name in ("base", "tuned", "adapter"):
        (folder / name).mkdir(parents=True)
    for layer in range(layers):
        old, new = {}, {}
        for module, (d_out, d_in) in shapes.items():
            W0 = torch.randn(d_out, d_in, device=device) * 0.02
            W = W0 + torch.randn(d_out, d_in, device=device) * 1e-3
            path = path_of(layer, module)
            old[path], new[path] = W0.bfloat16().cpu(), W.bfloat16().cpu()
            prefix = f"base_model.model.{path.removesuffix('.weight')}"
            adapter[f"{prefix}.lora_A.weight"] = torch.randn(RANK, d_in) * 0.01
            adapter[f"{prefix}.lora_B.weight"] = torch.randn(d_out, RANK) * 0.01
        save_file(old, folder / "base" / f"model-{layer:05}.safetensors")
        save_file(new, folder / "tuned" / f"model-{layer:05}.safetensors")
    save_file(adapter, folder / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))


def measured(
    folder: Path, name: str, options: Options, device: str | None, count: int | None = None
) -> tuple[float, int]:
    """Seconds to open both models and measure every matrix (or the first), and how many."""
    started = time.perf_counter()
    base = Weights.of(folder / "base")
    matrices = matrices_of(base)[:count]
    model: Tuned = tuned_in(name, folder / name, base, matrices)
    found = list(spectra(base, matrices, [model], options, devices(device)))
    return time.perf_counter() - started, len(found)


def svdvals_seconds(
    shapes: dict[str, tuple[int, int]], device: torch.device, peer: Callable[[torch.Tensor], Any]
) -> float:
    """Seconds of the peer for W0, W and the update of one layer: one matrix of each shape timed."""
    # On a CPU processor time, so that other work on the cores does not count
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds: dict[tuple[int, int], float] = {}
    for d_out, d_in in shapes.values():
        key = (min(d_out, d_in), max(d_out, d_in))
        if key not in seconds:
            matrix = torch.randn(key, device=device)
            if device.type == "cuda":
                peer(torch.randn(256, 256, device=device))
                torch.cuda.synchronize()
            started = clock()
            peer(matrix)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[key] = clock() - started
            print(f"peer on {key}: {seconds[key]:.3f} s", flush=True)
    return 3 * sum(seconds[min(s), max(s)] for s in shapes.values())


def gpu(layers: int, shapes: dict[str, tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """A 7B pair on one GPU: every matrix's three spectra, an adapter's updates, all measures."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name() if device.type == "cuda" else None
    need = 5 * layers * sum(a * b for a, b in shapes.values())  # bytes: two bf16 models and more
    places = [Path("/dev/shm"), Path(tempfile.gettempdir())]
    roomy = [p for p in places if p.exists() and shutil.disk_usage(p).free > need]
    print(f"{need / 1e9:.0f} GB needed; room in {roomy}", flush=True)
    with tempfile.TemporaryDirectory(dir=roomy[0]) as text:
        folder = Path(text)
        started = time.perf_counter()
        write_pair(folder, shapes, layers, device)
        print(f"wrote the pair in {time.perf_counter() - started:.0f} s", flush=True)
        gram(torch.randn(512, 512, device=device))
        torch.linalg.eigvalsh(torch.eye(512, dtype=torch.float64, device=device))
        scale = 32 / layers
        count = 7 * layers
        note = "" if layers == 32 else f"; {layers} layers measured, times {scale:g}"
        for attempt in range(2):
            seconds, found = measured(folder, "adapter", Options(delta_only=True), device.type)
            assert found == count
            print(f"adapter, run {attempt + 1}: {seconds:.2f} s", flush=True)
        yield row(
            "spectra of a rank-16 adapter's updates",
            f"7B shape, {count} matrices, from a file system in memory, second run{note}",
            "s",
            our_value=seconds * scale,
            goal="at most 2",
            device=card,
        )
        with peak_memory() as peak:
            seconds, found = measured(folder, "tuned", Options(), device.type)
        assert found == count
        print(f"full pair: {seconds:.1f} s", flush=True)
        theirs = svdvals_seconds(shapes, device, torch.linalg.svdvals) * 32
        yield row(
            "all singular values of W0, W and the update",
            f"7B shape, {count} matrices, bf16 shards on a file system in memory{note}",
            "s",
            peer="torch.linalg.svdvals, float32, one matrix of each shape, times their number",
            peer_value=theirs,
            our_value=seconds * scale,
            ratio=theirs / (seconds * scale),
            goal="at most 75 s, and 9 times the peer",
            device=card,
        )
        yield row(
            "host memory beside the page cache, computing on a GPU",
            f"7B shape, {count} matrices",
            "GB",
            our_value=peak[0] / 1e9,
            goal="at most 3",
            device=card,
        )
        seconds, found = measured(folder, "tuned", Options(vectors=True), device.type, 7)
        yield row(
            "the same with angles and intruder dimensions",
            "7B shape, one layer measured, times 32",
            "s",
            our_value=seconds * 32,
            goal="no target",
            device=card,
        )


def cpu() -> Iterator[dict[str, Any]]:
    """A 1B pair on a CPU, one layer measured; numpy's SVD beside it.

    In processor time with one thread a matrix (run it with OMP_NUM_THREADS=1): of several cores
    each takes its share of the matrices, for numpy as for ours.
    """
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise SystemExit("run the part cpu with OMP_NUM_THREADS=1")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        write_pair(folder, ONE_B, 1, torch.device("cpu"))
        before = time.process_time()
        wall, _ = measured(folder, "tuned", Options(), "cpu")
        seconds = time.process_time() - before
        print(f"one layer: {seconds:.1f} core-seconds, {wall:.1f} s", flush=True)
        theirs = svdvals_seconds(
            ONE_B, torch.device("cpu"), lambda m: np.linalg.svd(m.numpy(), compute_uv=False)
        )
        yield row(
            "all singular values of W0, W and the update on a CPU",
            "1B shape, one layer measured, times 16; half of it in time on two cores",
            "core-seconds",
            peer="numpy.linalg.svd, float32, one matrix of each shape, times their number",
            peer_value=theirs * 16,
            our_value=seconds * 16,
            ratio=theirs / seconds,
            goal="minutes",
        )


def memory() -> Iterator[dict[str, Any]]:
    """Peak private memory on a CPU, at the 7B shapes."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        shapes = {name: SEVEN_B[name] for name in ("gate_proj", "down_proj")}
        write_pair(folder, shapes, 1, torch.device("cpu"))
        before = private_bytes()
        with peak_memory() as peak:
            measured(folder, "tuned", Options(), "cpu")
        yield row(
            "host memory beside the page cache, computing on a CPU",
            "7B shape, two of the largest matrices, a worker each; torch and all is in it",
            "GB",
            our_value=peak[0] / 1e9,
            goal=f"at most 3 (before: {before / 1e9:.2g})",
        )


def accuracy() -> Iterator[dict[str, Any]]:
    """Against numpy's float64 SVD, and random matrices against their null."""
    worst, wrong, count = 0.0, 0, 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        for shape in ((24, 24), (40, 17), (17, 40), (64, 171), (171, 64), (128, 130), (3, 90)):
            for matrix in structured(rng, shape):
                count += 1
                stored = torch.from_numpy(matrix).to(
                    (torch.float64, torch.float32, torch.bfloat16, torch.float64)[seed]
                )
                true = np.linalg.svd(stored.double().numpy(), compute_uv=False)
                ours = singular_values(stored).values.numpy()
                worst = max(worst, float(np.abs(ours - true).max() / true[0]))
                wrong += rank_for(ours) != rank_for(true)
                wrong += not math.isclose(
                    effective_rank(ours) or 0, effective_rank(true) or 0, rel_tol=1e-6
                )
                wrong += not math.isclose(
                    stable_rank(ours) or 0, stable_rank(true) or 0, rel_tol=1e-6
                )
    work = f"{count} random and structured matrices, float64, float32, bf16"
    yield row(
        "singular values equal numpy's float64 SVD", work, "of the largest value",
        peer="numpy.linalg.svd", our_value=worst, goal="at most 1e-6",
    )  # fmt: skip
    yield row(
        "rank, effective rank and stable rank equal numpy's", work, "that differ",
        peer="numpy.linalg.svd", our_value=wrong, goal="0",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    ratios = []
    for shape in TEN_SHAPES:
        values = [np.linalg.svd(rng.standard_normal(shape), compute_uv=False) for _ in range(20)]
        ratios.append(np.mean([rank_for(v) or 0 for v in values]) / null(*shape).rank90)
    yield row(
        "Gaussian updates have the null's rank", "ten shapes, means of 20 draws",
        "largest distance of the ratio from 1",
        our_value=float(max(abs(ratio - 1) for ratio in ratios)), goal="at most 0.02",
    )  # fmt: skip
    missed = 0
    for k in (0, 1, 5, 20):
        left = np.linalg.qr(rng.standard_normal((192, max(k, 1))))[0][:, :k]
        right = np.linalg.qr(rng.standard_normal((512, max(k, 1))))[0][:, :k]
        strength = 3 * (math.sqrt(192) + math.sqrt(512))
        planted = strength * left @ right.T + rng.standard_normal((192, 512))
        missed += abs(signal_count(np.linalg.svd(planted, compute_uv=False), 192, 512) - k)
    yield row(
        "a planted signal is found at its rank", "192 x 512, noise plus rank 0, 1, 5, 20",
        "directions missed or invented", our_value=missed, goal="0",
    )  # fmt: skip


def structured(rng: np.random.Generator, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """Random, low rank plus noise, rank-deficient, ill-conditioned, near-singular, power law."""
    m, n = shape
    small = min(shape)
    noise = rng.standard_normal(shape)
    k = max(1, small // 4)
    low = rng.standard_normal((m, k)) @ rng.standard_normal((k, n))
    left, _, right = np.linalg.svd(noise, full_matrices=False)
    yield noise
    yield low + 1e-3 * noise
    yield low
    yield (left * np.logspace(0, -12, small)) @ right
    yield (left * np.where(np.arange(small) == small - 1, 1e-10, 1.0)) @ right
    yield (left * np.arange(1, small + 1) ** -1.0) @ right
    yield noise * np.where(np.arange(m) == 0, 1e4, 1.0)[:, None]
    yield noise[:, ::-1] * np.logspace(0, 3, n)


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """The largest private (anonymous) memory of the process while the context lasts, in bytes."""
    peak, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            peak[0] = max(peak[0], private_bytes())
            time.sleep(0.05)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def private_bytes() -> float:
    """RssAnon of this process: what is in memory beside mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return float(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon")


def main() -> None:
    """Run the parts that were asked for and put their rows in the place of the old ones."""
    parser = arguments(__doc__)
    parser.add_argument("--part", nargs="+", default=["accuracy"], choices=list(PARTS))
    parser.add_argument("--layers", type=int, default=32)
    asked = parser.parse_args()
    for part in asked.part:
        if part == "gpu":
            shapes = {name: (a // 32, b // 32) for name, (a, b) in SEVEN_B.items()}
            found = gpu(1, shapes) if asked.tiny else gpu(asked.layers, SEVEN_B)
        else:
            found = PARTS[part]()
        for one in found:
            update("spectrum", [one], folder_of(asked))
            show([one])


PARTS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "accuracy": accuracy,
    "gpu": gpu,
    "cpu": cpu,
    "memory": memory,
}

if __name__ == "__main__":
    main()
