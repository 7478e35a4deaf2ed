"""Malformed study files, each with the message it gets; docs/mistakes.md shows this table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from paretune.errors import UserErrors
from paretune.study.yamlfile import load_study

GOOD = """\
name: mine
base: pocket
regime: cpt
target:
  data: {from: python-packages}
source:
  texts:
    - {name: prose, data: {from: pocket-prose}}
budgets: {at: [1M, 2M]}
arms:
  - method: full
    learning_rate: [1e-4, 1e-3]
  - method: lora
    rank: [4, 16]
    learning_rate: 1e-3
"""


@dataclass(frozen=True)
class Mistake:
    """One malformed study file: what is wrong with it, its text, the messages it gets."""

    name: str
    text: str
    messages: tuple[str, ...]


def changed(name: str, old: str, new: str, *messages: str) -> Mistake:
    """The good file with ``old`` written as ``new``."""
    assert GOOD.count(old) == 1, f"{name}: {old!r} must stand once in the good file"
    return Mistake(name, GOOD.replace(old, new), messages)


def whole(name: str, text: str, *messages: str) -> Mistake:
    """A file that is wrong as a whole."""
    return Mistake(name, text, messages)


FULL = "  - method: full\n    learning_rate: [1e-4, 1e-3]\n"
LORA = "  - method: lora\n    rank: [4, 16]\n    learning_rate: 1e-3\n"
KINDS = "python-packages, json, parquet, text, hub, arithmetic, pocket-prose"

# Each message is whole but for its beginning, "study.yaml, ".
MISTAKES = [
    # The file as such
    whole(
        "empty file", "", "line 1: the file is empty; 'paretune init' writes a study to start from"
    ),
    whole(
        "a list at the top",
        "- name: mine\n",
        "line 1: expected keys and values (name: ..., base: ...) at the top",
    ),
    changed(
        "a tab for indentation",
        "  data: {from: python-packages}",
        "\tdata: {from: python-packages}",
        "line 5: a tab where YAML wants spaces: indent with spaces",
    ),
    changed(
        "a bracket left open",
        "{at: [1M, 2M]}",
        "{at: [1M, 2M}",
        "line 9: not readable as YAML: expected ',' or ']', but got '}' "
        "(while parsing a flow sequence)",
    ),
    changed(
        "a quote left open",
        "name: mine",
        "name: 'mine",
        "line 1: a quote or bracket that opens here is not closed",
    ),
    changed(
        "two colons in a line",
        "name: mine",
        "about: English: then Python",
        "line 1: a ':' where no key can stand: check the indentation, or put the text in quotes",
    ),
    changed(
        "wrong indentation",
        "base: pocket",
        "  base: pocket",
        "line 2: a ':' where no key can stand: check the indentation, or put the text in quotes",
    ),
    changed(
        "a key given twice",
        "regime: cpt",
        "regime: cpt\nbase: gpt2",
        "line 4: base: already given on line 2",
    ),
    changed(
        "two documents in one file",
        "arms:",
        "---\narms:",
        "line 10: a second document begins: a study file holds one",
    ),
    changed(
        "a tag of Python's",
        "base: pocket",
        "base: !!python/name:os.system",
        "line 2: base: the tag !!python/name:os.system is not for study files",
    ),
    changed(
        "an alias that contains itself",
        "budgets: {at: [1M, 2M]}",
        "budgets: &b {at: [*b]}",
        "line 9: budgets.at[0]: an alias that contains itself",
    ),
    changed(
        "a password in an address",
        "base: pocket",
        "base: https://me:letmein@example.org/base",
        "line 2: base: holds what looks like a password or token; a study file is kept with the "
        "results and shown in the report. Remove it, and log in with `hf auth login` or set "
        "HF_TOKEN",
    ),
    # Keys
    changed(
        "a misspelt key",
        LORA,
        "  - {method: lora, rank: 4, learning_rat: 1e-3}\n",
        "line 13: arms[1].learning_rat: unknown key; did you mean learning_rate?",
    ),
    changed(
        "a misspelt key at the top",
        "budgets: {",
        "budget: {",
        "line 9: budget: unknown key; did you mean budgets?",
    ),
    changed(
        "a key of nothing known",
        "regime: cpt",
        "regime: cpt\ntraining: {gpus: 8}",
        "line 4: training.gpus: unknown key; known here: block_length, batch_size, template, "
        "full_together, devices_per_cohort, offload, repeat, max_bad_rows",
    ),
    changed(
        "a missing key",
        "regime: cpt\n",
        "",
        "line 1: regime: missing; it holds cpt: continued pretraining on text; ift: instruction "
        "pairs, loss on responses",
    ),
    changed(
        "no learning rate",
        FULL,
        "  - method: full\n",
        "line 11: arms[0].learning_rate: missing; it holds peak learning rate",
    ),
    changed(
        "no rank",
        "    rank: [4, 16]\n",
        "",
        "line 13: arms[1].rank: missing; a lora arm needs one, for example rank: 16",
    ),
    # Values
    changed(
        "text for a number",
        "learning_rate: 1e-3\n",
        "learning_rate: high\n",
        "line 15: arms[1].learning_rate: expected a number, found the text 'high'",
    ),
    changed(
        "a fraction for a whole number",
        "[4, 16]",
        "[4, 16.5]",
        "line 14: arms[1].rank[1]: expected a whole number, found 16.5",
    ),
    changed(
        "a mapping for a name",
        "name: mine",
        "name: {of: mine}",
        "line 1: name: expected text, found a mapping (key: value)",
    ),
    changed(
        "text for a list",
        "    - {name: prose, data: {from: pocket-prose}}",
        "    - {name: prose, data: {from: pocket-prose}, metrics: cloze}",
        "line 8: source.texts[0].metrics: expected a list of bits_per_byte or cloze, found the "
        "text 'cloze'; write [cloze]",
    ),
    changed(
        "a metric of nothing known",
        "    - {name: prose, data: {from: pocket-prose}}",
        "    - {name: prose, data: {from: pocket-prose}, metrics: [perplexity]}",
        "line 8: source.texts[0].metrics[0]: expected bits_per_byte or cloze, found the text "
        "'perplexity'",
    ),
    changed(
        "a negative learning rate",
        "learning_rate: 1e-3\n",
        "learning_rate: -1e-3\n",
        "line 15: arms[1].learning_rate: must be above 0, found -0.001",
    ),
    changed(
        "rank zero",
        "[4, 16]",
        "[0, 16]",
        "line 14: arms[1].rank[0]: must be at least 1, found 0",
    ),
    changed(
        "a learning rate without end",
        "learning_rate: 1e-3\n",
        "learning_rate: .inf\n",
        "line 15: arms[1].learning_rate: must be a finite number, found inf",
    ),
    changed(
        "a misspelt choice",
        "arms:",
        "defaults: {optimizer: adamm}\narms:",
        "line 10: defaults.optimizer: expected adamw or lion, found the text 'adamm'; did you mean "
        "adamw?",
    ),
    changed(
        "an unknown schedule",
        "arms:",
        "defaults: {schedule: linear}\narms:",
        "line 10: defaults.schedule: 'linear' is not a schedule; there is constant, cosine, "
        "inverse_sqrt, trapezoid",
    ),
    changed(
        "warm-up as a bare fraction",
        "arms:",
        "defaults: {schedule: {shape: cosine, warmup: 0.1}}\narms:",
        "line 10: defaults.schedule.warmup: '0.1' is neither a share of the run nor a quantity: "
        "write 10%, 100ba or 2M",
    ),
    changed(
        "alpha in no notation",
        "[4, 16]\n",
        "[4, 16]\n    alpha: 2x\n",
        "line 15: arms[1].alpha: '2x': write a number, or a multiple of the rank as 2r",
    ),
    changed(
        "one beta of two",
        "[4, 16]\n",
        "[4, 16]\n    betas: [0.9]\n",
        "line 15: arms[1].betas: expected a list of 2 numbers, found a list of 1",
    ),
    changed(
        "a share above 100%",
        "  data: {from: python-packages}",
        "  data: {from: python-packages}\n  heldout: 500%",
        "line 6: target.heldout: a share must lie between 0% and 100%, found 500%",
    ),
    changed(
        "a share without its sign",
        "  data: {from: python-packages}",
        "  data: {from: python-packages}\n  heldout: 5",
        "line 6: target.heldout: a share must lie between 0% and 100%, found 5: write 5%",
    ),
    changed(
        "prompts and responses from one field",
        "  data: {from: python-packages}",
        "  data: {from: hub, name: x/y, prompt: text, response: text}",
        "line 5: target.data.response: 'text' is the field of the prompts already",
    ),
    changed(
        "an empty name of the base",
        "base: pocket",
        "base: ''",
        "line 2: base: empty; it holds the pretrained causal LM all arms start from",
    ),
    changed(
        "a key without anything after it",
        f"arms:\n{FULL}{LORA}",
        "arms:\n",
        "line 10: arms: expected a list of mappings (key: value), found nothing",
    ),
    changed(
        "a repeat under the seed that the arms have",
        "arms:",
        "repeat_best: {seeds: [0]}\narms:",
        "line 10: repeat_best.seeds: 0 is the seed of every arm already; give others",
    ),
    changed(
        "braces that are not quoted",
        "arms:",
        "mirror: {Rowan/hellaswag: data/{split}.jsonl}\narms:",
        "line 10: a '{' where none can stand: put text that holds braces in quotes",
    ),
    changed(
        "a task that is misspelt",
        "  data: {from: python-packages}",
        "  data: {from: python-packages}\n  tasks: [gsm8]",
        "line 6: target.tasks[0].metrics: missing; say which metric of gsm8 counts, for example "
        "[acc]; did you mean gsm8k?",
    ),
    changed(
        "a name with a space",
        "name: mine",
        "name: my study",
        "line 1: name: the text 'my study' is not a name: use letters, digits, '-' and '_', and "
        "begin with a letter or a digit",
    ),
    # Quantities and budgets
    changed(
        "a quantity in no notation",
        "[1M, 2M]",
        "[1M, 2 epochs]",
        "line 9: budgets.at[1]: '2 epochs' is not a quantity: write tokens as 8M or 8Mtok, epochs "
        "as 2ep, batches as 500ba",
    ),
    changed(
        "a budget of nothing",
        "[1M, 2M]",
        "[0, 2M]",
        "line 9: budgets.at[0]: '0' must be above zero",
    ),
    changed(
        "a budget given twice",
        "[1M, 2M]",
        "[1M, 1000k]",
        "line 9: budgets.at[1]: 1M is given twice",
    ),
    changed(
        "no budget",
        "[1M, 2M]",
        "[]",
        "line 9: budgets.at: the list is empty; expected a list of quantities such as 8M, 2ep or "
        "500ba",
    ),
    # Data
    changed(
        "data from nowhere",
        "data: {from: python-packages}",
        "data: {packages: all}",
        f"line 5: target.data.from: missing; it says where the data comes from: {KINDS}",
    ),
    changed(
        "data of an unknown kind",
        "data: {from: python-packages}",
        "data: {from: jsonl, path: rows.jsonl}",
        "line 5: target.data.path: nothing is there: FOLDER/rows.jsonl",
        f"line 5: target.data.from: the text 'jsonl' is not one of {KINDS}; did you mean json?",
    ),
    changed(
        "a key of another kind of data",
        "data: {from: python-packages}",
        "data: {from: python-packages, path: src}",
        "line 5: target.data.path: nothing is there: FOLDER/src",
        "line 5: target.data.path: unknown key; known here: from, packages",
    ),
    changed(
        "files that are not there",
        "data: {from: python-packages}",
        "data: {from: json, path: [rows/*.jsonl]}",
        "line 5: target.data.path[0]: no file matches: FOLDER/rows/*.jsonl",
    ),
    changed(
        "a base that is not there",
        "base: pocket",
        "base: ./models/mine",
        "line 2: base: nothing is there: FOLDER/models/mine",
    ),
    # Arms
    changed(
        "a setting of the other method",
        FULL,
        "  - {method: full, learning_rate: 1e-4, rank: 16}\n",
        "line 11: arms[0].rank: only for method lora, not for full",
    ),
    changed(
        "a variant of LoRA as a method",
        FULL,
        "  - {method: dora, rank: 4, learning_rate: 1e-4}\n",
        "line 11: arms[0].method: 'dora' is LoRA with a setting: write method: lora, dora: true",
    ),
    changed(
        "a variant of LoRA on full finetuning",
        FULL,
        "  - {method: full, learning_rate: 1e-4, init: pissa, dora: true, bias: all}\n",
        "line 11: arms[0].bias: only for method lora, not for full",
        "line 11: arms[0].dora: only for method lora, not for full",
        "line 11: arms[0].init: only for method lora, not for full",
    ),
    changed(
        "rsLoRA with alpha that follows the rank",
        "[4, 16]\n",
        "[4, 16]\n    scaling: rslora\n",
        "line 13: arms[1].alpha: with scaling: rslora give a number, for example alpha: 16; a "
        "multiple of the rank would undo what alpha / sqrt(r) is for",
    ),
    changed(
        "an unknown scaling",
        "[4, 16]\n",
        "[4, 16]\n    scaling: rs\n",
        "line 15: arms[1].scaling: expected standard or rslora, found the text 'rs'",
    ),
    changed(
        "an unknown initialisation",
        "[4, 16]\n",
        "[4, 16]\n    init: pisa\n",
        "line 15: arms[1].init: expected default or pissa, found the text 'pisa'; did you mean "
        "pissa?",
    ),
    changed(
        "a LoRA+ ratio below 1",
        "[4, 16]\n",
        "[4, 16]\n    loraplus_lr_ratio: [0.5, 16]\n",
        "line 15: arms[1].loraplus_lr_ratio[0]: must be at least 1, found 0.5",
    ),
    changed(
        "DoRA neither on nor off",
        "[4, 16]\n",
        "[4, 16]\n    dora: yes\n",
        "line 15: arms[1].dora: expected true or false, found the text 'yes'",
    ),
    changed(
        "biases of no kind",
        "[4, 16]\n",
        "[4, 16]\n    bias: lora\n",
        "line 15: arms[1].bias: expected none, all or lora_only, found the text 'lora'; did you "
        "mean lora_only?",
    ),
    changed(
        "an unknown quantisation",
        "base: pocket",
        "base: {name: pocket, quantise: int4}",
        "line 2: base.quantise: expected nf4 or int8, found the text 'int4'; did you mean int8?",
    ),
    changed(
        "two conventions of weight decay",
        FULL,
        "  - {method: full, learning_rate: 1e-4, weight_decay: 0.1, weight_decay_relative: 1e-5}\n",
        "line 11: arms[0].weight_decay: weight_decay_relative says the same in another convention: "
        "give one of them",
    ),
    changed(
        "paired lists of two lengths",
        LORA,
        "  - method: lora\n    paired: {rank: [4, 16, 64], learning_rate: [1e-3, 1e-4]}\n",
        "line 14: arms[1].paired: the lists must be of one length "
        "(rank has 3, learning_rate has 2)",
    ),
    changed(
        "a setting both paired and not",
        LORA,
        "  - method: lora\n    rank: 4\n    paired: {rank: [4, 16], learning_rate: [1e-3, 1e-4]}\n",
        "line 15: arms[1].paired.rank: given both in paired and beside it",
    ),
    changed(
        "an empty sweep",
        "[4, 16]",
        "[]",
        "line 14: arms[1].rank: an empty list gives no arm",
    ),
    changed(
        "the same arm in two entries",
        LORA,
        "  - {method: full, learning_rate: 0.001}\n",
        "line 13: arms[1]: full lr 0.001 is the same arm as arms[0] on line 11",
    ),
    changed(
        "the same arm twice in one sweep",
        "[1e-4, 1e-3]",
        "[1e-3, 0.001]",
        "line 11: arms[0]: two of the arms that it stands for are the same (full lr 0.001)",
    ),
    changed(
        "far too many arms",
        "[1e-4, 1e-3]\n",
        f"1e-4\n    seed: [{', '.join(map(str, range(1001)))}]\n",
        "line 11: arms[0]: the lists multiply to more than 1,000 arms",
    ),
    changed(
        "paired among the defaults",
        "arms:",
        "defaults: {paired: {rank: [4], learning_rate: [1e-3]}}\narms:",
        "line 10: defaults.paired: belongs to an entry of arms, where lists advance together",
    ),
    changed(
        "an arm that is not a mapping",
        LORA,
        "  - lora\n",
        "line 13: arms[1]: expected a mapping (key: value), found the text 'lora'",
    ),
    # Keys that do not go together
    changed(
        "exact match of running text",
        "  data: {from: python-packages}",
        "  data: {from: python-packages}\n  metrics: [exact_match]",
        "line 6: target.metrics: exact_match needs prompts and responses: it is for regime ift",
    ),
    changed(
        "drawn answers to running text",
        "  data: {from: python-packages}",
        "  data: {from: python-packages}\n  samples: {count: 10}",
        "line 6: target.samples: samples are answers to prompts: they are for regime ift",
    ),
    changed(
        "pass@k of too few answers",
        "  data: {from: python-packages}",
        "  data: {from: python-packages}\n  samples: {count: 10, pass_at: [1, 50]}",
        "line 6: target.samples.pass_at[1]: pass@50 needs at least 50 answers, and count is 10: "
        "raise count",
    ),
    changed(
        "a target that shows no learning",
        "  data: {from: python-packages}",
        "  data: {from: python-packages}\n  metrics: [kl]",
        "line 6: target.metrics: kl and reverse_kl show no learning: give a metric that does, such "
        "as bits_per_byte",
    ),
    changed(
        "code without prompts for ift",
        "regime: cpt",
        "regime: ift",
        "line 5: target.data.from: python-packages has no prompts: set regime: cpt",
    ),
    changed(
        "a metric on the frontier that is not scored",
        "arms:",
        "frontier: {forgetting: prose/cloze}\narms:",
        "line 10: frontier.forgetting: 'prose/cloze' is not scored here; there is self_probe/kl, "
        "self_probe/bits_per_byte, prose/bits_per_byte",
    ),
    changed(
        "two texts of one name",
        "    - {name: prose, data: {from: pocket-prose}}\n",
        "    - {name: prose, data: {from: pocket-prose}}\n"
        "    - {name: prose, data: {from: python-packages}}\n",
        "line 9: source.texts[1].name: 'prose' is the name of another text: give each its own",
    ),
    changed(
        "nothing that shows forgetting",
        "source:\n  texts:\n    - {name: prose, data: {from: pocket-prose}}\n",
        "source: {self_probe: null}\n",
        "line 6: source.self_probe: nothing shows forgetting: leave this out (there is a default), "
        "or give texts or tasks",
    ),
    changed(
        "a task whose metric is not known",
        "source:\n",
        "source:\n  tasks: [hellaswag, blimp]\n",
        "line 7: source.tasks[1].metrics: missing; say which metric of blimp counts, for example "
        "[acc]",
    ),
    changed(
        "a task on both sides",
        "source:\n",
        "  tasks: [gsm8k]\nsource:\n  tasks: [{name: gsm8k, limit: 100}]\n",
        "line 8: source.tasks[0].name: 'gsm8k' is listed already; a task belongs to one side, once",
    ),
    changed(
        "a mirror that does not say where the split stands",
        "arms:",
        "mirror: {Rowan/hellaswag: study.yaml}\narms:",
        "line 10: mirror.Rowan/hellaswag: put {split} where the file names differ by split, such "
        "as data/{split}.jsonl",
    ),
    changed(
        "a cosine that cools down",
        "arms:",
        "defaults: {schedule: {shape: cosine, cooldown: 20%}}\narms:",
        "line 10: defaults.schedule.cooldown: a cosine schedule has none: use constant or "
        "trapezoid",
    ),
    # Several at once, in the order of the lines
    changed(
        "several mistakes at once",
        "base: pocket\nregime: cpt",
        "base: 7\nregime: pretraining\nname: yours",
        "line 2: base: expected pocket, a folder, or the name of a Hugging Face model",
        "line 3: regime: expected cpt or ift, found the text 'pretraining'",
        "line 4: name: already given on line 1",
    ),
]


def test_the_good_file_is_good(tmp_path: Path) -> None:
    """What the table changes is right before the change."""
    file = tmp_path / "study.yaml"
    file.write_text(GOOD)
    assert len(load_study(file).arms) == 4


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_each_mistake_gets_its_message(mistake: Mistake, tmp_path: Path) -> None:
    """All messages, whole, and nothing else."""
    file = tmp_path / "study.yaml"
    file.write_text(mistake.text)
    with pytest.raises(UserErrors) as caught:
        load_study(file)
    expected = [
        f"{file}, {message.replace('FOLDER', str(tmp_path))}" for message in mistake.messages
    ]
    assert sorted(caught.value.messages) == sorted(expected)


def test_messages_come_in_the_order_of_the_lines(tmp_path: Path) -> None:
    """A file is mended from top to bottom."""
    file = tmp_path / "study.yaml"
    file.write_text(MISTAKES[-1].text)
    with pytest.raises(UserErrors) as caught:
        load_study(file)
    assert [message.split(":")[0][-6:] for message in caught.value.messages] == [
        "line 2",
        "line 3",
        "line 4",
    ]
