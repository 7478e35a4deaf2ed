"""The command line: parse, call, print."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paretune.errors import Stopped, UserError

if TYPE_CHECKING:
    from paretune.runner.executors import Executor
    from paretune.study.config import Study

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

    _print(status_table(read(folder)))


@app.command()
def report(
    folder: StudyFolder,
    pdf: Annotated[bool, typer.Option("--pdf", help="Write the figures as PDF too.")] = False,
) -> None:
    """Rebuild results.parquet, results.csv, the figures and report.html."""
    from paretune.runner.report import write_report

    typer.echo(f"report: {write_report(folder, pdf=pdf).resolve()}")


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
def spectrum(
    base: Annotated[
        str,
        typer.Argument(help="A model (pocket, folder, hub), or a study's folder.", metavar="BASE"),
    ],
    tuned: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models, PEFT adapters or STUDY:ARM[@BUDGET]; of a study ARM[@BUDGET], or nothing "
            "for all of it.",
            metavar="TUNED...",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Where models' spectra go; a study keeps its own.")
    ] = Path("spectrum"),
    delta_only: Annotated[
        bool, typer.Option("--delta-only", help="The update alone, not W0 and W: fastest.")
    ] = False,
    vectors: Annotated[
        bool,
        typer.Option("--vectors", help="Angles and intruder dimensions too: twice the time."),
    ] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="Leading directions looked at.")] = 10,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, max=1, help="An intruder's largest cosine.")
    ] = 0.5,
    exact: Annotated[
        bool, typer.Option("--exact", help="The float64 SVD for every matrix: far slower.")
    ] = False,
    any_vocabulary: Annotated[
        bool, typer.Option("--any-vocabulary", help="Allow embeddings with more or fewer rows.")
    ] = False,
    truncate: Annotated[
        str | None,
        typer.Option(
            "--truncate",
            help="Ranks, as 1,4,16: score an arm with its update cut to them, or write adapters.",
        ),
    ] = None,
    scale: Annotated[
        str | None, typer.Option("--scale", help="Factors of the update, as 0.5,1.")
    ] = None,
    rest: Annotated[
        str, typer.Option("--rest", help="What is not cut is tuned, or base.")
    ] = "tuned",
    merge: Annotated[
        bool, typer.Option("--merge", help="With --truncate, write whole models, not adapters.")
    ] = False,
    device: DeviceOption = None,
) -> None:
    """Measure what moved in every weight matrix: ranks, norms, directions, against noise."""
    if truncate is not None or scale is not None:
        _truncate(base, tuned or [], out, truncate, scale, rest, merge, device)
        return
    from paretune.runner.progress import Terminal
    from paretune.runner.spectrum import model_spectra, study_spectra, summary
    from paretune.runner.tuned import is_study
    from paretune.spectrum.compute import Options

    if delta_only and vectors:
        raise UserError("--vectors needs W0 and W: leave out --delta-only")
    options = Options(delta_only, vectors, top, threshold, exact)
    with Terminal() as progress:
        if is_study(base):
            table = study_spectra(
                base, tuned or (), options=options, device=device, progress=progress
            )
        elif tuned:
            table = model_spectra(
                base, tuned, out,
                options=options, device=device, progress=progress, any_vocabulary=any_vocabulary,
            )  # fmt: skip
        else:
            raise UserError(f"{base}: no study here; to compare models, give BASE and TUNED")
    _print(summary(table))


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

    # Threads that wait by spinning starve each other when the cores are shared with other work:
    # on two busy cores training went nine times faster with threads that sleep
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Progress bars of libraries would break ours
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        with explained():
            app()
    except UserError as error:
        for line in str(error).splitlines():
            typer.echo(line if isinstance(error, Stopped) else f"error: {line}", err=True)
        sys.exit(error.exit_code)


def _truncate(
    base: str,
    tuned: list[str],
    out: Path,
    truncate: str | None,
    scale: str | None,
    rest: str,
    merge: bool,
    device: str | None,
) -> None:
    from paretune.runner.progress import Terminal
    from paretune.runner.truncation import curve_table, parse_cuts, score_cuts, write_cuts
    from paretune.runner.tuned import is_study

    wanted = parse_cuts(truncate, scale)
    if len(tuned) != 1:
        raise UserError("--truncate and --scale take one model or arm: BASE TUNED, or STUDY ARM")
    with Terminal() as progress:
        if is_study(base):
            table = score_cuts(base, tuned[0], wanted, rest=rest, device=device, progress=progress)
            text = curve_table(table)
        else:
            paths = write_cuts(
                base, tuned[0], wanted, out, merged=merge, device=device, progress=progress
            )
            text = "\n".join(f"written: {path}" for path in paths)
    _print(text)


def _run(
    study: Study,
    out: Path | None,
    device: str | None,
    *,
    report: bool = True,
    executor: Executor | None = None,
) -> None:
    from paretune.runner.progress import Terminal
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
        typer.echo(f"report: {(folder / 'report.html').resolve()}")
    else:
        typer.echo(f"done; for the report: paretune report {shlex.quote(str(folder))}")


def _print(text: str) -> None:
    typer.echo(text)


if __name__ == "__main__":
    main()
