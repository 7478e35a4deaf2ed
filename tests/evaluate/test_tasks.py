"""Tasks by name: the same answers and metrics as lm-evaluation-harness's own backend."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness_reference import answers_of, mirror_of, theirs

from paretune.errors import UserError
from paretune.evaluate.items import score
from paretune.evaluate.tasks.benchmarks import Benchmarks
from paretune.model.load import end_of_text, load_config, load_tokenizer, location
from paretune.model.trainee import frozen
from paretune.model.view import ArmView
from paretune.study.config import Base
from paretune.study.tasks import GenerationKwargs, Task

POCKET = Base(name="pocket")
THINGS = ["a lamp", "a dog", "the red door", "an old boat", "my sister", "two apples"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few documents for each task, in the fields of the hub's data sets."""
    folder = tmp_path_factory.mktemp("eval")
    hellaswag, arc, winogrande, gsm8k = [], [], [], []
    for i, thing in enumerate(THINGS):
        other = THINGS[i - 1]
        hellaswag.append(
            {
                "activity_label": "Carrying things",
                "ctx_a": f"A man looks at {thing}.",
                "ctx_b": "he",
                "endings": [f"takes {thing} [title] home.", f"eats {other}.", "sings.", "falls."],
                "label": str(i % 4),
            }
        )
        arc.append(
            {
                "question": f"What can you do with {thing}?",
                "choices": {"text": ["Carry it.", f"Ask {other}.", "Wait."], "label": list("ABC")},
                "answerKey": "ABC"[i % 3],
            }
        )
        winogrande.append(
            {
                "sentence": f"She put {thing} beside {other} because _ was in the way.",
                "option1": thing,
                "option2": other,
                "answer": str(i % 2 + 1),
            }
        )
        gsm8k.append(
            {
                "question": f"I buy {thing} for {i} coins and {other} for 2. How much is that?",
                "answer": f"It is {i}+2=<<{i}+2={i + 2}>>{i + 2} coins.\n#### {i + 2}",
            }
        )
    files = {
        "hellaswag-validation": hellaswag,
        "arc_challenge-test": arc,
        "winogrande_xl-validation": winogrande,
        "gsm8k-train": gsm8k,
        "gsm8k-test": gsm8k[:3],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def pocket() -> ArmView:
    return frozen(POCKET, torch.device("cpu")).view(None)


def benchmarks(data: Path, *tasks: Task) -> Benchmarks:
    return Benchmarks(
        {"source": tasks},
        mirror_of(data, ".jsonl"),
        load_tokenizer(POCKET),
        load_config(POCKET),
        end_of_text(POCKET),
    )


@pytest.mark.parametrize(
    ("name", "shots", "metrics"),
    [
        ("hellaswag", None, ("acc", "acc_norm")),
        ("arc_challenge", None, ("acc", "acc_norm")),
        ("winogrande", None, ("acc",)),
        ("gsm8k", 5, ("exact_match,strict-match", "exact_match,flexible-extract")),
    ],
)
def test_metrics_and_outcomes_are_the_harness_s(
    name: str, shots: int | None, metrics: tuple[str, ...], data: Path, pocket: ArmView
) -> None:
    settings = GenerationKwargs(max_gen_toks=12) if name == "gsm8k" else None
    task = Task(name=name, metrics=metrics, num_fewshot=shots, generation_kwargs=settings)
    (ours,) = benchmarks(data, task).score(pocket)
    reference = theirs(
        name,
        location(POCKET),
        data,
        ".jsonl",
        num_fewshot=shots,
        generation_kwargs=settings and settings.given(),
    )
    for metric in metrics:
        items = ours[f"{name}/{metric}"]
        key, _, filter_name = metric.partition(",")
        full = f"{key},{filter_name or 'none'}"
        assert score(items).value == pytest.approx(reference["metrics"][full], abs=1e-12)
        samples = [s for s in reference["samples"] if s["filter"] == (filter_name or "none")]
        assert items.ids == [str(sample["doc_id"]) for sample in samples]
        assert items.value.tolist() == [float(sample[key]) for sample in samples]


def test_log_likelihoods_are_the_harness_s(data: Path, pocket: ArmView) -> None:
    built = benchmarks(data, Task(name="hellaswag"), Task(name="winogrande"))
    nats, greedy = built.likelihoods.score(pocket)
    reference = [
        answer
        for name in ("hellaswag", "winogrande")
        for answer in answers_of(theirs(name, location(POCKET), data, ".jsonl")["samples"], "none")
    ]
    np.testing.assert_allclose(nats[0], [answer[0] for answer in reference], atol=1e-3)
    assert greedy[0].tolist() == [answer[1] for answer in reference]
    computed, _, alone = built.likelihoods.fill(pocket)
    assert computed < 0.6 * alone, "contexts are shared"


def test_the_forgetting_score_is_the_mean_of_three_tasks(data: Path, pocket: ArmView) -> None:
    names = ("winogrande", "hellaswag", "arc_challenge")
    (ours,) = benchmarks(data, *(Task(name=name, limit=4) for name in names)).score(pocket)
    mean = ours["forgetting_score"]
    parts = [ours[f"{n}/{'acc' if n == 'winogrande' else 'acc_norm'}"] for n in names]
    assert score(mean).value == pytest.approx(np.mean([score(part).value for part in parts]))
    assert (score(mean).n, mean.weight.sum()) == (12, pytest.approx(1))
    assert mean.side == "source"


def test_prompts_that_are_cut_are_said(data: Path, pocket: ArmView) -> None:
    task = Task(name="gsm8k", limit=2, generation_kwargs=GenerationKwargs(max_gen_toks=400))
    (ours,) = benchmarks(data, task).score(pocket)
    note = ours["gsm8k/exact_match,strict-match"].note
    assert note == (
        "2 of 2 prompts of gsm8k are cut from the left to fit the model's context of 512 tokens"
    )


def test_contexts_that_are_cut_are_said_before_anything_is_scored(
    data: Path, pocket: ArmView
) -> None:
    built = Benchmarks(
        {"source": [Task(name="hellaswag", limit=3)]},
        mirror_of(data, ".jsonl"),
        load_tokenizer(POCKET),
        SimpleNamespace(max_position_embeddings=20),
    )
    (note,) = built.facts()[0]["notes"]
    lengths = [len(built._encoder.encode([text])[text]) for text in wholes(built)]
    cut = sum(length > 21 for length in lengths)
    assert 0 < cut < len(lengths) == 12
    assert note == (
        f"{cut} of 12 prompts of hellaswag are cut from the left to fit the model's context of "
        "20 tokens"
    )
    (ours,) = built.score(pocket)
    assert ours["hellaswag/acc_norm"].note == note


def wholes(built: Benchmarks) -> list[str]:
    """Contexts with their continuations, of the first task."""
    return ["".join(instance.args) for instance in built._loaded[0].parts[0].instances]


MISTAKES = [
    (Task(name="helaswag", metrics=("acc",)), "the harness has no task 'helaswag'; did you mean "),
    (Task(name="hellaswag", metrics=("f1",)), "hellaswag has no metric 'f1'; there is acc, acc_n"),
    (
        Task(name="gsm8k", metrics=("exact_match",), num_fewshot=1),
        "gsm8k has no metric 'exact_match'; there is exact_match,flexible-extract, exact_match,str",
    ),
    (Task(name="hellaswag", repeats=2), "hellaswag generates nothing, so it takes no "),
    (
        Task(name="gsm8k", generation_kwargs=GenerationKwargs(max_gen_toks=512)),
        "answers of up to 512 tokens leave no room for a prompt in a context of 512",
    ),
]


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: case[0].name)
def test_mistakes(case: tuple[Task, str], data: Path) -> None:
    task, message = case
    with pytest.raises(UserError) as caught:  # before anything is scored
        benchmarks(data, task)
    assert message in str(caught.value)
