"""The recipe of cleaning is checked like any other, and runs on three systems."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from .conftest import write_jsonl

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def recipe(tmp_path):
    def write(text, name="c.yaml"):
        write_jsonl(tmp_path / "in.jsonl", ["一句话。", "two words"])
        path = tmp_path / name
        path.write_text("name: c\nclean:\n  sources: in.jsonl\n  out: out\n" + text, encoding="utf-8")
        return path

    return write


def test_faults_have_their_line_and_the_nearest_name(recipe, sprout):
    path = recipe("  minhash: {band: 20}\n  executor: {kind: slurm}\n  languge: {keep: [zh]}\n  pii: {phone: 3}\n")
    ran = sprout("data", "clean", path)
    assert ran.code == 1
    assert "c.yaml:5: clean.minhash.band: unknown key (got 20); did you mean 'bands'?" in ran.err
    assert "c.yaml:6: clean.executor" in ran.err and "needs the name of a partition" in ran.err
    assert "c.yaml:7: clean.languge: unknown key" in ran.err and "did you mean 'language'?" in ran.err
    assert "c.yaml:8: clean.pii.phone: must be text" in ran.err


def test_required_keys_are_named(tmp_path, sprout):
    (tmp_path / "c.yaml").write_text("name: c\nclean:\n  decontaminate: {}\n")
    ran = sprout("data", "clean", tmp_path / "c.yaml")
    for key in ("clean.sources", "clean.out", "clean.decontaminate.against"):
        assert f"{key}: missing; it is required" in ran.err


def test_other_verbs_say_which_verb_it_is_for(recipe, sprout):
    path = recipe("  exact: {}\n")
    assert "use: sprout data clean" in sprout("train", path).err
    assert "use: sprout data clean" in sprout("run", path).err
    assert "use: sprout train" in sprout("data", "clean", "tiny").err


def test_the_schema_knows_it(sprout):
    import json

    schema = json.loads(sprout("schema").out)
    assert schema["else"]["then"] == {"$ref": "#/$defs/CleanRecipe"}
    assert {"type": "string"}.items() <= schema["$defs"]["CleanConfig"]["properties"]["sources"]["anyOf"][0].items()


def test_slurm_shows_the_scripts_and_writes_nothing(recipe, sprout, tmp_path):
    path = recipe("  exact: {}\n  executor: {kind: slurm, tasks: 50, partition: cpu, sbatch_args: {account: me}}\n")
    ran = sprout("data", "clean", path, "--dry-run")
    assert ran.code == 0
    assert ran.out.count("#!/bin/bash") == 6
    assert "#SBATCH --partition=cpu" in ran.out and "#SBATCH --account=me" in ran.out
    assert "#SBATCH --array=0-49" in ran.out and "launch_pickled_pipeline" in ran.out
    assert not (tmp_path / "out").exists()


def test_a_system_that_is_not_here_is_a_sentence(recipe, sprout, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = recipe("  executor: {kind: slurm, tasks: 2, partition: cpu}\n", "slurm.yaml")
    assert "there is no sbatch on this machine" in sprout("data", "clean", slurm).err
    monkeypatch.setitem(sys.modules, "ray", None)
    ray = recipe("  executor: {kind: ray, tasks: 2}\n", "ray.yaml")
    assert sprout("data", "clean", ray, "--dry-run").code == 0
    assert "ray is not installed" in sprout("data", "clean", ray).err
    assert not (tmp_path / "out").exists()


def test_slurm_jobs_are_submitted_each_after_the_one_before(recipe, sprout, tmp_path, monkeypatch):
    """Against an sbatch that only notes what it is given."""
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho "Submitted batch job $(wc -l < {tmp_path}/calls)"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    path = recipe("  exact: {}\n  minhash: {}\n  executor: {kind: slurm, tasks: 3, partition: cpu}\n")
    ran = sprout("data", "clean", path)
    assert ran.code == 0, ran.err
    assert "submitted: read -> judge -> match -> choose -> write -> finish" in ran.err
    jobs = [call for call in (tmp_path / "calls").read_text().splitlines() if "--export" in call]
    assert len(jobs) == 6 and "--dependency" not in jobs[0]
    assert all("--dependency=afterok:" in call for call in jobs[1:])
    # The pickled jobs, run as Slurm would run them, one array index after another.
    import dill

    for stage in ("read", "judge", "match", "choose", "write", "finish"):
        for pickled in sorted((tmp_path / "out" / "work" / "logs").glob(f"{stage}-*/executor.pik")):
            executor = dill.loads(pickled.read_bytes())
            for index in range(executor.tasks):
                monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(index))
                monkeypatch.setattr(type(executor), "get_distributed_env", lambda self, node_rank=-1: _ENVIRONMENT)
                executor.requeue_signals = None
                executor.run()
    assert (tmp_path / "out" / "report.json").is_file()
    assert len(list((tmp_path / "out" / "clean").iterdir())) == 1


_ENVIRONMENT = {
    "datatrove_node_ips": "",
    "datatrove_cpus_per_task": "1",
    "datatrove_mem_per_cpu": "1",
    "datatrove_gpus_on_node": "0",
    "datatrove_executor": "SLURM",
}


def test_without_the_extra_there_is_a_sentence(recipe, sprout, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "datatrove" else real(name, *rest)
    )
    ran = sprout("data", "clean", recipe("  exact: {}\n"))
    assert ran.code == 1 and 'pip install "sproutlm[clean]"' in ran.err
