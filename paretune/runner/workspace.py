"""What every arm of a study shares while it runs: tokenizer, data, scores to take, budgets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from paretune.data.blocks import Blocks
from paretune.data.prepare import Prepared, check_budgets, prepare
from paretune.errors import UserError
from paretune.model.adapter import trained_shapes
from paretune.model.arm_axis import refuse_reason
from paretune.model.attention_dropout import check_attention_dropout
from paretune.model.biases import trained_biases
from paretune.model.causal import refuse_encoder
from paretune.model.layers import check_rank, linear_layers, select
from paretune.model.load import check_weights, load_shape, load_tokenizer
from paretune.model.shape import model_shape
from paretune.runner.ledger import Ledger
from paretune.study.arms import ArmConfig
from paretune.study.config import Base, Study, StudyConfig
from paretune.study.memory import Workload
from paretune.study.plan import SMALL_BASE
from paretune.study.shapes import Batch, Machine
from paretune.train.legs import Leg, leg_schedule, legs
from paretune.train.schedule import Resolved, Span

if TYPE_CHECKING:
    from paretune.evaluate.suite import Suite


@dataclass
class Workspace:
    """A study made concrete on this machine.

    Attributes:
        budgets: optimizer steps at which arms are scored, ascending.
    """

    config: StudyConfig
    tokenizer: Any
    prepared: Prepared
    suite: Suite
    budgets: list[int]
    span: Span

    @classmethod
    def build(cls, study: Study, ledger: Ledger, note: Callable[[str], None]) -> Workspace:
        """Read, tokenise and check everything that training needs.

        Raises:
            UserError: any mistake in base, data, budgets or arms.
        """
        with study.places.named():
            return cls._build(study, ledger, note)

    @classmethod
    def _build(cls, study: Study, ledger: Ledger, note: Callable[[str], None]) -> Workspace:
        from paretune.evaluate.suite import Suite

        config = study.config
        tokenizer = load_tokenizer(config.base)
        prepared = prepare(config, tokenizer, ledger.folder / "data", note=note)
        check_tokens(config.base, tokenizer, prepared.blocks)
        budgets = check_budgets(config, prepared.blocks)
        batch = config.training.batch_size
        span = Span(
            tokens_per_step=batch * config.training.block_length,
            steps_per_epoch=max(1, prepared.blocks.count // batch),
        )
        suite = Suite.build(config, tokenizer, prepared, ledger.folder / "base")
        workspace = cls(config, tokenizer, prepared, suite, budgets, span)
        for arm in study.arms:
            for leg in workspace.legs(arm):
                workspace.schedule(arm, leg)
        return workspace

    def tokens(self, step: int) -> int:
        """Training tokens after ``step`` optimizer steps."""
        return step * self.span.tokens_per_step

    def legs(self, arm: ArmConfig) -> list[Leg]:
        """The runs an arm's budgets are made of."""
        return legs(self.budgets, self.config.budgets.mode, arm.schedule, self.span)

    def schedule(self, arm: ArmConfig, leg: Leg) -> Resolved:
        """An arm's learning-rate schedule over a leg."""
        mode = self.config.budgets.mode
        return leg_schedule(leg, mode, arm.schedule, self.span, self.budgets)


def workload(config: StudyConfig, machine: Machine) -> Workload:
    """A study's steps on a machine, read from its base's shape."""
    training = config.training
    batch = Batch(training.batch_size, training.block_length)
    shape = load_shape(config.base)
    forced, offload = training.devices_per_cohort, training.offload
    together = training.full_together and forced is None
    together = together and _against_together(shape, machine) is None
    counted = model_shape(shape, quantised=config.base.quantise is not None)
    return Workload(counted, batch, machine, together, forced, offload)


def check_arms(study: Study, arms: Sequence[ArmConfig] | None = None) -> dict[str, int]:
    """Check arms against the base's shape; returns trained parameters by arm id.

    Args:
        arms: all arms of the study by default.

    Raises:
        UserError: the base is no causal LM, targets, biases or attention dropout that it does not
            have, a rank larger than a matrix, rows longer than the base's context, or no weights
            that can be read.
    """
    with study.places.named():
        check_weights(study.config.base)
        model = load_shape(study.config.base)
        refuse_encoder(model, study.config.base.name)
        _check_lengths(study.config, model)
        layers = linear_layers(model)
        everything = sum(parameter.numel() for parameter in model.parameters())
        trained = {}
        for arm in study.arms if arms is None else arms:
            key = study.places.arm_key
            if arm.method == "full":
                if study.config.base.quantise:
                    raise UserError(
                        f"{key(arm.id, 'method')}: full finetuning needs the base's own weights, "
                        "which base.quantise rounds; leave out one of the two"
                    )
                if arm.attention_dropout:
                    where = key(arm.id, "attention_dropout")
                    check_attention_dropout(model, study.config.base.name, where=where)
                trained[arm.id] = everything
                continue
            names = select(layers, arm.targets or "all", where=key(arm.id, "targets"))
            check_rank(layers, names, arm.rank or 1, where=key(arm.id, "rank"))
            biases = trained_biases(model, arm.bias, names, where=key(arm.id, "bias"))
            shapes = trained_shapes(arm, (layers[name] for name in names), biases)
            trained[arm.id] = sum(math.prod(shape) for shape in shapes.values())
        return trained


def _check_lengths(config: StudyConfig, model: torch.nn.Module) -> None:
    """Nothing a study feeds its base is longer than the base was made for."""
    most = getattr(model.config, "max_position_embeddings", None)
    asked = [("training.block_length", config.training.block_length)]
    if config.source.self_probe is not None:
        asked.append(("source.self_probe.tokens", config.source.self_probe.tokens))
    if "exact_match" in config.target.metrics or config.target.samples is not None:
        asked.append(("target.answer_tokens", config.target.answer_tokens))
    for key, length in asked:
        if isinstance(most, int) and length > most:
            raise UserError(
                f"{key}: {length} tokens are more than the base reads at once; use at most {most} "
                "(max_position_embeddings in its config.json)"
            )


def check_tokens(base: Base, tokenizer: Any, blocks: Blocks) -> None:
    """Refuse a base whose tokenizer gives tokens that the model has no embedding for.

    Such as one to which tokens were added without the model's embeddings being resized.

    Raises:
        UserError: the end-of-text token, or one of the data's first blocks, is such a token.
    """
    embedding: Any = load_shape(base).get_input_embeddings()  # type: ignore[operator]
    known = int(embedding.weight.shape[0])
    token = max(int(tokenizer.eos_token_id), blocks.largest_token())
    if token >= known:
        raise UserError(
            f"base: the tokenizer of {base.name} gives the token {token} "
            f"({tokenizer.convert_ids_to_tokens(token)!r}), and the model knows {known:,} tokens "
            "(0 and up); give the tokenizer that belongs to it, or resize the model's embeddings "
            "(resize_token_embeddings) and save it again"
        )


def unreached_by_lora(config: StudyConfig) -> str | None:
    """What adapters cannot reach, where that is much of the base: experts in stacked tensors."""
    model = load_shape(config.base)
    linear = set(linear_layers(model))
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    known = {id(module.weight) for module in embeddings if module is not None}
    sizes = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and id(parameter) not in known
        and name.rpartition(".")[0] not in linear
    }  # fmt: skip
    share = sum(sizes.values()) / sum(parameter.numel() for parameter in model.parameters())
    if share < 0.05:
        return None
    largest = max(sizes, key=lambda name: sizes[name])
    return (
        f"LoRA adapts linear layers; {share:.0%} of the base lies in other tensors "
        f"(such as {largest}), which only full arms train"
    )


def one_by_one(config: StudyConfig, arms: Sequence[ArmConfig], machine: Machine) -> str | None:
    """Why full arms train one after another although ``training.full_together`` asks otherwise."""
    several = sum(arm.method == "full" for arm in arms) > 1
    if not (config.training.full_together and several):
        return None
    return _against_together(load_shape(config.base), machine)


def _against_together(shape: torch.nn.Module, machine: Machine) -> str | None:
    if machine.kind != "cuda":
        return "larger products gain nothing on a CPU"
    count = sum(parameter.numel() for parameter in shape.parameters())
    if count > SMALL_BASE:
        return f"one arm of {count / 1e6:,.0f}M parameters fills a GPU"
    return refuse_reason(shape)
