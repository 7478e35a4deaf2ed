"""Commands that run a study and show how it goes: demo, run, status, watch, track."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paretune.cli.collecting import loading
from paretune.cli.options import DeviceOption, OutOption, StudyFile, StudyFolder, app
from paretune.errors import UserError

if TYPE_CHECKING:
    from paretune.runner.executors import Executor
    from paretune.study.config import Study


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The study's folder; pocket-study, or pocket-instruct."),
    ] = None,
    instruct: Annotated[
        bool, typer.Option("--instruct", help="The study of instruction finetuning instead.")
    ] = False,
) -> None:
    """Run the embedded pocket study (a few minutes on two CPU cores)."""
    from paretune.study.recipes import read_recipe
    from paretune.study.yamlfile import parse_study

    recipe, folder = (
        ("pocket-ift", "pocket-instruct") if instruct else ("pocket-cpt", "pocket-study")
    )
    _run(parse_study(read_recipe(recipe), f"{recipe}.yaml"), out or Path(folder), None)


@app.command()
def run(
    study: StudyFile,
    out: OutOption = None,
    device: DeviceOption = None,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Leave the report to `paretune report`.")
    ] = False,
    executor: Annotated[
        str | None,
        typer.Option("--executor", help="Spread the arms over workers: local, ray or slurm."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="How many; every GPU, or 2 on a CPU.")
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option("--slurm", help="For Slurm's job array: partition=long, timeout_min=600."),
    ] = None,
) -> None:
    """Run a study, or go on with it where it stopped."""
    from paretune.study.yamlfile import load_study

    if executor is None and (workers is not None or slurm):
        raise UserError("--workers and --slurm go with --executor local, ray or slurm")
    spread = None
    if executor is not None:
        from paretune.runner.executors import executor as named

        spread = named(executor, workers=workers, device=device, options=slurm or ())
    _run(load_study(study), out, device, report=not no_report, executor=spread)


@app.command()
def status(folder: StudyFolder) -> None:
    """Say what is done, running, diverged and left."""
    from paretune.runner.status import status as read
    from paretune.runner.tables import status_table

    typer.echo(status_table(read(folder)))


@app.command()
def watch(
    folder: StudyFolder,
    every: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show it once.")] = False,
) -> None:
    """Watch a study while it runs: arms, losses, throughput, time left, memory."""
    from paretune.runner.watch import watch as show

    try:
        show(folder, every=every, once=once)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def track(
    folder: StudyFolder,
    project: Annotated[str | None, typer.Option("--project", help="The study's name.")] = None,
    module: Annotated[
        str, typer.Option("--with", help="A package with W&B's API: wandb, trackio.")
    ] = "wandb",
    follow: Annotated[
        bool, typer.Option("--follow", help="Send while the study runs, until it has ended.")
    ] = False,
    every: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between looks.")] = 10.0,
) -> None:
    """Send a study's curves and scores to a tracker with the W&B API."""
    from paretune.runner.track import track as send

    try:
        sent = send(folder, project=project, module=module, follow=every if follow else None)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    typer.echo(f"{sent} arms are sent")


def _run(
    study: Study,
    out: Path | None,
    device: str | None,
    *,
    report: bool = True,
    executor: Executor | None = None,
) -> None:
    with loading():
        from paretune.runner.progress import Terminal
        from paretune.runner.report import told
        from paretune.runner.run import run as run_study
        from paretune.runner.stop import STOP

    command = shlex.join(["paretune", *sys.argv[1:]])
    with STOP.listening(), Terminal() as progress:
        folder = run_study(
            study,
            out,
            device=device,
            progress=progress,
            command=command,
            report=report,
            executor=executor,
        )
    if report:
        typer.echo(told(folder))
    else:
        typer.echo(f"done; for the report: paretune report {shlex.quote(str(folder))}")
