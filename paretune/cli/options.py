"""The command-line application, and the arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="What a finetune learns and what it forgets, for every method, on your model and data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

OutOption = Annotated[Path | None, typer.Option("--out", help="The study's folder; studies/NAME.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1; a GPU if there is one.")
]
StudyFile = Annotated[Path, typer.Argument(help="The study file.", metavar="STUDY.yaml")]
StudyFolder = Annotated[Path, typer.Argument(help="A study's folder.", metavar="DIR")]
