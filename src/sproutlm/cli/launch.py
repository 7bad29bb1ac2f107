"""The verb that starts a run in several processes, here or elsewhere: launch."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import SproutError
from .arguments import Overrides, RecipeFile, load, say


def add_to(app: typer.Typer) -> None:
    app.command(no_args_is_help=True)(launch)


def launch(
    recipe: RecipeFile,
    settings: Overrides = None,
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", min=1, help="Machines.")] = 1,
    gpus: Annotated[
        int | None, typer.Option("--gpus", metavar="G", min=1, help="GPUs in each machine, a process for each.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", metavar="P", min=1, help="Processes in each machine, without GPUs.")
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="The first machine, as the others reach it.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Where the machines meet, on --host.")] = 29400,
    max_restarts: Annotated[
        int | None,
        typer.Option("--max-restarts", metavar="R", min=0, help="Starts again by itself [0; 3 with several machines]."),
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--change", metavar="KEY=VALUE", help="As in `sprout train`. May be repeated.")
    ] = None,
    print_: Annotated[bool, typer.Option("--print", help="Print the lines and start nothing.")] = False,
    slurm: Annotated[bool, typer.Option("--slurm", help="Print a script for sbatch.")] = False,
    kubernetes: Annotated[bool, typer.Option("--kubernetes", help="Print a Job and a Service for kubectl.")] = False,
    image: Annotated[str, typer.Option("--image", help="Kubernetes: an image that has sprout.")] = "sproutlm",
    claim: Annotated[str, typer.Option("--claim", help="Kubernetes: the claim of the shared volume.")] = "work",
) -> None:
    """Start a run in several processes: on this machine, or as lines and scripts for several machines."""
    if (gpus is None) == (processes is None):
        raise SproutError("give one of --gpus G (a process for each GPU) and --processes P (without GPUs), per machine")
    if slurm and kubernetes:
        raise SproutError("give one of --slurm and --kubernetes")
    scheduled = slurm or kubernetes
    if nodes > 1 and not host and not scheduled:
        raise SproutError(
            f"--nodes {nodes} needs --host ADDRESS: the first machine's name or address, which the others can reach"
        )
    loaded = load(recipe, [*(settings or []), *(change or [])], "run")
    from ..pipeline.launch import Job, job_name, launch as start, refuse_impossible

    many = nodes > 1 or scheduled
    job = Job(
        recipe=str(recipe),
        settings=settings or [],
        nodes=nodes,
        per_node=gpus or processes or 1,
        gpus=gpus is not None,
        host=host or "",
        port=port,
        max_restarts=max_restarts if max_restarts is not None else 3 if many else 0,
        name=job_name(loaded.run_dir.name),
        changes=change or [],
    )
    if not many and not print_:
        start(loaded, job, say)
        return
    dims = refuse_impossible(loaded.recipe, job)  # type: ignore[arg-type]
    say(f"{job.world} processes: {dims.words() or 'one'}")
    if scheduled:
        from ..pipeline.launch_scripts import kubernetes as manifests, slurm as script

        typer.echo(script(job) if slurm else manifests(job, image, claim), nl=False)
    elif nodes == 1:
        typer.echo(job.line())
    else:
        for node in range(nodes):
            where = f"on {host}" if node == 0 else "on another machine"
            typer.echo(f"# node {node} of {nodes}, {where}, in the same folder of storage that all share:")
            typer.echo(job.line())
        say(f"the same line on each, in any order; {host}:{port} must be reachable from all of them")
