"""Secrets are recognised by name, shape or value; ordinary text is left alone."""

import pytest

from sft_experiments.secrets import MASK, is_secret_name, redact, redact_text

CANARY = "canary-7f3a9b1c"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", CANARY)
    monkeypatch.setenv("SHORT_TOKEN", "1")


@pytest.mark.parametrize(
    "text",
    [
        f"the server said: bad credential {CANARY}",
        "login with hf_abcdefghijklmnopqrstuvwxyzABCDEF failed",
        "https://user:pass-7f3a9b1c@host/repo.git",
        "train.extra.hub_token=secret-7f3a9b1c",
        "SFTConfig(hub_token='secret-7f3a9b1c', seed=1)",
        '{"wandb_api_key": "secret-7f3a9b1c"}',
        "WANDB_API_KEY=secret-7f3a9b1c sft train",
        "clone https://ghp_abcdefghijklmnopqrstuvwxyz0123456789@github.com/a/b",
    ],
)
def test_a_secret_in_text_is_masked(text: str) -> None:
    clean = redact_text(text)
    assert MASK in clean
    assert not any(secret in clean for secret in (CANARY, "hf_abc", "7f3a9b1c", "ghp_"))


@pytest.mark.parametrize(
    "text",
    [
        "train.learning_rate=2e-3 train.seed=1",
        "pad_token=<|endoftext|> eos_token='</s>' num_tokens=12",
        "12.3k tokens/s, mean_token_accuracy=0.5",
        "https://huggingface.co/org/model?x=1",
        "mail someone@example.org",
        "num_supervised_tokens: 100",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redact_text(text) == text


def test_a_config_keeps_its_shape_and_loses_its_secrets() -> None:
    config = {
        "train": {"extra": {"hub_token": "abc", "seed": 3}, "files": ["a.jsonl", f"https://{CANARY}/b"]},
        "logger": {"wandb": {"api_key": "xyz", "entity": None}},
        "tokenizer": {"pad_token": "<pad>"},
    }
    assert redact(config) == {
        "train": {"extra": {"hub_token": MASK, "seed": 3}, "files": ["a.jsonl", f"https://{MASK}/b"]},
        "logger": {"wandb": {"api_key": MASK, "entity": None}},
        "tokenizer": {"pad_token": "<pad>"},
    }


def test_masking_twice_changes_nothing() -> None:
    once = redact_text(f"hub_token=abcdef {CANARY} https://a:b@c/d")
    assert redact_text(once) == once


@pytest.mark.parametrize("name", ["HF_TOKEN", "hub_token", "WANDB_API_KEY", "AWS_SECRET", "db.password", "apikey"])
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["pad_token", "num_tokens", "tokens", "tokenizer", "keyboard", "eos_token", "token_ids"]
)
def test_names_that_only_look_secret(name: str) -> None:
    assert not is_secret_name(name)
