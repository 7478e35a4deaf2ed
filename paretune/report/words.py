"""Metrics and methods in plain words, for sentences, headings and model cards."""

from __future__ import annotations

UNITS = {"bits/byte": "bits per byte", "nats/token": "nats per token", "accuracy": "accuracy"}
# The parts of a family's name (``ArmConfig.family``)
_METHODS = {
    "lora": "LoRA",
    "dora": "DoRA",
    "pissa": "PiSSA",
    "rslora": "rsLoRA",
    "loraplus": "LoRA+",
    "bias": "biases",
}
# What a metric of a text NAME measures; {text} stands for the text's name in words
NAMED = {
    "self_probe/kl": "KL from the base on its own text",
    "forgetting_score": "the mean accuracy on HellaSwag, ARC-Challenge and WinoGrande",
}
KINDS = {
    "bits_per_byte": "bits per byte on {text}",
    "cloze": "cloze accuracy on {text}",
    "exact_match": "exact answers to {text}",
    "acc": "accuracy on {text}",
    "acc_norm": "accuracy on {text}, by likelihood over length",
    "pass@1": "programs for {text} that pass",
    "kl": "KL from the base on {text}",
    "reverse_kl": "reverse KL from the base on {text}",
    "distinct": "different drawn answers to {text}",
    "distinct_pass": "different right answers drawn to {text}",
    "distinct_fail": "different wrong answers drawn to {text}",
    "similarity": "similarity of drawn answers to {text}",
    "token_entropy": "entropy of the next token in drawn answers to {text}",
}
# Metrics of answers, which in instruction tuning are read off prompts; the others off responses
OF_PROMPTS = {
    "exact_match",
    "distinct",
    "distinct_pass",
    "distinct_fail",
    "similarity",
    "token_entropy",
}
# What a reader needs to know of a unit before the first number
IN_SHORT = {
    "nats/token": "KL in nats per token is how far an arm's next-token probabilities are from the "
    "base's: 0 is no change, and more is more forgotten",
    "bits/byte": "bits per byte is what a model needs to encode a byte of text: fewer is better",
}
NOTES = {
    "bits_per_byte": "Negative log-likelihood in bits of the held-out text (for pairs: of the "
    "responses), divided by its UTF-8 bytes. Lower is better; independent of the tokenizer.",
    "cloze": "Share of questions in which the true continuation of a text is the likeliest of "
    "four of equal length. Higher is better; chance is 0.25.",
    "exact_match": "Share of prompts whose greedily generated answer equals the reference. Higher "
    "is better.",
    "acc": "Share of documents whose right option is the likeliest (lm-evaluation-harness). "
    "Higher is better.",
    "acc_norm": "Share of documents whose right option is the likeliest when log-likelihoods are "
    "divided by the option's length in characters (lm-evaluation-harness). Higher is better.",
    "pass@1": "Share of programs that pass their tests, mean over problems. Higher is better.",
    "forgetting_score": "Unweighted mean of the main metrics of hellaswag, arc_challenge and "
    "winogrande: the paper's measure of what is kept. Higher is better.",
    "kl": "Kullback-Leibler divergence KL(base, arm), in nats per token over the whole vocabulary, "
    "on held-out target text (for pairs: on the responses). 0 for the base.",
    "reverse_kl": "Kullback-Leibler divergence KL(arm, base), in nats per token over the whole "
    "vocabulary, on held-out target text (for pairs: on the responses). 0 for the base.",
    "pass_at": "Chance that at least one of so many drawn answers to a prompt is right, estimated "
    "without bias from all of them (Chen et al., 2021). Higher is better.",
    "distinct": "Number of different answers among those drawn for a prompt, mean over prompts.",
    "distinct_pass": "Number of different right answers among those drawn for a prompt, mean over "
    "prompts.",
    "distinct_fail": "Number of different wrong answers among those drawn for a prompt, mean over "
    "prompts.",
    "similarity": "Mean over all pairs of answers drawn for a prompt of the Jaccard index of "
    "their character trigrams: 1 where all are equal.",
    "token_entropy": "Mean entropy of the next-token distribution, at temperature 1, over the "
    "tokens of the answers drawn for a prompt.",
    "self_probe/bits_per_byte": "Bits per byte of the self-probe, text sampled from the base. "
    "Lower is better; it rises as an arm finds the base's own text less likely.",
    "self_probe/kl": "Kullback-Leibler divergence of the arm from the base, in nats per token, on "
    "text sampled once from the base itself (the self-probe). 0 for the base; the more an arm "
    "departs from what the base would say, the higher.",
}


PASS_AT = "pass_at_"


def metric_words(metric: str, regime: str = "cpt") -> str:
    """``target/bits_per_byte`` as "bits per byte on held-out target text"; others as they are."""
    text, _, kind = metric.rpartition("/")
    if metric in NAMED:
        return NAMED[metric]
    if kind.startswith(PASS_AT):
        tries = kind.removeprefix(PASS_AT)
        return f"pass@{tries} on held-out target prompts"
    if kind not in KINDS:
        return metric
    if text == "self_probe":
        shown = "the base's own text"
    elif text == "target":
        prompts = "held-out target prompts" if kind in OF_PROMPTS else "held-out target answers"
        shown = "held-out target text" if regime == "cpt" else prompts
    else:
        shown = text.replace("_", " ")
    return KINDS[kind].format(text=shown)


def unit_words(unit: str) -> str:
    """``nats/token`` as "nats per token"."""
    return UNITS.get(unit, unit)


def metric_note(metric: str) -> str | None:
    """How a metric is defined, in a sentence or two; None for one that is not known here."""
    kind = metric.rpartition("/")[2]
    if kind.startswith(PASS_AT):
        kind = "pass_at"
    return NOTES.get(metric) or NOTES.get(kind)


def method_words(group: str) -> str:
    """A method group in a sentence: ``lora r16`` as "LoRA of rank 16".

    Variants by their published names: ``dora-rslora r16`` as "DoRA + rsLoRA of rank 16".
    """
    name, _, rank = group.partition(" r")
    if name == "full":
        return "full finetuning"
    parts = name.split("-")
    if all(part in _METHODS for part in parts):
        method = " + ".join(_METHODS[part] for part in parts)
        return f"{method} of rank {rank}" if rank else method
    return group


def sentence(text: str) -> str:
    """``text`` with a capital first letter."""
    return text[:1].upper() + text[1:]
