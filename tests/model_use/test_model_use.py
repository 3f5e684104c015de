"""Evaluate, chat with and export real, small trained runs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft_experiments.errors import RunFolderError
from sft_experiments.model_use.chat import chat
from sft_experiments.model_use.evaluate import evaluate_run
from sft_experiments.model_use.export import export_run
from sft_experiments.model_use.saved import load_trained
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.record import read_record
from tests.results.sweep_factory import write_run

PROMPT = [{"role": "user", "content": "largest of 7 4 1"}]


ON_BF16 = pytest.param("adapter_on_bf16", marks=pytest.mark.slow)
OF_BF16 = 1e-4  # relative: padded and packed rows round differently


@pytest.mark.parametrize("kind", ["trained", "adapter", ON_BF16])
def test_evaluating_on_its_own_data_gives_the_recorded_objective(kind: str, request: pytest.FixtureRequest) -> None:
    folder: RunFolder = request.getfixturevalue(kind)
    record = read_record(folder)
    metrics, samples = evaluate_run(folder.path)
    relative = OF_BF16 if kind == "adapter_on_bf16" else 0.0
    assert metrics["eval/loss"] == pytest.approx(record.objective, rel=relative, abs=1e-6)
    assert metrics["eval/exact_match"] == record.metrics["eval/exact_match"]
    assert len(samples) == 2


def test_evaluating_on_another_file_needs_no_training_rows(trained: RunFolder, messages_file: Path) -> None:
    metrics, samples = evaluate_run(
        trained.path, ["dataset=messages", f"dataset.validation_files=[{messages_file}]", "dataset.max_length=64"]
    )
    own, _ = evaluate_run(trained.path)
    assert metrics["eval/loss"] != own["eval/loss"]
    assert [sample.reference for sample in samples] == ["9", "e"]


def test_evaluating_writes_nothing_into_the_run(trained: RunFolder) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.path.rglob("*") if path.is_file()}
    evaluate_run(trained.path)
    assert {path: path.stat().st_mtime_ns for path in trained.path.rglob("*") if path.is_file()} == before


def test_a_chat_keeps_the_conversation_until_it_is_reset(
    trained: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["sort: 3 2 1", "and again", "/reset", "hello", "/exit"])
    seen: list[int] = []
    model = load_trained(trained)
    from sft_experiments.model_use import chat as module

    original = module.reply

    def reply(trained: object, messages: list[dict[str, str]], *rest: object) -> str:
        seen.append(len(messages))
        return original(trained, messages, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "reply", reply)
    chat(model, system="be brief", max_new_tokens=4, read=lambda _prompt: next(lines))
    assert seen == [2, 4, 2]  # the system turn, then the turns so far
    assert "a new conversation" in capsys.readouterr().out


def test_leaving_with_the_end_of_input_is_no_error(trained: RunFolder) -> None:
    def end(_prompt: str) -> str:
        raise EOFError

    chat(load_trained(trained), read=end)


def test_an_export_loads_with_transformers_alone_and_answers_the_same(trained: RunFolder, tmp_path: Path) -> None:
    out = export_run(trained, tmp_path / "model")
    assert torch.equal(_logits(out), _logits(trained.model))
    card = (out / "README.md").read_text(encoding="utf-8")
    for words in ("pipeline_tag", "eval/loss", " rows, ", "train.max_steps", "sft train"):
        assert words in card
    assert (out / "training_report.html").is_file()
    assert not (out / "training_args.bin").exists()


@pytest.mark.parametrize("kind", ["adapter", ON_BF16])
def test_an_adapter_is_exported_merged(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    adapter: RunFolder = request.getfixturevalue(kind)
    out = export_run(adapter, tmp_path / "model")
    assert not (out / "adapter_config.json").exists()
    merged, own = AutoModelForCausalLM.from_pretrained(out), load_trained(adapter, device="cpu")
    ids = own.tokenizer.apply_chat_template(PROMPT, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, own.model(ids).logits, atol=1e-4, rtol=1e-4)
        own.model.disable_adapter_layers()
        assert (merged(ids).logits - own.model(ids).logits).abs().max() > 0.01  # the adapter did something
    assert {one.dtype for one in load_file(out / "model.safetensors").values()} == {torch.float32}  # merged in it too


def test_an_export_never_mixes_with_what_is_there(trained: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(RunFolderError, match="not empty"):
        export_run(trained, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_without_weights_says_how_to_get_them(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 1e-3, 8, 0.5)
    with pytest.raises(RunFolderError, match="sft train --from"):
        load_trained(folder)


def _logits(path: Path) -> torch.Tensor:
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    ids = tokenizer.apply_chat_template(PROMPT, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        logits: torch.Tensor = model(ids).logits
    return logits
