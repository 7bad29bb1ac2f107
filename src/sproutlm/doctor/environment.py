"""The machine and the installation: versions, processors, memory, disk, GPU, what is installed.

Each check takes the figures that it judges as arguments, so that a test can hand it a machine that is not there.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..plan.limits import CGROUP, MEMBERSHIP, Limit, tightest
from .finding import Examination

# What pyproject.toml requires (a test compares): an import that works is no proof that the versions do.
LEAST_PYTHON = (3, 11)
TORCH = ((2, 11), (2, 14))  # from, up to but without
NEEDED = ("numpy", "tokenizers", "safetensors", "pydantic", "yaml", "typer", "rich", "jinja2", "psutil", "matplotlib")
EXTRAS = {
    "pyarrow": ("parquet files", 'pip install "sproutlm[data]"'),
    "zstandard": (".zst files", 'pip install "sproutlm[data]"'),
    "tensorboard": ("train.trackers: [tensorboard]", 'pip install "sproutlm[track]"'),
    "wandb": ("train.trackers: [wandb]", 'pip install "sproutlm[track]"'),
    "swanlab": ("train.trackers: [swanlab]", "pip install swanlab"),
    "transformers": ("comparing a tokenizer with transformers", "pip install transformers"),
}
GB = 1e9
MEMORY_LEAST, MEMORY_GOOD = 0.7 * GB, 2 * GB  # the program alone takes about 0.35 GB; the quickstart about 1.5 GB
DISK_LEAST, DISK_GOOD = 0.2 * GB, 2 * GB


def examine_environment(folder: Path | None = None) -> Examination:
    """Examine this process's environment; ``folder`` is where runs would go (default: ``runs`` below the current one)."""
    import psutil
    import torch

    found = Examination(None, "environment")
    versions(found, sys.version_info[:2], torch.__version__)
    libraries(found, [name for name in NEEDED if importlib.util.find_spec(name) is None])
    processors(found)
    threads(found, torch.get_num_threads(), usable_cores(), os.environ)
    machine = psutil.virtual_memory()
    memory(found, machine.available, memory_limit(psutil.Process().memory_info().rss, machine.total))
    place = existing_parent(folder or Path.cwd() / "runs")
    disk(found, place, shutil.disk_usage(place).free)
    writable(found, "run folder", place, "choose another place with run=DIR, or change the folder's owner or mode")
    temporary(found)
    gpu(found)
    extras(found, {name for name in EXTRAS if importlib.util.find_spec(name) is None})
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++", "cl"))), None)
    found.ok("C++ compiler", f"{compiler}; nothing here needs one" if compiler else "none, and nothing here needs one")
    return found


def versions(found: Examination, python: tuple[int, ...], torch: str) -> None:
    wanted = ".".join(map(str, LEAST_PYTHON))
    if python >= LEAST_PYTHON:
        found.ok("Python", f"{'.'.join(map(str, python))} on {platform.system()} {platform.machine()}")
    else:
        found.fail("Python", f"{'.'.join(map(str, python))}; {wanted} or newer is needed", f"install Python {wanted}")
    numbers = tuple(int(part) for part in torch.split("+")[0].split(".")[:2] if part.isdigit())
    low, high = (".".join(map(str, version)) for version in TORCH)
    if TORCH[0] <= numbers < TORCH[1]:
        found.ok("torch", torch)
    else:
        found.fail(
            "torch", f"{torch}, outside {low} to {high}, which was tested", f'pip install "torch>={low},<{high}"'
        )


def libraries(found: Examination, missing: list[str]) -> None:
    if missing:
        found.fail("libraries", f"not installed: {', '.join(missing)}", "pip install --upgrade sproutlm")
    else:
        found.ok("libraries", f"all {len(NEEDED)} that are needed are installed")


def processors(found: Examination) -> None:
    """Which vector instructions torch uses, and which compute type ``auto`` would choose on the CPU."""
    import torch

    from ..train.precision import choose_compute

    capability = torch.backends.cpu.get_cpu_capability()
    dtype, sentence = choose_compute(torch.device("cpu"))
    name = "bf16" if dtype == torch.bfloat16 else "float32"
    found.ok("compute type", f"{name} on the CPU: {sentence}; {capability}")
    if capability in ("DEFAULT", "NO AVX"):
        found.warn(
            "vector instructions",
            f"torch uses {capability}, no vector instructions, and will be several times slower than it could be",
            "use a torch wheel made for this processor (a virtual machine may hide AVX2: ask for the host's CPU type)",
        )


def usable_cores() -> int:
    """Processors that this process may use: its affinity and its container's quota, not the machine's count."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, cgroup_cores(CGROUP) or cores))


def cgroup_cores(root: Path) -> int | None:
    """Whole processors that a container's quota amounts to; None without one."""
    try:
        words = (root / "cpu.max").read_text().split()
    except OSError:
        try:
            words = [(root / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")]
        except OSError:
            return None
    if len(words) != 2 or not words[0].isdigit():
        return None
    return max(1, round(int(words[0]) / int(words[1])))


def threads(found: Examination, torch_threads: int, cores: int, environ: Mapping[str, str]) -> None:
    """More threads than processors wait for each other: often ten times slower than one thread each."""
    given = {name: environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if environ.get(name)}
    settings = ", ".join(f"{name}={value}" for name, value in given.items()) or "OMP_NUM_THREADS is not set"
    what = f"torch uses {torch_threads} threads on {cores} usable processors ({settings})"
    if torch_threads > cores:
        cure = f"export OMP_NUM_THREADS={cores}"
        found.warn("threads", f"{what}: they take turns, which is much slower than {cores}", cure)
    elif 2 * torch_threads < cores and not given:  # by default torch takes one of the two threads of each core
        found.warn("threads", f"{what}: some stay idle", f"export OMP_NUM_THREADS={cores}")
    else:
        found.ok("threads", what)


def memory_limit(own: int, total: int, root: Path = CGROUP, membership: Path = MEMBERSHIP) -> Limit | None:
    """What this process may still take, where less than the machine is allowed it; ``own``, ``total``: see ``tightest``."""
    limit = tightest(own, total, root=root, membership=membership)
    return None if limit.room >= total else Limit(max(0, limit.room - own), limit.what)


def memory(found: Examination, available: int, limit: Limit | None) -> None:
    left = available if limit is None else min(available, limit.room)
    what = f"{left / GB:.1f} GB can be used" + (f" ({limit.what})" if limit is not None and limit.room == left else "")
    cure = "end other programs, raise the container's limit, or train smaller (see: sprout train RECIPE --dry-run)"
    if left < MEMORY_LEAST:
        found.fail("memory", f"{what}; the program alone needs about {MEMORY_LEAST / GB:.1f} GB", cure)
    elif left < MEMORY_GOOD:
        found.warn("memory", f"{what}; the quickstart needs about {MEMORY_GOOD / GB:.0f} GB", cure)
    else:
        found.ok("memory", what)


def existing_parent(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def disk(found: Examination, place: Path, free: int) -> None:
    what = f"{free / GB:.1f} GB free for runs in {place}"
    cure = "make room, or choose another disk with run=DIR; train.keep_last bounds the checkpoints kept"
    if free < DISK_LEAST:
        found.fail("disk", f"{what}, too little for checkpoints", cure, 28)
    elif free < DISK_GOOD:
        found.warn("disk", what, cure, 28)
    else:
        found.ok("disk", what, 28)


def writable(found: Examination, check: str, place: Path, cure: str) -> None:
    """Really write a file and read it back: permission bits do not tell, least of all for root."""
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".sprout-doctor-") as file:
            file.write(b"sprout")
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            whole = file.read() == b"sprout"
    except OSError as error:
        found.fail(check, f"{place} cannot be written ({error.strerror or error})", cure)
        return
    if whole:
        found.ok(check, f"{place} can be written")
    else:
        found.fail(check, f"{place} does not give back what was written to it", cure)


def temporary(found: Examination) -> None:
    cure = "set TMPDIR to a folder that can be written"
    try:
        place = Path(tempfile.gettempdir())
    except OSError as error:
        found.fail("temporary folder", f"none can be used ({error.strerror or error})", cure)
        return
    writable(found, "temporary folder", place, cure)


def gpu(found: Examination) -> None:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        count = torch.cuda.device_count()
        bf16 = "with" if torch.cuda.is_bf16_supported(including_emulation=False) else "without"
        found.ok("GPU", f"{count} x {properties.name}, {properties.total_memory / GB:.0f} GB, {bf16} bf16 units")
        return
    gpu_without_torch(found, shutil.which("nvidia-smi"), torch.version.cuda, torch.__version__)


def gpu_without_torch(found: Examination, driver: str | None, built_for: str | None, torch_version: str) -> None:
    """No GPU in torch: fine where there is none, a silent slow-down where there is."""
    if driver is None:
        found.ok("GPU", "none; training runs on the CPU")
    elif built_for is None:
        found.warn(
            "GPU",
            f"{driver} is there, but torch {torch_version} was built without CUDA, so training runs on the CPU",
            "install torch with CUDA (pytorch.org gives the line for your system)",
        )
    else:
        found.warn(
            "GPU",
            f"{driver} is there and torch was built for CUDA {built_for}, but sees no GPU",
            "run nvidia-smi: update the driver, or unset CUDA_VISIBLE_DEVICES if it hides the GPU",
        )


def extras(found: Examination, missing: set[str]) -> None:
    """Optional libraries: their absence is no fault, and the line that adds them is given."""
    for name, (purpose, line) in EXTRAS.items():
        if name in missing:
            found.ok(f"extra: {name}", f"not installed; needed only for {purpose}", cure=line)
        else:
            found.ok(f"extra: {name}", "installed")
