"""Requests to write: prompts with the harness's stop strings, lengths and ways of choosing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paretune.errors import UserError
from paretune.evaluate.decode.request import GenerationRequest
from paretune.evaluate.generate import generate
from paretune.evaluate.items import ArmModel
from paretune.evaluate.tasks.encode import Encoder

# Where a task does not say how long an answer may be: the hf backend's own
MAX_GEN_TOKS = 256
_KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}


class Writing:
    """What the tasks want written; all of it goes to the engine together."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._instances: list[Any] = []
        self._requests: list[GenerationRequest] = []

    def add(self, instances: Sequence[Any], where: str) -> int:
        """Take in requests of one task; returns how many prompts had to be cut from the left.

        Raises:
            UserError: generation settings that the engine does not know.
        """
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        cut = 0
        end = self._encoder.tokenizer.decode(self._encoder.tokenizer.eos_token_id)
        for instance in instances:
            prompt, settings = instance.args
            asked = dict(normalize_gen_kwargs(settings, MAX_GEN_TOKS))
            unknown = sorted(set(asked) - _KNOWN)
            if unknown:
                raise UserError(
                    f"{where}: the task generates with {', '.join(unknown)}, which Paretune does "
                    f"not have; it has {', '.join(sorted(_KNOWN))}"
                )
            longest = int(asked["max_gen_toks"])
            (tokens,), shortened = self._encoder.prompts([prompt], longest)
            cut += shortened
            samples = bool(asked.get("do_sample"))
            self._instances.append(instance)
            self._requests.append(
                GenerationRequest(
                    tokens,
                    longest,
                    stop=tuple(handle_stop_sequences(asked.get("until"), eos=end)),
                    temperature=float(asked.get("temperature", 1.0)) if samples else 0.0,
                    top_p=float(asked.get("top_p", 1.0)) if samples else 1.0,
                    samples=instance.repeats,
                )
            )
        return cut

    def answers(self, arms: ArmModel) -> list[dict[int, list[str] | None]]:
        """For each arm the texts it wrote, by the id of the instance that asked; None for one in
        which logits were not numbers.
        """
        if not self._requests:
            return [{} for _ in range(arms.count)]
        written = generate(
            arms,
            self._requests,
            self._encoder.tokenizer,
            end_of_text=self._encoder.end_of_text,
        )
        return [
            {
                id(instance): None
                if any(answer.finish == "broken" for answer in answers)
                else [answer.text for answer in answers]
                for instance, answers in zip(self._instances, of_arm, strict=True)
            }
            for of_arm in written
        ]
