"""The command line: parse, call, print."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from paretune.cli import running, scoring, spectra
from paretune.cli.collecting import end_at_once
from paretune.cli.options import DeviceOption, StudyFile, StudyFolder, app
from paretune.errors import Stopped, UserError

__all__ = ["app", "main", "running", "scoring", "spectra"]


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
    from paretune.study.yamlfile import load_study

    read = load_study(study)  # before the heavy imports: a typo is answered at once
    from paretune.runner.planner import plan as make
    from paretune.runner.tables import plan_table

    _print(plan_table(make(read, device=device)))


@app.command()
def report(
    folder: StudyFolder,
    pdf: Annotated[bool, typer.Option("--pdf", help="Write the figures as PDF too.")] = False,
) -> None:
    """Rebuild results.parquet, results.csv, the figures, answer.txt and report.html."""
    from paretune.runner.report import told, write_report

    write_report(folder, pdf=pdf)
    typer.echo(told(folder))


@app.command()
def compare(
    folders: Annotated[
        list[str],
        typer.Argument(
            help="Studies' folders, or the paper's points: paper:code_cpt.", metavar="DIR..."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path(
        "comparison.html"
    ),
) -> None:
    """Put studies side by side on one page."""
    from paretune.runner.compare import compare as write

    typer.echo(f"comparison: {write(folders, out).resolve()}")


@app.command()
def card(
    folder: StudyFolder,
    arm: Annotated[
        str,
        typer.Argument(help="An arm, at its last budget or at one given.", metavar="ARM[@BUDGET]"),
    ],
    to: Annotated[Path | None, typer.Option("--to", help="The file to write.")] = None,
) -> None:
    """Print or write an arm's model card: what it learned and forgot, and how it was made."""
    from paretune.files import write_text
    from paretune.runner.card import card as make

    text = make(folder, arm)
    if to is None:
        typer.echo(text, nl=False)
        return
    write_text(to, text)
    typer.echo(f"model card: {to}")


@app.command()
def claims(folder: StudyFolder) -> None:
    """Judge the published claims on a study: supported, contradicted or unresolved, and why."""
    from paretune.runner.claims import claims_text, judge

    _print(claims_text(*judge(folder)))


@app.command()
def advise(
    folder: StudyFolder,
    forget_at_most: Annotated[
        float | None,
        typer.Option("--forget-at-most", help="The most that may be forgotten, in its unit."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="Of the device that will train: 24GB.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="Of forgetting; the study's by default.")
    ] = None,
) -> None:
    """Say which arm to take at which budget, how surely, and what to run next."""
    from paretune.runner.advise import advice, advice_text

    found = advice(folder, forget_at_most=forget_at_most, memory=memory, metric=metric)
    _print(advice_text(found, folder))


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
    """Entry point: what went wrong is one message and an exit code, never a traceback.

    2 is a mistake in what was given, 74 a failure of disk, memory or network, 75 a stop by SIGTERM,
    130 one by Ctrl-C. After the last three the same command goes on.
    """
    from paretune.runner.faults import explained
    from paretune.runner.threads import give_up_on_dead_threads
    from paretune.study.secrets import redacted

    give_up_on_dead_threads()
    end_at_once()
    # What is wrong is in our own message: not each retry of the hub, nor that a kernel for some
    # processors is not installed
    for name in ("huggingface_hub.utils._http", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Progress bars of libraries would break ours
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        with explained():
            app()
    except (UserError, Stopped) as error:
        for line in redacted(str(error)).splitlines():
            typer.echo(line if isinstance(error, Stopped) else f"error: {line}", err=True)
        sys.exit(error.exit_code)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        kinds = ("folder", "file") if isinstance(error, IsADirectoryError) else ("file", "folder")
        there, needed = kinds
        told = f"{error.filename}: a {there} is where a {needed} is needed; give another place"
        typer.echo(f"error: {redacted(told)}", err=True)
        sys.exit(UserError.exit_code)


def _print(text: str) -> None:
    typer.echo(text)


if __name__ == "__main__":
    main()
