"""Over two ranks the losses, token counts and the stop on divergence are those of one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig
from sft_experiments.errors import SftError
from sft_experiments.training.attention import PACKED
from sft_experiments.training.trainer import ExperimentTrainer

folder, size = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)


def run(padding_free, poison, evaluate_first):
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1, "pad_token_id": 0}
    config = LlamaConfig(vocab_size=320, hidden_size=32, intermediate_size=32, **heads)
    config._attn_implementation = PACKED
    model = LlamaForCausalLM(config)
    rows = json.load(open(folder + "/rows.json"))
    if poison:  # in one row, so on one rank
        rows["train"]["input_ids"][3][0] = 319
        with torch.no_grad():
            model.model.embed_tokens.weight[319] = torch.nan
    args = SFTConfig(
        output_dir=folder, use_cpu=True, bf16=False, max_length=None if padding_free else 512,
        padding_free=padding_free, activation_checkpointing=False, per_device_train_batch_size=size,
        per_device_eval_batch_size=size, max_steps=3, learning_rate=1e-2, lr_scheduler_type="constant",
        train_sampling_strategy="sequential", logging_steps=3, logging_nan_inf_filter=False, report_to="none",
        save_strategy="no", disable_tqdm=True, dataset_kwargs={"skip_prepare_dataset": True},
    )
    train, validation = Dataset.from_dict(rows["train"]), Dataset.from_dict(rows["eval"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder + "/tokenizer")
    trainer = ExperimentTrainer(
        model=model, args=args, train_dataset=train, eval_dataset=validation, processing_class=tokenizer
    )
    if evaluate_first:
        trainer.evaluate()
    try:
        trainer.train()
    except SftError as failure:
        return trainer.args, {"failed": str(failure)}
    event = next(event for event in trainer.state.log_history if "loss" in event)
    return trainer.args, trainer.evaluate() | event


cases = {
    "padded": (False, False, False),
    "padding_free": (True, False, False),
    "poisoned": (False, True, False),
    "evaluated first": (False, False, True),
}
results = {name: run(*case) for name, case in cases.items()}
args = results["padded"][0]
with open(f"{folder}/result-{args.world_size}-{args.process_index}.json", "w") as file:
    json.dump({name: result for name, (_, result) in results.items()}, file)
"""


def _run(folder: Path, ranks: int, size: int) -> list[dict[str, dict[str, Any]]]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, str(script), str(folder), str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd()), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    results = sorted(folder.glob(f"result-{ranks}-*.json"))
    assert len(results) == ranks, done.stderr[-2000:]
    return [json.loads(path.read_text()) for path in results]


def test_two_ranks_report_and_stop_as_one(tmp_path: Path, tiny_rows: Any, tiny_tokenizer: Any) -> None:
    # 13 rows: the last batch over two ranks is filled up with rows that must not count twice
    rows = {"train": tiny_rows(24).to_dict(), "eval": tiny_rows(13, seed=7).to_dict()}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    [one], two = _run(tmp_path, 1, 8), _run(tmp_path, 2, 4)
    for case in ("padded", "padding_free"):
        for key in ("eval_loss", "eval_mean_token_accuracy", "loss", "grad_norm", "mean_token_accuracy"):
            assert two[0][case][key] == pytest.approx(one[case][key], abs=1e-5), (case, key)
        for key in ("eval_num_supervised_tokens", "num_tokens", "num_supervised_tokens"):
            assert two[0][case][key] == one[case][key], (case, key)
    assert all("diverged at step 1" in rank["poisoned"]["failed"] for rank in (one, *two))
    # upstream would train on with gradients of one rank each
    assert all("evaluate() before train()" in rank["evaluated first"]["failed"] for rank in two)
