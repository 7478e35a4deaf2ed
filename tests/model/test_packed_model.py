"""A model over packed trees: the log-probabilities of plain rows, or a reason why not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers as tf
import transformers.integrations.flex_attention as flex
from torch.fx import GraphModule
from torch.nn.attention.flex_attention import flex_attention

from paretune.evaluate.tasks.pack import Scored, pack
from paretune.model import tree
from paretune.model.lora_cohort import lora_cohort
from paretune.model.packed import PackedModel, _sample_tree
from paretune.model.regions import Compiler, Regions
from paretune.model.trainee import frozen
from paretune.model.tree import attend_in_tree, block_mask, dense_mask
from paretune.model.view import ArmView
from paretune.study.arms import ArmConfig
from paretune.study.config import Base

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GPT2 = {
    "vocab_size": 96,
    "n_positions": 128,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "llama": lambda: tf.LlamaConfig(**SMALL),
    "learned positions": lambda: tf.GPT2Config(**GPT2),
    "scaled logits": lambda: tf.GraniteConfig(**SMALL, logits_scaling=3.0),
    "capped logits": lambda: tf.Gemma2Config(**SMALL, head_dim=8, sliding_window=4096),
}


def requests(seed: int) -> list[Scored]:
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(6):
        context = draw.integers(0, 96, draw.integers(1, 20))
        for _ in range(4):
            option = draw.integers(0, 96, draw.integers(1, 12))
            found.append(Scored(np.r_[context, option], len(option)))
    return found


def saved(config: tf.PreTrainedConfig, folder: Path) -> Base:
    torch.manual_seed(0)
    tf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return Base(name=str(folder))


def summed(view: ArmView, asked: list[Scored]) -> np.ndarray:
    """Log-likelihoods [K, N] from packed rows."""
    total = np.zeros((view.count, len(asked)))
    for packed in pack([asked], 150):
        log_p_KM, _ = view.tree(packed.row, 40)
        for arm in range(view.count):
            np.add.at(total[arm], packed.request, log_p_KM[arm].double().numpy())
    return total


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_model_over_plain_rows(name: str, tmp_path: Path) -> None:
    base = saved(CONFIGS[name](), tmp_path)
    model = tf.AutoModelForCausalLM.from_pretrained(base.name, dtype=torch.float32).eval()
    view = frozen(base, CPU).view(None)
    assert view.tree_refusal(40) is None
    asked = requests(1)
    found = summed(view, asked)[0]
    for request, value in zip(asked, found, strict=True):
        tokens = torch.from_numpy(request.tokens)[None]
        with torch.no_grad():
            log_p = model(tokens[:, :-1]).logits[0].log_softmax(-1)
        own = log_p.gather(1, tokens[0, 1:, None])[-request.count :]
        assert value == pytest.approx(float(own.sum()), abs=2e-4)


class Counting(Compiler):
    """Counts the adapted products that it leaves in a block."""

    products: ClassVar[set[int]] = set()

    def __call__(self, block: GraphModule, inputs: Any) -> Callable[..., Any]:
        """Compile and count."""
        compiled = super().__call__(block, inputs)
        self.products.add(sum("adapted_products" in str(n.target) for n in block.graph.nodes))
        return compiled


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("count", [1, 4])
def test_the_arms_of_a_cohort_at_once(count: int, compiled: bool, tmp_path: Path) -> None:
    """As each arm's plain rows, by compiled blocks with merged products too."""
    base = saved(tf.LlamaConfig(**SMALL), tmp_path)
    arms = [
        ArmConfig(method="lora", rank=rank, learning_rate=1e-3, lora_dropout=dropout)
        for rank, dropout in ((2, 0.2), (4, 0.0), (4, 0.2), (8, 0.0))
    ]
    together = lora_cohort(base, arms[:count], CPU, arms_per_pass=count)
    for flat in together.flats:
        flat.values.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    view = together.view(together.passes[0])
    asked = requests(2)
    if compiled:
        torch._dynamo.reset()
        Counting.products.clear()
        together.packed._regions = Regions(together.model, Counting("aot_eager"))
    found = summed(view, asked)
    if compiled:
        assert together.packed._regions is not None, "the compiled blocks were not given up"
        assert Counting.products == {4}  # queries, keys, values; output; gate, up; down
    for request, value_K in zip(asked, found.T, strict=True):
        tokens = torch.from_numpy(request.tokens)[None]
        log_p_KSV = view.logits(tokens[:, :-1])[:, 0].log_softmax(-1)
        own = log_p_KSV.gather(2, tokens[0, 1:].expand(count, -1)[..., None])[:, -request.count :]
        np.testing.assert_allclose(value_K, own.sum((1, 2)).numpy(), atol=2e-4)
    assert count == 1 or (np.ptp(found, axis=0) > 1e-3).all(), "the arms differ"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: tf.MptConfig(vocab_size=96, d_model=32, n_heads=4, n_layers=2, max_seq_len=128),
         "with a tree's mask and positions it gives other logits"),
        (lambda: tf.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=8),
         "its forward pass takes no tree"),
        (lambda: tf.MistralConfig(**SMALL, sliding_window=16),
         "its attention reaches back only 16 tokens"),
    ],
    ids=["linear biases", "no attention", "sliding window"],
)  # fmt: skip
def test_a_model_that_takes_no_trees_says_why(
    config: Callable[[], tf.PreTrainedConfig], reason: str, tmp_path: Path
) -> None:
    view = frozen(saved(config(), tmp_path), CPU).view(None)
    refusal = view.tree_refusal(40)
    assert refusal is not None
    assert refusal.startswith(reason)


def deep_in_bf16(
    *, change: Callable[[dict[str, Any]], None] = lambda settings: None
) -> tuple[tf.LlamaForCausalLM, PackedModel]:
    """A model in which rounding adds up over 32 layers; what a forward pass is given is changed."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 32}
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**(SMALL | sizes))).bfloat16().eval()

    def forward(
        ids: torch.Tensor,
        *,
        position_ids_NS: torch.Tensor | None = None,
        part: str = "logits",
        **settings: Any,
    ) -> Any:
        if position_ids_NS is not None:
            settings["position_ids"] = position_ids_NS
            change(settings)
        return (model if part == "logits" else model.model)(input_ids=ids, **settings)

    return model, PackedModel(model, forward, model.lm_head, CPU)


@torch.no_grad()
def test_a_deep_model_in_bf16_takes_trees() -> None:
    """Its logits differ by more than the fixed tolerance, and so do those of plain rows."""
    model, packed = deep_in_bf16()
    row, chains = _sample_tree(96)
    found, _ = packed.scores(row, 1)
    tokens = torch.from_numpy(np.stack([chain.tokens for chain in chains]))
    targets = torch.from_numpy(np.stack([chain.targets for chain in chains]))

    def plain(ids: torch.Tensor) -> torch.Tensor:
        log_p = model(ids).logits[:, 12:24].float().log_softmax(-1)
        return log_p.gather(2, targets[: len(ids), :, None])[..., 0]

    alone = torch.cat([plain(ids[None]) for ids in tokens])
    further = model(torch.cat([tokens, tokens.flip(0)], 1)).logits[:, 12:24].float()
    with_others = further.log_softmax(-1).gather(2, targets[..., None])[..., 0]
    for other in (found.view_as(alone), with_others):
        assert float((other - alone).abs().max() / alone.std()) > 0.08
    assert packed.refusal(1, 40) is None


@torch.no_grad()
@pytest.mark.parametrize("what", ["attention_mask", "position_ids"])
def test_a_deep_model_in_bf16_without_mask_or_positions_is_refused(what: str) -> None:
    """Rounding, however much it adds up to, does not hide what is wrong; the figures are given."""

    def ignore(settings: dict[str, Any]) -> None:
        settings[what] = None

    refusal = deep_in_bf16(change=ignore)[1].refusal(1, 40)
    assert refusal is not None
    figures = re.search(r"apart by (.+) of their spread, at most (.+); rounding .+ (.+)\)", refusal)
    assert figures is not None, refusal
    typical, worst, rounding = map(float, figures.groups())
    assert worst > typical > 3 * rounding > 0


@torch.no_grad()
def test_a_branch_that_sees_one_token_of_another_is_refused() -> None:
    """The smallest mistake of a mask, in float32."""
    row, _ = _sample_tree(96)
    ends = row.ends.copy()
    ends[23] = ends[0]  # the last token of the first branch

    def open_up(settings: dict[str, Any]) -> None:
        settings["attention_mask"] = dense_mask(torch.from_numpy(ends), model, torch.float32)

    model, packed = deep_in_bf16(change=open_up)
    model.float()
    assert "gives other logits" in str(packed.refusal(1, 40))


def test_block_mask_is_the_dense_one() -> None:
    """FlexAttention's blocks, each evaluated as its kernel would, hold exactly the tree."""
    draw = np.random.default_rng(3)
    shared = draw.integers(0, 9, 200)
    asked = []
    for _ in range(3):
        context = np.r_[shared, draw.integers(0, 9, 150)]
        asked += [Scored(np.r_[context, draw.integers(0, 9, 70)], 70) for _ in range(3)]
    (packed,) = pack([asked], 5000)
    row = packed.row.padded(-(-len(packed.row.tokens) // 128) * 128)
    ends = torch.from_numpy(row.ends)
    dense = dense_mask(
        ends, tf.AutoModelForCausalLM.from_config(tf.LlamaConfig(**SMALL)), torch.float32
    )
    blocks = block_mask(ends)
    count = len(ends) // 128
    place = torch.arange(len(ends))
    exact = blocks.mask_mod(None, None, place[:, None], place)
    built = torch.zeros(len(ends), len(ends), dtype=torch.bool)
    kinds = (
        (blocks.kv_num_blocks, blocks.kv_indices, False),
        (blocks.full_kv_num_blocks, blocks.full_kv_indices, True),
    )
    for numbers, indices, full in kinds:
        for i in range(count):
            for j in indices[0, 0, i, : numbers[0, 0, i]].tolist():
                part = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
                built[part] = True if full else exact[part]
    assert torch.equal(built, dense[0, 0])
    assert int(blocks.full_kv_num_blocks.sum()) > 0, "some blocks are whole"


def test_flex_attention_takes_what_autocast_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries and keys in float32 beside bf16 values, and grouped heads: as SDPA with the mask."""
    # The uncompiled form: compiling it for a CPU takes longer than all else here
    monkeypatch.setattr(
        flex,
        "compile_friendly_flex_attention",
        lambda q, k, v, training=False, **settings: flex_attention(q, k, v, **settings),
    )
    ends = torch.tensor([128] * 64 + [96] * 32 + [128] * 32)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 128, 16, generator=generator) for heads in (4, 2, 2))
    value = value.bfloat16()
    module = torch.nn.Module().eval()
    found, _ = attend_in_tree(module, query, key, value, block_mask(ends), scaling=0.25)
    place = torch.arange(128)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.bfloat16(),
        key.bfloat16(),
        value,
        attn_mask=(place <= place[:, None]) & (place[:, None] < ends),
        scale=0.25,
        enable_gqa=True,
    )
    torch.testing.assert_close(found.transpose(1, 2), expected, atol=2e-2, rtol=2e-2)


def test_blocks_that_cannot_be_compiled_score_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tf.LlamaForCausalLM(CONFIGS["llama"]()).save_pretrained(tmp_path)
    trainee = frozen(Base(name=str(tmp_path)), CPU)
    packed = trainee.packed
    (row,) = [each.row for each in pack([requests(0)], 512)]
    plain = packed.scores(row, 1)

    class Refusing(Compiler):
        def __call__(self, block: object, inputs: object) -> Callable[..., object]:
            raise RuntimeError("this operation is not known to me")

    packed._regions = Regions(trainee.model, Refusing("own"))
    torch._dynamo.reset()
    for a, b in zip(packed.scores(row, 1), plain, strict=True):
        torch.testing.assert_close(a, b)
    assert "scoring goes on uncompiled" in caplog.text


def test_little_is_not_worth_compiling_for_where_attention_is_our_own(tmp_path: Path) -> None:
    tf.LlamaForCausalLM(CONFIGS["llama"]()).save_pretrained(tmp_path)
    packed = frozen(Base(name=str(tmp_path)), CPU).packed
    assert packed.pays(1), "FlexAttention is slow uncompiled"
    packed._kernel = True
    assert not packed.pays(10**6)
    assert packed.pays(10**14)


def test_a_device_that_our_kernel_does_not_know_has_flex_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NotForThisDevice(Exception):
        """Triton's own errors are no RuntimeErrors."""

    def attend(*_: object) -> torch.Tensor:
        raise NotForThisDevice("out of resource: shared memory")

    def flex_attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, training: bool = False, **settings: Any
    ) -> Any:
        return flex_attention(q, k, v, **settings)

    monkeypatch.setattr(tree, "_attend", attend)
    monkeypatch.setattr(flex, "compile_friendly_flex_attention", flex_attend)
    config = tf.LlamaConfig(**{**SMALL, "hidden_size": 64})
    tf.LlamaForCausalLM(config).half().save_pretrained(tmp_path)
    trainee = frozen(Base(name=str(tmp_path)), CPU)
    trainee.model.half()
    packed = PackedModel(trainee.model, trainee.forward, None, CPU, flex=True)
    assert packed._tile is not None
    assert packed.refusal(1, 40) is None
    assert (packed._tile, packed._flex) == (None, True)
    assert packed.pays(1)
