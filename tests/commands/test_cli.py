"""Mistakes at the shell are answered in one line that names the key, the value and what is allowed."""

import pytest


def test_help_lists_every_command(sft) -> None:
    shown = sft("--help").stdout
    for command in ("train", "sweep", "compare", "report", "best"):
        assert f"  {command} " in shown


def test_no_arguments_show_the_help(sft) -> None:
    assert sft().stdout == sft("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian"], "no command 'trian'; did you mean 'train'?"),
        (["train", "train.lerning_rate=1"], "train.lerning_rate: no such key; did you mean 'train.learning_rate'"),
        (["train", "train.learning_rate=abc"], "train.learning_rate=abc: must be of type float"),
        (["train", "sweep.rungs=0.5"], "sweep.rungs: must be a list: 'sweep.rungs=[...]'"),
        (["train", "train.seed=1.5"], "train.seed=1.5: must be of type integer"),
        (["train", "model=qwen3_9b"], "model=qwen3_9b: no such option; did you mean 'qwen3_8b'"),
        (["train", "train.precision=fp64"], "train.precision: Invalid value 'fp64', expected one of [auto, fp32"),
        (["train", "model=hub"], "model.name is required"),
        (["train", "+learning_rate=1"], "learning_rate: no such key; today: train.learning_rate"),
        (["train", "train.effective_batch_size=7", "train.per_device_train_batch_size=2"], "nearest possible: 6 or 8"),
        (["train", "train.extra.neftune_noise_alpha=5"], "write +train.extra.neftune_noise_alpha=..."),
        (["train", "+train.extra.bf16=true"], "train.extra.bf16: set train.precision instead"),
        (["train", "+train.extra.neftune_noise=5"], "did you mean 'neftune_noise_alpha'"),
        (["train", "train.learning_rate=nan"], "train.learning_rate=nan: must be a number above 0"),
        (["train", "train.num_train_epochs=-1"], "train.num_train_epochs=-1.0: must be a number above 0"),
        (["train", "compute=gpu", "compute.num_devices=2"], "compute"),
        (["train", "compute.num_devices=2", "compute.fsdp=true"], "compute.fsdp=true needs CUDA devices"),
        (["sweep", "train.learning_rate=1e-3,oops"], "train.learning_rate=oops: must be of type float"),
        (["sweep", "sweep=nothing"], "sweep=nothing: no such option"),
        (["compare", "nowhere"], "nowhere"),
        (["train", "model.name=o/lr=1/model"], "needs quotes of its own: \"model.name='o/lr=1/model'\""),
        (["plan", "learning_rate"], "learning_rate: settings are given as key=value"),
        (["plan", "train.betas=[0.9"], "train.betas=[0.9: cannot be read"),
        (["train", "+monitor.rules.foo.policy=warn"], "monitor.rules.foo: no such rule; known: not_finite"),
        (["train", "model.name=gpt2"], "it is read with model.source=pretrained (model=<Hub id or folder>)"),
        (["train", "dataset.train_files=a.jsonl"], "with dataset.source=demo; it is read with dataset.source=files or"),
        (
            ["train", "logger=tensorboard", "logger.wandb.project=x"],
            "it is read with logger.trackers=wandb",
        ),
        (["sweep", "sweep.num_trials=4"], "sweep.num_trials: nothing reads it with sweep.search=grid"),
        (["sweep", "sweep.rungs=[0.5]"], "sweep.rungs: nothing reads it with sweep.early_stopping=null"),
        (["train", "hydra.run.dir=x"], "hydra.run.dir=x: nothing reads it here"),
        (["plan", "hydra.job.chdir=true"], "hydra.job.chdir=true: nothing reads it here"),
        (["sweep", "hydra/sweeper=basic"], "hydra/sweeper=basic: nothing reads it here"),
        (["sweep", "hydra.sweep.subdir=x"], "hydra.sweep.subdir=x: nothing reads it here"),
        (["train", "hydra.sweep.dir=x"], "hydra.sweep.dir=x: has no effect in a single run"),
        (["train", "hydra/launcher=basic"], "hydra/launcher=basic: has no effect in a single run"),
        (["sweep", "sweep.num_seeds=3", "train.seed=1,2"], "sweep.num_seeds=3: the seeds are typed too"),
        (["sweep", "train.weight_decay=-1"], "sft sweep: train.weight_decay=-1.0: must be at least 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_and_no_traceback(sft, arguments: list[str], told: str) -> None:
    done = sft(*arguments)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_all_contradictions_are_shown_at_once(sft) -> None:
    done = sft("train", "train.learning_rate=-1", "train.weight_decay=-2", "train.save_total_limit=0")
    assert done.returncode == 2
    for key in ("train.learning_rate=-1", "train.weight_decay=-2", "train.save_total_limit=0"):
        assert key in done.stderr


def test_every_cell_of_a_sweep_is_checked_before_the_first_one_starts(sft, tmp_path) -> None:
    done = sft("sweep", "train.effective_batch_size=8,9", "train.per_device_train_batch_size=2", "compute=cpu")
    assert done.returncode == 2
    cell, said = (
        "train.effective_batch_size=9 train.learning_rate=0.002",
        "train.effective_batch_size=9 is not a multiple",
    )
    assert f"\n{cell}: {said} of 2" in done.stderr
    assert not list(tmp_path.rglob("record.json"))


def test_hydra_flags_behave_as_hydra_users_expect(sft) -> None:
    assert "learning_rate: 0.002" in sft("train", "--cfg", "job", "--resolve").stdout
    assert (
        "model: tiny" in sft("train", "--info", "defaults").stdout or sft("train", "--info", "defaults").returncode == 0
    )
    assert "group=option" in sft("train", "--help").stdout


def test_python_m_and_console_script_are_the_same_program() -> None:
    from importlib.metadata import entry_points

    from sft_experiments import __main__

    (script,) = [entry for entry in entry_points(group="console_scripts") if entry.name == "sft"]
    assert script.load() is __main__.main  # type: ignore[attr-defined]  # it is there for python -m


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "--from=nowhere"], "nowhere is not a run folder"),
        (["train", "--from", "nowhere", "-m"], "-m: --from takes only key=value changes"),
        (["train", "sweep=lr_x_batch"], "sweep=lr_x_batch: has no effect in a single run"),
        (["train", "sweep.num_seeds=3"], "sweep.num_seeds=3: has no effect in a single run"),
        (["sweep", "hydra/launcher=submitit_slurm"], "needs pip install 'sft-experiments[slurm]'"),
        (["cache", "--clea"], "unrecognized arguments: --clea"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_would_be_ignored_or_guessed_is_refused(sft, arguments: list[str], told: str) -> None:
    done = sft(*arguments)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refused_command_leaves_nothing_behind(sft, tmp_path) -> None:
    sft("train", "model=hub", "model.name=../nowhere/model-7B", "compute=gpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_folder_that_cannot_be_made_is_named(sft, tmp_path, command: str) -> None:
    (tmp_path / "file").write_text("")
    done = sft(command, "output_dir=file")
    assert done.returncode == 6
    assert "file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_folder_without_weights_is_refused_before_anything_is_prepared(sft, tmp_path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 9}')
    (tmp_path / "model" / "training_args.bin").write_bytes(b"")
    done = sft("train", "model=hub", "model.name=model")
    assert done.returncode == 4
    assert "model.name=model has no weights" in done.stderr
    assert not (tmp_path / "outputs").exists()
