"""``sprout launch``: what it refuses before any process starts, and the lines and scripts that it prints."""

from __future__ import annotations

import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sproutlm.pipeline import launch as launching


@pytest.fixture(autouse=True)
def two_of_eight_cores(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Eight cores, and nothing is started: what would be is kept."""
    started: list[list[str]] = []
    monkeypatch.setattr(launching, "usable_cores", lambda: 8)
    monkeypatch.setattr(launching, "run_elastic", started.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return started


def torchrun_of(line: str) -> tuple[dict[str, str], Any]:
    """The environment in front of a printed line, and the line as torchrun itself reads it."""
    from torch.distributed.run import parse_args

    words = shlex.split(line)
    at = words.index("torchrun")
    return dict(word.split("=", 1) for word in words[:at]), parse_args(words[at + 1 :])


def test_one_machine_runs_what_it_prints(sprout: Callable[..., Any], two_of_eight_cores: list[list[str]]) -> None:
    done = sprout("launch", "tiny", "--processes", 3, "sample.prompts=['it is']", "--change", "train.steps=9")
    assert done.code == 0, done.err
    assert "3 processes: dp=3 (DDP); OMP_NUM_THREADS=2 (8 cores / 3 processes)" in done.err
    (line,) = (line for line in done.err.splitlines() if " torchrun " in line)
    (arguments,) = two_of_eight_cores
    settings, read = torchrun_of(line)
    assert settings == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}
    assert shlex.split(line)[-len(arguments) :] == arguments
    assert (read.standalone, read.nproc_per_node, read.max_restarts, read.module) == (True, "3", 0, True)
    assert read.training_script == "sproutlm"
    assert read.training_script_args == ["train", "tiny", "sample.prompts=['it is']", "--change", "train.steps=9"]


def test_the_environment_is_as_before_afterwards(sprout: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    seen: dict[str, str] = {}
    monkeypatch.setattr(launching, "run_elastic", lambda _: seen.update(os.environ))
    before = dict(os.environ)
    handler = signal.getsignal(signal.SIGTERM)
    assert sprout("launch", "tiny", "--processes", 2).code == 0
    assert seen["OMP_NUM_THREADS"] == "4" and seen["CUDA_VISIBLE_DEVICES"] == ""
    assert dict(os.environ) == before and signal.getsignal(signal.SIGTERM) == handler


def test_threads_that_were_set_are_kept(sprout: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    done = sprout("launch", "tiny", "--processes", 2)
    assert "OMP_NUM_THREADS=7 (as it was set)" in done.err


def test_several_machines_get_one_line_each(sprout: Callable[..., Any], two_of_eight_cores: list[list[str]]) -> None:
    done = sprout("launch", "tiny", "--nodes", 3, "--gpus", 4, "--host", "first.example", "--port", 29999)
    assert done.code == 0 and not two_of_eight_cores
    lines = [line for line in done.out.splitlines() if not line.startswith("#")]
    places = [line for line in done.out.splitlines() if line.startswith("#")]
    assert len(lines) == len(places) == 3 and len(set(lines)) == 1
    assert "node 0 of 3, on first.example" in places[0] and "node 2 of 3" in places[2]
    settings, read = torchrun_of(lines[0])
    assert settings == {"OMP_NUM_THREADS": "2"}
    assert (read.nnodes, read.nproc_per_node, read.max_restarts) == ("3", "4", 3)
    assert (read.rdzv_backend, read.rdzv_endpoint, read.rdzv_id) == ("c10d", "first.example:29999", "tiny")
    assert read.shutdown_timeout >= 300, "a save may take longer than torchrun's 30 s"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--processes", 3, "parallel.tp=2"], "dp=all * cp=1 * tp=2 does not fit 3 processes"),
        (["--nodes", 2, "--gpus", 3, "--host", "a", "parallel.shard=4"], "parallel.shard=4 does not divide the 6 ranks"),
        (["--processes", 20], "a step has 16 rows, fewer than parallel.dp=20"),
        (["--nodes", 2, "--gpus", 10, "--slurm"], "a step has 16 rows, fewer than parallel.dp=20"),
        (["--processes", 2, "trian.steps=3"], "train"),
        (["--processes", 2, "train.device=cuda"], "train.device=cuda, but --processes"),
        (["--gpus", 1, "train.device=cpu"], "train.device=cpu, but --gpus"),
        (["--gpus", 64, "train.batch_tokens=8192"], "--gpus 64, but torch sees"),
        (["--nodes", 2, "--gpus", 1], "--nodes 2 needs --host"),
        ([], "give one of --gpus G"),
        (["--gpus", 1, "--processes", 1], "give one of --gpus G"),
        (["--gpus", 1, "--slurm", "--kubernetes"], "give one of --slurm and --kubernetes"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_starts(
    sprout: Callable[..., Any], two_of_eight_cores: list[list[str]], arguments: list[Any], sentence: str
) -> None:
    done = sprout("launch", "tiny", *arguments)
    assert done.code == 1 and sentence in done.err, done.err
    assert not two_of_eight_cores and not done.out


def test_a_recipe_of_stages_is_refused(sprout: Callable[..., Any]) -> None:
    done = sprout("launch", "quickstart", "--processes", 2)
    assert done.code == 1 and "use: sprout run" in done.err


def test_the_slurm_script_is_bash_and_starts_one_torchrun_a_node(sprout: Callable[..., Any], tmp_path: Path) -> None:
    done = sprout("launch", "tiny", "--nodes", 2, "--gpus", 8, "--slurm", "data.train=my texts.txt", "run=runs/Big One")
    assert done.code == 0, done.err
    script = tmp_path / "run.sh"
    script.write_text(done.out)
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    settings = [line.removeprefix("#SBATCH ") for line in done.out.splitlines() if line.startswith("#SBATCH")]
    assert {"--job-name=big-one", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8"} <= set(settings)
    assert any(setting.startswith("--signal=TERM@") for setting in settings)

    # Run it with stand-ins for Slurm's own commands: what torchrun would get, word for word.
    stand_in = tmp_path / "bin"
    stand_in.mkdir()
    (stand_in / "scontrol").write_text("#!/bin/sh\nprintf 'node7\\nnode8\\n'\n")
    (stand_in / "srun").write_text(
        '#!/bin/sh\nfor word in "$@"; do echo "$word"; done; echo "threads $OMP_NUM_THREADS"\n'
    )
    for program in stand_in.iterdir():
        program.chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "42"}
    ran = subprocess.run(
        ["bash", str(script)], env={"PATH": f"{stand_in}:/usr/bin:/bin", "SLURM_CPUS_ON_NODE": "96", **slurm},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = ran.stdout.splitlines()
    assert words[-1] == "threads 12" and words[:2] == ["--cpus-per-task=96", "torchrun"]
    _, read = torchrun_of(shlex.join(words[1:-1]))
    assert (read.nnodes, read.nproc_per_node) == ("2", "8")
    assert (read.rdzv_endpoint, read.rdzv_id) == ("node7:29400", "42")
    assert read.training_script_args == ["train", "tiny", "data.train=my texts.txt", "run=runs/Big One"]


@pytest.mark.parametrize("kind", [["--gpus", 8], ["--processes", 4]])
def test_the_kubernetes_manifests_are_yaml_and_say_the_same(sprout: Callable[..., Any], kind: list[Any]) -> None:
    asked = ["--nodes", 2, *kind, "--kubernetes", "--image", "mine:1", "--claim", "shared"]
    done = sprout("launch", "tiny", *asked, "sample.prompts=[\"it's\", '从前']", "run=runs/Big_One")
    assert done.code == 0, done.err
    service, job = yaml.safe_load_all(done.out)
    assert service["kind"] == "Service" and service["spec"]["clusterIP"] == "None"
    spec = job["spec"]
    assert job["kind"] == "Job" and spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == 2
    pod = spec["template"]["spec"]
    name = job["metadata"]["name"]
    assert (
        name == pod["subdomain"] == service["metadata"]["name"] == service["spec"]["selector"]["job-name"] == "big-one"
    )
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "shared"
    (container,) = pod["containers"]
    assert container["image"] == "mine:1" and container["command"] == ["/bin/sh", "-c"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    if kind[0] == "--gpus":
        assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"} and "CUDA_VISIBLE_DEVICES" not in environment
    else:
        assert container["resources"]["limits"] == {"cpu": "4"} and environment["CUDA_VISIBLE_DEVICES"] == ""
    # Run the command with a stand-in for torchrun, as the shell of each pod would.
    for index, first in (("0", "1"), ("1", "0")):
        shown = 'torchrun() { for word in "$@"; do echo "$word"; done; }\n' + container["args"][0].removeprefix("exec ")
        ran = subprocess.run(
            ["sh", "-c", shown], env={"JOB_COMPLETION_INDEX": index}, capture_output=True, text=True, check=True
        )
        _, read = torchrun_of(shlex.join(["torchrun", *ran.stdout.splitlines()]))
        assert (read.nnodes, read.rdzv_endpoint, read.rdzv_conf) == ("2", "big-one-0.big-one:29400", f"is_host={first}")
        assert read.training_script_args == ["train", "tiny", "sample.prompts=[\"it's\", '从前']", "run=runs/Big_One"]


@pytest.mark.parametrize(
    ("codes", "code", "sentence"),
    [
        ({0: (4, 9), 2: (-9, 5)}, 4, "rank 2 (process 102 on "),
        ({1: (1, 3), 0: (4, 9)}, 1, "rank 1 (process 101 on "),
        ({0: (130, 1)}, 130, "ended with exit code 130"),
    ],
)
def test_the_exit_code_is_that_of_the_rank_that_failed_first(
    codes: dict[int, tuple[int, int]], code: int, sentence: str
) -> None:
    class Failure:
        def __init__(self, rank: int, exitcode: int, timestamp: int) -> None:
            self.pid, self.exitcode, self.timestamp = 100 + rank, exitcode, timestamp

    found = launching._failed({rank: Failure(rank, *how) for rank, how in codes.items()})
    assert found.exit_code == code and sentence in str(found)
