"""Pretrain the pocket base: a tiny Llama-architecture causal LM that learns English from books.

    python scripts/pretrain_pocket.py --corpus train.jsonl.gz more.jsonl.gz \
        --heldout validation.jsonl.gz --out paretune/pocket/base --seconds 150

Each corpus file holds one JSON object a line with a `text` field, gzipped or plain. The script
trains a byte-level BPE tokenizer (or takes one with `--tokenizer`), then the model, and saves both
to `--out`. It ends by printing the bits per byte of the saved weights on the held-out text.
"""

import argparse
import gzip
import json
import math
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"  # id 0: begins and ends every document, and pads
VOCABULARY = 2048
CONTEXT = 512
# Words with their leading space, single digits, punctuation, line breaks, other white space.
PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
SENTENCE_AT_LINE_END = re.compile(r"[.!?][\"'”’)]*[ ]*\n\s*")


def read_texts(paths: list[Path]) -> list[str]:
    """The `text` field of every line of the given JSON-lines files."""
    texts = []
    for path in paths:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).splitlines()
        texts += [json.loads(line)["text"] for line in lines]
    return texts


def split_documents(text: str, generator: random.Random) -> Iterator[str]:
    """Cut a book, where a sentence ends a line, into documents of very different lengths."""
    start = 0
    while start < len(text):
        wanted = start + int(2000 * 8 ** generator.random())  # 2,000 to 16,000 characters
        cut = SENTENCE_AT_LINE_END.search(text, wanted)
        end = cut.end() if cut else len(text)
        if document := text[start:end].strip():
            yield document
        start = end


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that can write any text, splits numbers into digits and adds nothing."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode_stream(
    tokenizer: PreTrainedTokenizerFast, documents: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """All documents as one stream `END doc END doc ... END`, and where each document's END is."""
    pieces, starts, position = [], [], 0
    for encoding in tokenizer.backend_tokenizer.encode_batch_fast(documents):
        pieces.append(torch.tensor([0, *encoding.ids], dtype=torch.int16))
        starts.append(position)
        position += len(pieces[-1])
    return torch.cat([*pieces, torch.zeros(1, dtype=torch.int16)]), torch.tensor(starts)


def build_model() -> LlamaForCausalLM:
    """About 2.16 million parameters, 0.39 million of them in the tied embedding."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def mean_loss(model: LlamaForCausalLM, block_BS: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of token blocks."""
    # The layers are called with no mask: attention then takes its fast causal kernel.
    body, inputs_BS = model.model, block_BS[:, :-1]
    hidden_BSD = body.embed_tokens(inputs_BS)
    positions = torch.arange(inputs_BS.shape[1], device=block_BS.device)[None]
    rotation = body.rotary_emb(hidden_BSD, position_ids=positions)
    for layer in body.layers:
        hidden_BSD = layer(hidden_BSD, attention_mask=None, position_embeddings=rotation)
    logits_BSV = model.lm_head(body.norm(hidden_BSD))
    return F.cross_entropy(logits_BSV.float().flatten(0, 1), block_BS[:, 1:].flatten())


def draw_blocks(stream: torch.Tensor, starts: torch.Tensor, count: int) -> torch.Tensor:
    """Random blocks of the stream; every fourth begins with a document's END."""
    first = torch.randint(len(stream) - CONTEXT, (count,), device=stream.device)
    chosen = starts[torch.randint(len(starts), (count // 4,), device=stream.device)]
    first[: count // 4] = chosen.clamp(max=len(stream) - CONTEXT - 1)
    offsets = torch.arange(CONTEXT + 1, device=stream.device)
    return stream[first[:, None] + offsets].long()


def rate_factor(progress: float) -> float:
    """Warm-up over 2% of the run, full rate to 40%, then a straight line to zero."""
    return min(1.0, progress / 0.02 + 0.01, max(0.0, (1 - progress) / 0.6))


def train(
    model: LlamaForCausalLM, stream: torch.Tensor, starts: torch.Tensor, args: argparse.Namespace
) -> None:
    """Train in place until `--seconds` or `--tokens` is used up, whichever comes first."""
    device = stream.device
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=on_gpu)
    loss_of = torch.compile(mean_loss, dynamic=False) if on_gpu else mean_loss

    def backward() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(model, draw_blocks(stream, starts, args.batch))
        loss.backward()
        return loss.detach()

    began = time.monotonic()
    backward().item()  # compiles; not counted as training
    optimizer.zero_grad()
    print(f"compiled in {time.monotonic() - began:.1f} s", flush=True)

    began, seen, step, progress = time.monotonic(), 0, 0, 0.0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate_factor(progress)
        loss = backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, seen = step + 1, seen + args.batch * CONTEXT
        if step % 500 == 0:  # waits for the device, so the clock below is honest
            print(f"step {step}  {seen / 1e6:.0f} M tokens  loss {loss.item():.4f}", flush=True)
        elapsed = time.monotonic() - began
        progress = max(elapsed / args.seconds, seen / args.tokens)
    loss.item()
    elapsed = time.monotonic() - began
    passes, speed = seen / len(stream), seen / elapsed
    print(f"trained on {seen:,} tokens ({passes:.1f} passes) in {step:,} steps and {elapsed:.1f} s")
    print(f"{speed:,.0f} tokens/s")


@torch.inference_mode()
def bits_per_byte(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> float:
    """Bits to encode the texts, read in windows that do not overlap, over their UTF-8 bytes."""
    bits, device = 0.0, model.device
    for text in texts:
        ids = torch.tensor([0, *tokenizer.encode(text, add_special_tokens=False)], device=device)
        whole = (len(ids) - 1) // CONTEXT * CONTEXT
        windows = ids[: whole + 1].unfold(0, CONTEXT + 1, CONTEXT) if whole else ids.new_empty(0)
        for block in [*windows.split(32), ids[whole:][None]]:
            if block.shape[-1] > 1:
                tokens = block.numel() - len(block)
                bits += mean_loss(model, block).item() * tokens / math.log(2)
    return bits / sum(len(text.encode()) for text in texts)


def parse_arguments() -> argparse.Namespace:
    """What to read, where to write and how long to train."""
    parser = argparse.ArgumentParser(description="Pretrain the pocket base.")
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--heldout", type=Path, required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="reuse this tokenizer")
    parser.add_argument("--seconds", type=float, default=math.inf, help="training time")
    parser.add_argument("--tokens", type=float, default=math.inf, help="training tokens")
    parser.add_argument("--batch", type=int, default=128, help="blocks of 512 tokens a step")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if math.isinf(args.seconds) and math.isinf(args.tokens):
        parser.error("give --seconds, --tokens or both")
    return args


def main() -> None:
    """Read, tokenise, train, save and score."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator, began = random.Random(args.seed), time.monotonic()
    documents = [d for t in read_texts(args.corpus) for d in split_documents(t, generator)]
    if args.tokenizer:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.tokenizer)
    else:
        tokenizer = train_tokenizer(documents)
    tokenizer.save_pretrained(args.out)
    stream, starts = (tensor.to(device) for tensor in encode_stream(tokenizer, documents))
    model = build_model().to(device)
    print(f"{len(documents):,} documents, {len(stream):,} tokens, on {device}")
    print(f"{model.num_parameters():,} parameters, ready in {time.monotonic() - began:.1f} s")
    train(model, stream, starts, args)
    model.to(torch.bfloat16).save_pretrained(args.out)
    model.float().eval()  # what was saved: rounded to bfloat16
    heldout = bits_per_byte(model, tokenizer, read_texts([args.heldout]))
    print(f"held-out text: {heldout:.4f} bits per byte")
    start = torch.zeros(1, 1, dtype=torch.long, device=device)
    sample = model.generate(start, do_sample=True, temperature=0.8, max_new_tokens=200)
    print(f"a sample:\n{tokenizer.decode(sample[0], skip_special_tokens=True)}")


if __name__ == "__main__":
    main()
