"""Passwords and tokens reach neither the ledger nor the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from runner_helpers import small_study, study_text

import paretune
from paretune.errors import UserErrors
from paretune.runner.ledger import Ledger
from paretune.study.secrets import BLOT, redacted
from paretune.study.yamlfile import parse_study

ARMS = "  - {method: lora, rank: 1, learning_rate: 5e-3}"
# Put together here, so that no scanner of repositories takes them for real
TOKEN = "hf_" + "abcdEFGH1234" * 3
SECRETS = {
    "a token of the hub": TOKEN,
    "in an address": f"https://someone:{TOKEN}@example.org/data.jsonl",
    "a password in an address": "https://someone:" + "letmein99" + "@example.org/data",
    "a signed address": "https://example.org/x?X-Amz-Signature=" + "0f" * 20 + "&a=b",
    "in a query": "https://example.org/x?a=b&token=" + "qwertyuiop",
    "a header": "Authorization: Bearer " + "zxcvbnm12345",
    "an option": "--api-key " + "zxcvbnm12345",
    "a key of a cloud": "AKIA" + "ABCDEFGHIJKLMNOP",
    "a token of git": "ghp_" + "A1b2C3d4E5" * 3,
}
PARTS = [TOKEN, "letmein99", "0f0f0f0f", "qwertyuiop", "zxcvbnm12345", "ABCDEFGHIJKLMNOP", "A1b2C3"]


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_blotted_out_and_the_rest_stays(name: str) -> None:
    text = redacted(f"before {SECRETS[name]} after")
    assert BLOT in text
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert not any(part in text for part in PARTS)


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/datasets/a/b?x=1",
        "paretune run study.yaml --out tokens",
        "meta-llama/Llama-3.2-1B",
        "lora-r16-lr0.001-s0-7f3dc95f",
        "sha256 " + "ab" * 32,
        "step 3: the loss is not a number",
        "someone@example.org",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("name", SECRETS)
def test_a_study_file_with_a_secret_is_refused_without_repeating_it(
    name: str, tmp_path: Path
) -> None:
    text = study_text(tmp_path).replace("path: ", f'text: "{SECRETS[name]}", path: ')
    with pytest.raises(UserErrors, match="looks like a password or token") as raised:
        parse_study(text, "small.yaml")
    assert "target.data.text" in str(raised.value)
    assert not any(part in str(raised.value) for part in PARTS)


def test_none_reaches_the_ledger_or_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the environment, on the command line, and in the reason of a failure."""
    value = "correct horse battery staple"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MY_DATABASE_PASSWORD", value)
    command = f"paretune run https://someone:{TOKEN}@example.org/s.yaml --token {value!r}"
    study = small_study(tmp_path, arms=ARMS, at="4ba")
    folder = paretune.run(study, tmp_path / "study", report=False, command=command)
    ledger = Ledger.open(folder)
    arm = next(iter(ledger.arms()))
    ledger.set_status(arm, state="diverged", diverged_at=1, reason=f"401 for {TOKEN} ({value})")
    ledger.note("other", "failed", reason=f"GET https://x/?token={TOKEN}", list=[[TOKEN]])
    page = paretune.write_report(folder)
    (folder / "card.md").write_text(paretune.card(folder, arm))
    (folder / "comparison.html").write_bytes(
        paretune.compare([folder, "paper:code_cpt"], tmp_path / "page.html").read_bytes()
    )
    assert "paretune run" in page.read_text()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        content = path.read_bytes()
        assert TOKEN.encode() not in content, path
        assert value.encode() not in content, path
