"""Ways to aggregate the same adapters, each run in a process of its own and measured in it.

    python tests/benchmarks/aggregation/contenders.py NAME --rank K --out DIR DIR...

prints one JSON object: CPU and wall seconds of the work alone (imports excluded), the memory that
the process had before it and at its peak (``VmHWM``), and what the contender says of itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from intarsia_aggregators.gram import symmetric_product
from intarsia_aggregators.merging import MEMORY
from intarsia_aggregators.offline import OfflineSum, write_sum
from intarsia_client.files import atomic_directory
from intarsia_client.opened import module_layouts, open_adapter
from intarsia_platform.cli.main import main as command
from safetensors.torch import load_file, save_file

TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
READ_AT_ONCE = 8 << 20
Result = dict[str, Any]


def megabytes(field: str) -> float:
    """A memory figure of this process in units of 10^6 bytes, such as VmRSS or VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(field)


def ours(folders: Sequence[Path], rank: int, out: Path) -> Result:
    """``intarsia_aggregators.offline``: the library call, written, flushed and renamed."""
    adapters = [open_adapter(folder) for folder in folders]
    whole = OfflineSum(adapters, labels=[str(folder) for folder in folders], rank=rank)
    with atomic_directory(out) as folder:
        report = write_sum(whole, folder)
    return {"workers": whole.workers, "cut": report.cut_total}


def intarsia(folders: Sequence[Path], rank: int, out: Path) -> Result:
    """``intarsia aggregate``: the command, which also names every adapter by its digest."""
    words = ["aggregate", *map(str, folders), "--rank", str(rank), "--out", str(out)]
    with contextlib.redirect_stdout(sys.stderr):
        code = command(words)
    if code:
        raise SystemExit(code)
    return {}


def concatenation(folders: Sequence[Path], rank: int, out: Path) -> Result:
    """FLoRA's way: every adapter loaded whole and joined to what is there by ``torch.cat``."""
    total: dict[str, torch.Tensor] = {}
    for folder in folders:
        for key, tensor in load_file(folder / TENSORS).items():
            if "lora_A" in key:
                tensor = tensor * (_scaling(folder) / len(folders))
            dim = 0 if "lora_A" in key else 1
            total[key] = torch.cat([total[key], tensor], dim=dim) if key in total else tensor
    _save({key: tensor.contiguous() for key, tensor in total.items()}, out)
    return {}


def orthogonal(folders: Sequence[Path], rank: int, out: Path) -> Result:
    """NVFlare's way: every adapter in memory, QR of both stacks, SVD of what is between."""
    loaded = [(load_file(folder / TENSORS), _scaling(folder) / len(folders)) for folder in folders]
    result = {}
    for name in module_layouts(open_adapter(folders[0])):
        b, a = _stack(loaded, name)
        q_b, r_b = torch.linalg.qr(b)
        q_a, r_a = torch.linalg.qr(a.T)
        u, sigma, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
        root = sigma[:rank].sqrt()
        result[f"{PREFIX}{name}.lora_B.weight"] = q_b @ (u[:, :rank] * root)
        result[f"{PREFIX}{name}.lora_A.weight"] = (root[:, None] * v[:rank]) @ q_a.T
    _save({key: tensor.contiguous() for key, tensor in result.items()}, out)
    return {}


def dense(folders: Sequence[Path], rank: int, out: Path) -> Result:
    """FlexLoRA's way on the first module alone: the dense sum and its full SVD."""
    loaded = [(load_file(folder / TENSORS), _scaling(folder) / len(folders)) for folder in folders]
    name = next(iter(module_layouts(open_adapter(folders[0]))))
    b, a = _stack(loaded, name)
    begun = time.process_time(), time.perf_counter()
    u, sigma, v = torch.linalg.svd(b @ a, full_matrices=False)
    root = sigma[:rank].sqrt()
    _save(
        {"b": (u[:, :rank] * root).contiguous(), "a": (root[:, None] * v[:rank]).contiguous()}, out
    )
    return {
        "modules": 1,
        "module_cpu_seconds": time.process_time() - begun[0],
        "module_wall_seconds": time.perf_counter() - begun[1],
    }


def read(folders: Sequence[Path], rank: int, out: Path) -> Result:
    """The floor: every byte once, into memory that is used again, by as many threads as ours."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return {"bytes": sum(pool.map(_read, folders))}


def read_and_write(folders: Sequence[Path], rank: int, out: Path) -> Result:
    """The floor and a file of the result's size written and flushed."""
    result = read(folders, rank, out)
    layouts = module_layouts(open_adapter(folders[0]))
    size = sum(4 * rank * sum(layout.shape) for layout in layouts.values())
    with atomic_directory(out) as folder, (folder / TENSORS).open("wb") as stream:
        block = bytes(READ_AT_ONCE)
        for begin in range(0, size, READ_AT_ONCE):
            stream.write(block[: min(READ_AT_ONCE, size - begin)])
    return {**result, "bytes_written": size}


def gram(folders: Sequence[Path], rank: int, out: Path) -> Result:
    """Our Gram products alone: as many, of the same shapes, by as many threads, in memory."""
    return _products(folders, lambda rows, room: symmetric_product(rows, out=room))


def general_gram(folders: Sequence[Path], rank: int, out: Path) -> Result:
    """The same as general products, which do not know that the result is symmetric."""
    return _products(folders, lambda rows, room: torch.mm(rows, rows.T, out=room))


def _products(
    folders: Sequence[Path], product: Callable[[torch.Tensor, torch.Tensor], object]
) -> Result:
    layouts = [module_layouts(open_adapter(folder)) for folder in folders]
    names = list(layouts[0])
    total = sum(layout[names[0]].rank for layout in layouts)
    d_out, d_in = layouts[0][names[0]].shape
    threads = torch.get_num_threads()
    held = 4 * total * (d_out + d_in + 2 * total)
    workers = max(1, min(threads, MEMORY // held))

    def work(count: int) -> tuple[float, float]:
        if workers > 1:
            torch.set_num_threads(1)
        a, b = torch.randn(total, d_in), torch.randn(d_out, total)
        rooms = torch.zeros(total, total), torch.zeros(total, total)
        product(a[:, :64], rooms[0])
        begun = time.thread_time() if workers > 1 else time.process_time(), time.perf_counter()
        for _ in range(count):
            product(b.T, rooms[0])
            product(a, rooms[1])
        ended = time.thread_time() if workers > 1 else time.process_time(), time.perf_counter()
        return ended[0] - begun[0], ended[1] - begun[1]

    shares = [len(names[worker::workers]) for worker in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        times = list(pool.map(work, shares))
    return {
        "workers": workers,
        "products_cpu_seconds": sum(cpu for cpu, _ in times),
        "products_wall_seconds": max(wall for _, wall in times),
    }


CONTENDERS = {
    entry.__name__: entry
    for entry in (
        ours, intarsia, concatenation, orthogonal, dense, read, read_and_write, gram, general_gram,
    )
}  # fmt: skip


def _scaling(folder: Path) -> float:
    settings = json.loads((folder / "adapter_config.json").read_text())
    return float(settings["lora_alpha"] / settings["r"])


def _stack(
    loaded: Sequence[tuple[dict[str, torch.Tensor], float]], name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    b = [weight * tensors[f"{PREFIX}{name}.lora_B.weight"] for tensors, weight in loaded]
    a = [tensors[f"{PREFIX}{name}.lora_A.weight"] for tensors, _ in loaded]
    return torch.cat(b, dim=1), torch.cat(a, dim=0)


def _save(tensors: dict[str, torch.Tensor], out: Path) -> None:
    with atomic_directory(out) as folder:
        save_file(tensors, folder / TENSORS)


def _read(folder: Path) -> int:
    block = bytearray(READ_AT_ONCE)
    total = 0
    with (folder / TENSORS).open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            total += count
    return total


@contextlib.contextmanager
def measured(result: Result) -> Iterator[None]:
    """Measure the block into a result."""
    result["megabytes_before"] = megabytes("VmRSS")
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    result["cpu_seconds"] = time.process_time() - cpu
    result["wall_seconds"] = time.perf_counter() - wall
    result["megabytes_peak"] = megabytes("VmHWM")
    result["megabytes_beyond"] = result["megabytes_peak"] - result["megabytes_before"]


def main() -> None:
    """Run one contender and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cold", action="store_true", help="read from the disk, not its cache")
    arguments = parser.parse_args()
    for folder in arguments.folders if arguments.cold else ():
        descriptor = os.open(folder / TENSORS, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    result: Result = {"contender": arguments.name}
    with measured(result):
        said = CONTENDERS[arguments.name](arguments.folders, arguments.rank, arguments.out)
    print(json.dumps({**result, **said}))


if __name__ == "__main__":
    main()
