"""One real run through the command line: what it writes, what it learns, what comes back from it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.record import Status, read_record
from tests.conftest import SMALL_DEMO

pytestmark = pytest.mark.slow


def events(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_every_file_that_its_folder_promises(trained: Path) -> None:
    folder = RunFolder(trained)
    for file in (
        folder.config,
        folder.plan,
        folder.record,
        folder.metrics,
        folder.samples,
        folder.data_report,
        folder.log,
    ):
        assert file.stat().st_size > 0, file
    assert list(folder.tensorboard.glob("events.*"))
    assert list(trained.glob("wandb/offline-run-*/run-*.wandb"))


def test_the_folder_is_found_by_the_trial_id(trained: Path) -> None:
    record = read_record(RunFolder(trained))
    assert trained.name.endswith(record.trial_id)


def test_the_loss_falls_and_the_best_checkpoint_is_the_objective(trained: Path) -> None:
    record = read_record(RunFolder(trained))
    losses = {event["step"]: event["eval/loss"] for event in events(trained) if "eval/loss" in event}
    assert len(losses) == 6  # the start and five looks
    assert losses[60] < losses[0] - 1
    best = min((step for step in losses if step > 0), key=losses.__getitem__)
    assert record.metrics["best/step"] == best
    assert record.objective == pytest.approx(losses[best], abs=1e-6)
    assert record.status is Status.completed


def test_the_logged_learning_rate_is_warmup_then_cosine(trained: Path) -> None:
    rates = [event["train/learning_rate"] for event in events(trained) if "train/learning_rate" in event]
    assert max(rates) == pytest.approx(2e-3, rel=0.05)
    assert rates[-1] < 4e-5


def test_the_plan_says_where_values_come_from_and_counts_the_steps(trained: Path) -> None:
    plan = json.loads((trained / "plan.json").read_text())
    assert plan["values"]["train.effective_batch_size"] == {"value": 16, "origin": "command line"}
    assert plan["values"]["train.learning_rate"]["origin"].startswith("model size class tiny")
    steps = plan["steps"]
    assert steps["total_steps"] == 60
    assert steps["steps_per_epoch"] == -(-steps["sequences"] // 16)
    assert plan["precision"]["reason"]


def test_the_terminal_names_the_result_and_where_to_look_next(trained: Path) -> None:
    shown = (trained / "terminal.txt").read_text()
    for words in (
        "16 per device x 1 accumulation x 1 device = 16",
        "completed",
        "sft compare",
        "tensorboard --logdir",
        "wandb sync",
    ):
        assert words in shown


def test_the_saved_model_reloads_and_chats_without_this_package(trained: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained / "model")
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2 + 2 ="}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert answer.shape[1] > prompt["input_ids"].shape[1]
    assert model.config._attn_implementation == "sdpa"
    assert model.generation_config.eos_token_id is not None


def test_the_saved_weights_are_those_of_the_best_checkpoint(trained: Path) -> None:
    record = read_record(RunFolder(trained))
    best = AutoModelForCausalLM.from_pretrained(trained / "checkpoints" / f"checkpoint-{record.metrics['best/step']}")
    saved = AutoModelForCausalLM.from_pretrained(trained / "model")
    for (name, left), right in zip(best.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(left, right), name


def test_checkpoints_of_a_completed_run_hold_weights_but_nothing_that_only_resuming_needs(trained: Path) -> None:
    (kept, *_) = sorted((trained / "checkpoints").glob("checkpoint-*"))
    names = {file.name for file in kept.iterdir()}
    assert "model.safetensors" in names and "trainer_state.json" in names
    assert not names & {"optimizer.pt", "scheduler.pt", "complete.json", "rng_state.pth"}


def test_an_evaluation_counts_the_tokens_up_to_its_own_step_however_rarely_training_is_logged(
    run_sft, tmp_path: Path
) -> None:
    counted = []
    for logging_steps in (1, 7):
        settings = ["train.max_steps=10", "train.eval_steps=5", "logger=none", f"train.logging_steps={logging_steps}"]
        assert run_sft(tmp_path, "train", *SMALL_DEMO, *settings, f"name=every{logging_steps}").returncode == 0
        (file,) = (tmp_path / "outputs" / f"every{logging_steps}").rglob("metrics.jsonl")
        events = [json.loads(line) for line in file.read_text().splitlines()]
        counted.append({event["step"]: event["tokens"] for event in events if "eval/loss" in event})
    assert counted[0] == counted[1] and 0 == counted[0][0] < counted[0][5] < counted[0][10]


def test_samples_hold_prompt_reference_and_answer(trained: Path) -> None:
    samples = [json.loads(line) for line in (trained / "samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in samples} >= {0, 60}
    assert samples[0]["prompt"][-1]["role"] == "user"
    assert samples[0]["reference"]
    assert samples[0]["exact"] in (True, False)


def test_the_same_command_returns_the_recorded_result_without_training(trained: Path, run_sft) -> None:
    home = trained.parent.parent.parent
    before = (trained / "record.json").read_bytes()
    done = run_sft(home, "train", *SMALL_DEMO, "train.max_steps=60", "train.effective_batch_size=16", "name=small")
    assert done.returncode == 0
    assert "completed" in done.stdout
    assert (trained / "record.json").read_bytes() == before


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_train_on_a_pretrained_folder(trained: Path, run_sft, tmp_path: Path, method: str) -> None:
    done = run_sft(
        tmp_path, "train", "model=hub", f"model.name={trained / 'model'}", f"peft={method}", *SMALL_DEMO,
        "train.max_steps=6", "train.learning_rate=1e-3", "logger=none",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = tmp_path.rglob("record.json")
    assert (record.parent / "model" / "adapter_model.safetensors").is_file()
    objective = read_record(RunFolder(record.parent)).objective
    assert objective is not None
    assert objective < 5


def test_data_files_named_on_the_command_line_are_trained_on(sft, tmp_path: Path) -> None:
    rows = [{"question": f"what is {a} + {b} ?", "answer": str(a + b)} for a in range(12) for b in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = sft(
        "train", "dataset=prompt_completion", "dataset.train_files=rows.jsonl", "dataset.columns.prompt=question",
        "dataset.columns.completion=answer", "dataset.max_length=64", "dataset.packing=bfd", "train.max_steps=4",
        "logger=none", "dataset.validation_fraction=0.2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = tmp_path.rglob("data_report.json")
    splits = json.loads(report.read_text())["splits"]
    assert splits["train"]["documents_per_sequence"] > 1
    assert splits["train"]["rows"] + splits["validation"]["rows"] == len(rows)


def test_a_test_file_is_scored_after_training(sft, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "reverse: a b"}, {"role": "assistant", "content": "b a"}]}
    for name in ("train", "validation", "test"):
        lines = [
            {**row, "messages": [{**row["messages"][0], "content": f"{name} {i}"}, row["messages"][1]]}
            for i in range(20)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = [f"dataset.{name}_files={name}.jsonl" for name in ("train", "validation", "test")]
    done = sft("train", "dataset=messages", *files, "dataset.max_length=64", "train.max_steps=3", "logger=none")
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = tmp_path.rglob("record.json")
    assert json.loads(record.read_text())["metrics"]["test/loss"] > 0


def test_training_inside_this_process_gives_the_same_result(trained: Path, sft, tmp_path: Path) -> None:
    done = sft(
        "train", *SMALL_DEMO, "train.max_steps=60", "train.effective_batch_size=16", "compute.isolate=false",
        "logger=none", "compute.threads=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = tmp_path.rglob("record.json")
    assert read_record(RunFolder(record.parent)).objective == pytest.approx(
        read_record(RunFolder(trained)).objective, abs=1e-4
    )


@pytest.mark.parametrize("command", [["train"], ["sweep", "sweep.check=false", "train.learning_rate=1e-3,2e-3"]])
def test_a_secret_typed_as_an_override_reaches_no_file_and_no_output(sft, tmp_path: Path, command: list[str]) -> None:
    canary = "hf_" + "c4n4ry" * 5
    batch = ["train.effective_batch_size=16"] * (command[0] == "sweep")
    done = sft(*command, *batch, *SMALL_DEMO, "train.max_steps=2", f"logger.wandb.tags=[{canary}]", HF_TOKEN=canary)
    assert done.returncode == 0, done.stdout + done.stderr
    assert canary not in done.stdout + done.stderr
    leaks = [file for file in tmp_path.rglob("*") if file.is_file() and canary.encode() in file.read_bytes()]
    assert leaks == []


def test_the_loss_per_answer_byte_is_the_same_nats_over_bytes_instead_of_tokens(trained: Path) -> None:
    metrics = read_record(RunFolder(trained)).metrics
    validation = json.loads((trained / "data_report.json").read_text())["splits"]["validation"]
    nats = metrics["eval/loss"] * validation["supervised_tokens"]
    assert metrics["eval/nats_per_byte"] == pytest.approx(nats / validation["answer_bytes"], rel=1e-6)


@pytest.mark.parametrize(("content", "told"), [("", "empty"), ('{"messages": [\n', "rows.jsonl")])
def test_an_error_of_the_worker_keeps_its_exit_code(sft, tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    done = sft("train", "dataset=messages", "dataset.train_files=rows.jsonl", "logger=none")
    assert done.returncode == 3, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_of_the_worker_is_told_once_and_whole_and_stands_in_the_log(sft, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": 1, "completion": "b"}\n' * 4)
    files = "dataset.train_files=rows.jsonl", "dataset.validation_files=rows.jsonl"
    done = sft("train", "dataset=prompt_completion", *files, "logger=none")
    advice = "Correct the data, or leave such rows out: dataset.rules.missing_column=drop"
    assert (done.stdout + done.stderr).count(advice) == 1
    assert done.stderr.startswith("sft train: train: 4 rows")
    (log,) = tmp_path.rglob("log.txt")
    assert log.read_text().count(advice) == 1


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.config.hidden_size=63"], "model.config: "),
        (["peft=lora", "peft.target_modules=nope"], "peft.target_modules=nope: "),
    ],
)
def test_what_only_the_model_can_refuse_is_still_one_line(sft, overrides: list[str], told: str) -> None:
    done = sft("train", *SMALL_DEMO, "train.max_steps=1", "logger=none", *overrides)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
