"""The command line for models that were made elsewhere: score and assess."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paretune.cli.options import DeviceOption, app
from paretune.errors import UserError

TasksOption = Annotated[
    str, typer.Option("--tasks", help="Names of the lm-evaluation-harness, with commas.")
]
MirrorOption = Annotated[
    list[str] | None,
    typer.Option("--mirror", help="Local files for a data set: Rowan/hellaswag=x-{split}.jsonl."),
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Documents of each task.")]
ShotsOption = Annotated[int | None, typer.Option("--num-fewshot", min=0, help="Worked examples.")]
LengthOption = Annotated[
    int | None, typer.Option("--max-gen-toks", min=1, help="Longest answer that is generated.")
]
SandboxOption = Annotated[str, typer.Option("--sandbox", help="Where programs of tasks run.")]


@app.command()
def score(
    model: Annotated[str, typer.Argument(help="pocket, a folder or a name.", metavar="MODEL")],
    tasks: TasksOption,
    adapter: Annotated[Path | None, typer.Option("--adapter", help="A PEFT adapter.")] = None,
    mirror: MirrorOption = None,
    limit: LimitOption = None,
    num_fewshot: ShotsOption = None,
    max_gen_toks: LengthOption = None,
    sandbox: SandboxOption = "auto",
    out: Annotated[Path | None, typer.Option("--out", help="Scores as a JSON file.")] = None,
    device: DeviceOption = None,
) -> None:
    """Score any model on tasks of the lm-evaluation-harness."""
    from paretune.runner.score import asked_for, score_model, score_rows, score_table

    asked = asked_for("", tasks, mirror, limit, num_fewshot, max_gen_toks, sandbox)
    if out is not None and out.is_dir():
        raise UserError(f"{out}: a folder; give a file with --out, such as {out / 'scores.json'}")
    results = score_model(model, asked, adapter=adapter, device=device)
    if out is not None:
        from paretune.files import write_json

        write_json(out, score_rows(results))
    typer.echo(score_table(results))


@app.command()
def assess(
    base: Annotated[str, typer.Argument(help="The model all were made from.", metavar="BASE")],
    tuned: Annotated[
        list[str],
        typer.Argument(help="Models, PEFT adapters or STUDY:ARM[@BUDGET].", metavar="TUNED..."),
    ],
    tasks: TasksOption = "hellaswag,arc_challenge,winogrande",
    learning: Annotated[
        str, typer.Option("--learning", help="Tasks that show learning, with commas.")
    ] = "",
    mirror: MirrorOption = None,
    limit: LimitOption = None,
    num_fewshot: ShotsOption = None,
    max_gen_toks: LengthOption = None,
    sandbox: SandboxOption = "auto",
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")] = Path("assessment"),
    device: DeviceOption = None,
) -> None:
    """Say what finished checkpoints learned and forgot, with intervals and a report."""
    from paretune.runner.assess import assess as run_assessment
    from paretune.runner.progress import Terminal
    from paretune.runner.score import asked_for

    asked = asked_for(learning, tasks, mirror, limit, num_fewshot, max_gen_toks, sandbox)
    with Terminal() as progress:
        page = run_assessment(base, tuned, asked, out, device=device, progress=progress)
    typer.echo((page.parent / "answer.txt").read_text(encoding="utf-8"), nl=False)
    typer.echo(f"report: {page.resolve()}")
