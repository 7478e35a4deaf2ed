"""Where rows come from, as a study file says it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictInt, model_validator

from paretune.study.mistakes import Mistake, MistakesError
from paretune.study.strict import Strict


class PythonPackages(Strict):
    """The running interpreter's own Python code: standard library and installed packages."""

    from_: Literal["python-packages"] = Field(alias="from")
    packages: Literal["all", "stdlib", "installed"] | tuple[str, ...] = Field(
        default="all", description="all, stdlib, installed, or names of top-level packages"
    )


class Files(Strict):
    """Local files: JSON lines (also .gz), Parquet, or plain text (one document a file)."""

    from_: Literal["json", "parquet", "text"] = Field(alias="from")
    path: str | tuple[str, ...] = Field(description="a file, a folder, a pattern, or several")
    text: str = Field(default="text", description="field that holds a document (cpt)")
    prompt: str = Field(default="prompt", description="field that holds the prompt (ift)")
    response: str = Field(default="response", description="field that holds the response (ift)")
    group: str | None = Field(
        default=None,
        description="field that names what rows belong together (a book, a repository)",
    )
    limit: StrictInt | None = Field(default=None, ge=1, description="read at most this many rows")

    @model_validator(mode="after")
    def _two_fields(self) -> Files:
        _apart(self.prompt, self.response)
        return self


class Hub(Strict):
    """A data set on the Hugging Face hub, streamed."""

    from_: Literal["hub"] = Field(alias="from")
    name: str = Field(min_length=1, description="for example wikitext, or bigcode/starcoderdata")
    config: str | None = Field(default=None, description="one of the data set's configurations")
    data_dir: str | None = Field(default=None, description="one folder of the data set")
    split: str = Field(default="train", description="one of its splits, such as train")
    revision: str | None = Field(
        default=None, description="pin a commit, so that the data cannot change"
    )
    text: str = Field(default="text", description="field that holds a document (cpt)")
    prompt: str = Field(default="prompt", description="field that holds the prompt (ift)")
    response: str = Field(default="response", description="field that holds the response (ift)")
    group: str | None = Field(
        default=None, description="field that names what rows belong together"
    )
    limit: StrictInt | None = Field(default=None, ge=1, description="read at most this many rows")

    @model_validator(mode="after")
    def _two_fields(self) -> Hub:
        _apart(self.prompt, self.response)
        return self


class Arithmetic(Strict):
    """Generated arithmetic word problems, answered by a line such as 3+4=7 (instruction pairs)."""

    from_: Literal["arithmetic"] = Field(alias="from")
    count: StrictInt = Field(default=4000, ge=1, description="number of distinct problems")
    seed: StrictInt = Field(default=0, ge=0)


class PocketProse(Strict):
    """English prose written for this project; the pocket base has never seen it."""

    from_: Literal["pocket-prose"] = Field(alias="from")


def _apart(prompt: str, response: str) -> None:
    if prompt == response:
        reason = f"'{response}' is the field of the prompts already"
        raise MistakesError(Mistake(("response",), reason))


DataConfig = Annotated[
    PythonPackages | Files | Hub | Arithmetic | PocketProse, Field(discriminator="from_")
]
