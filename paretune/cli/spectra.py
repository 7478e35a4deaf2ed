"""The command that measures weight changes: spectrum."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paretune.cli.options import DeviceOption, app
from paretune.errors import UserError


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
        typer.Option("--vectors", help="Angles and intruder dimensions too: slower."),
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
    from paretune.spectrum.measuring import Options

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
    typer.echo(summary(table))


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
    typer.echo(text)
