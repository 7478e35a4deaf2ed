"""The command line: parse, call, print."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from paretune.errors import UserError

app = typer.Typer(
    help="What a finetune learns and what it forgets, for every method, on your model and data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

OutOption = Annotated[Path | None, typer.Option("--out", help="The study's folder.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1; a GPU if there is one.")
]
StudyFile = Annotated[Path, typer.Argument(help="The study file.", metavar="STUDY.yaml")]
StudyFolder = Annotated[Path, typer.Argument(help="A study's folder.", metavar="DIR")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="The study's folder.")] = Path("pocket-study"),
) -> None:
    """Run the embedded pocket study (a few minutes on two CPU cores)."""
    from paretune.study.recipes import read_recipe
    from paretune.study.yamlfile import parse_study

    _run(parse_study(read_recipe("pocket-cpt"), "pocket-cpt.yaml"), out, None)


@app.command()
def recipes() -> None:
    """List the studies that are ready to run or to adapt."""
    from paretune.study.recipes import list_recipes

    for recipe in list_recipes():
        typer.echo(f"{recipe.name:24} {recipe.description}")


@app.command()
def init(
    recipe: Annotated[str, typer.Argument(help="A recipe's name.", metavar="RECIPE")],
    out: Annotated[Path | None, typer.Option("--out", help="The file to write.")] = None,
) -> None:
    """Write a recipe as a commented study file."""
    from paretune.files import write_text
    from paretune.study.recipes import read_recipe

    text = read_recipe(recipe)
    path = out or Path(f"{recipe}.yaml")
    if path.exists():
        raise UserError(f"{path}: already there; give another file with --out")
    write_text(path, text)
    typer.echo(f"{path} is written; edit it, then: paretune plan {shlex.quote(str(path))}")


@app.command()
def plan(study: StudyFile, device: DeviceOption = None) -> None:
    """Check a study file and say what the study will take; nothing is trained."""
    from paretune.runner.planner import plan as make
    from paretune.runner.tables import plan_table

    _print(plan_table(make(study, device=device)))


@app.command()
def run(
    study: StudyFile,
    out: OutOption = None,
    device: DeviceOption = None,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Leave the report to `paretune report`.")
    ] = False,
) -> None:
    """Run a study, or go on with it where it stopped."""
    from paretune.study.yamlfile import load_study

    _run(load_study(study), out, device, report=not no_report)


@app.command()
def status(folder: StudyFolder) -> None:
    """Say what is done, running, diverged and left."""
    from paretune.runner.status import status as read
    from paretune.runner.tables import status_table

    _print(status_table(read(folder)))


@app.command()
def report(folder: StudyFolder) -> None:
    """Rebuild results.parquet, results.csv, the figures and report.html."""
    from paretune.runner.report import write_report

    typer.echo(f"report: {write_report(folder).resolve()}")


@app.command()
def claims(folder: StudyFolder) -> None:
    """Judge the published claims on a study: supported, contradicted or unresolved, and why."""
    from paretune.runner.claims import claims_text, judge

    _print(claims_text(*judge(folder)))


@app.command()
def export(
    folder: StudyFolder,
    arm: Annotated[
        str,
        typer.Argument(help="An arm, at its last budget or at one given.", metavar="ARM[@BUDGET]"),
    ],
    to: Annotated[Path, typer.Option("--to", help="The folder to write.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Write a whole model, not an adapter.")
    ] = False,
) -> None:
    """Write an arm as a PEFT adapter, or as a merged Hugging Face model."""
    from paretune.runner.export import export as write

    arm_id, tokens, path = write(folder, arm, to, merged=merge)
    typer.echo(f"{arm_id} at {tokens:,} tokens: {path}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of study files, for editors."""
    from paretune.study.schema import schema_text

    typer.echo(schema_text(), nl=False)


def main() -> None:
    """Entry point: a user's mistake is one message and exit code 2, never a traceback."""
    # Progress bars of libraries would break ours
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        app()
    except UserError as error:
        for line in str(error).splitlines():
            typer.echo(f"error: {line}", err=True)
        sys.exit(2)


def _run(study: object, out: Path | None, device: str | None, *, report: bool = True) -> None:
    from paretune.runner.progress import Terminal
    from paretune.runner.run import run as run_study
    from paretune.study.config import Study

    assert isinstance(study, Study)
    command = shlex.join(["paretune", *sys.argv[1:]])
    try:
        with Terminal() as progress:
            folder = run_study(
                study, out, device=device, progress=progress, command=command, report=report
            )
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from the last saved state", err=True)
        raise typer.Exit(130) from None
    if report:
        typer.echo(f"report: {(folder / 'report.html').resolve()}")
    else:
        typer.echo(f"done; for the report: paretune report {shlex.quote(str(folder))}")


def _print(text: str) -> None:
    typer.echo(text)


if __name__ == "__main__":
    main()
