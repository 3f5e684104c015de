"""Every benchmark runs, at toy size: a peer whose arguments were renamed, or a gate that fails, is noticed here."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    checkpoints,
    data_preparation,
    gpu_parts,
    gpu_product,
    gpu_suite,
    grid,
    halving,
    loss_and_attention,
    plain_trl,
    run_all,
    side_by_side,
    start_up,
    training_step,
    trial_start,
)
from benchmarks.gpu_idle import covered
from benchmarks.gpu_table import markdown
from benchmarks.processes import python, run, sft
from benchmarks.world import (
    Job,
    World,
    build_world,
    check_same_losses,
    our_losses,
    our_run,
    peer_arguments,
    peer_losses,
    trl_run,
)
from sft_experiments.data.sources import build_demo_tokenizer
from sft_experiments.launch.start import WarmStarter

pytestmark = pytest.mark.slow
JOB = Job(steps=2, batch=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"), "short", rows=40, validation_rows=8)


@pytest.fixture(scope="module")
def our_output(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ours")
    run(our_run(world, JOB, root / "out"), root, **world.environment)
    return root / "out"


def script(world: World, output: Path, job: Job = JOB, **changes: object) -> None:
    files = (str(world.model), str(world.data), str(output))
    plain_trl.train(*files, changes=changes, steps=job.steps, batch=job.batch, learning_rate=job.learning_rate)


def test_ours_and_a_plain_trl_script_train_the_same_job(world: World, our_output: Path, tmp_path: Path) -> None:
    script(world, tmp_path / "out")
    (ours,) = our_losses(our_output).values()
    assert check_same_losses(ours, peer_losses(tmp_path / "out")) < 1e-5


def test_a_different_loss_fails_the_gate() -> None:
    with pytest.raises(AssertionError):
        check_same_losses([1.0, 2.0], [1.0, 2.1])


def test_the_command_line_of_trl_takes_the_job(world: World, tmp_path: Path) -> None:
    from trl.scripts.sft import make_parser

    arguments = [str(argument) for argument in trl_run(world, JOB, tmp_path)[2:]]
    script_arguments, training, model, _ = make_parser().parse_args_and_config(arguments)
    assert (
        training.max_steps == JOB.steps
        and training.assistant_only_loss is peer_arguments(JOB, tmp_path)["assistant_only_loss"]
    )
    assert (script_arguments.dataset_name, model.model_name_or_path) == (str(world.data), str(world.model))


def test_a_command_counts_the_seconds_of_what_it_leaves_behind(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'sum(i * i for i in range(6_000_000))'])"
    cpu, _ = run(python("-c", code), tmp_path)
    assert cpu > 0.2


def test_a_failing_command_shows_its_output(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="the reason"):
        run(python("-c", "raise ValueError('the reason')"), tmp_path)


def test_start_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = {name: entry for name, entry in start_up.COMMANDS.items() if name.startswith("sft")}
    monkeypatch.setattr(start_up, "COMMANDS", commands | {start_up.PEER: (sft("--help"), "sweep", None)})
    monkeypatch.setattr("sys.argv", ["start_up", "--repeats", "1", "--results", str(tmp_path)])
    start_up.main()
    assert list(run_all.start_up(json.loads((tmp_path / "start_up.json").read_text())))


def test_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training_step.SIZES, "0.6M", (*training_step.SIZES["0.6M"][:-1], 512))
    names = ["ours, packed, batch 2", "TRL, packed, batch 2"]
    case = training_step.run_case("0.6M", False, 256, 1, names)
    assert case["times_same_settings"] > 0


def test_data_preparation(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    data_preparation.write_rows(file, 60)
    tokenizer = build_demo_tokenizer()
    for packs in (False, True):
        assert data_preparation.run_case(file, file, tokenizer, tmp_path, packs, 1)["times"]


def test_a_sweep_of_two_at_once_trains_the_cells_of_the_peers(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "LEARNING_RATES", (JOB.learning_rate, JOB.learning_rate * 2))
    monkeypatch.setattr(grid, "BATCHES", (JOB.batch,))
    cpu, wall = side_by_side.our_trials(world, JOB, tmp_path / "ours", 2, 1)
    assert cpu > 0 and wall > 0
    for cell in grid.cells(JOB):
        script(world, tmp_path / "peer" / "out" / f"{cell.learning_rate}-{cell.batch}", cell)
    assert grid.check_cells(JOB, tmp_path / "ours", tmp_path / "peer") < 1e-5


def test_hydras_launchers_take_the_job(world: World, tmp_path: Path) -> None:
    settings = [f"model={world.model}", f"data={world.data}", f"output={tmp_path}", "steps=2", "device=cpu"]
    run(python("-m", "benchmarks.hydra_trl", "--cfg", "job", *settings), tmp_path)
    assert "steps: 2" in (tmp_path / "output-0.txt").read_text()


def test_checkpoints(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(steps=5, batch=2)
    meter = checkpoints.Meter(tmp_path / "trl")
    script(world, tmp_path / "trl", job, eval_steps=1, save_steps=1, **checkpoints.BEST)
    assert meter.bytes() > 5 * 3 * 2**20  # five checkpoints of a model of 2.4 MB with its two moments
    root = tmp_path / "ours"
    few = "checkpoints.LEARNING_RATES, checkpoints.BATCHES = (1e-3,), (2, 4)"
    child = f"checkpoints.run_child({checkpoints.OURS!r}, {str(world.root)!r}, '5', {str(root)!r})"
    run(python("-c", f"from benchmarks import checkpoints; {few}; {child}"), tmp_path / "log", **world.environment)
    result = json.loads(Path(f"{root}.json").read_text())
    assert result["saves"] == 2 * checkpoints.LOOKS and result["most"] >= result["left"] > 0


def test_trial_start() -> None:
    WarmStarter().prepare(threads=1)
    start = trial_start.start_by("forkserver")
    start()  # waits for the imports of the server
    cpu, _ = start()
    assert 0 < cpu < trial_start.TARGET_SECONDS * 5  # on a busy machine
    assert len(trial_start._probes) == 1


def test_the_kernels_alone() -> None:
    import torch

    for case in (
        loss_and_attention.loss_head_case(16, 64, torch.float32, 1, positions=24),
        loss_and_attention.attention_case(64, torch.float32, 1),
    ):
        assert all(run["loss_error"] < 1e-4 for run in case.values() if isinstance(run, dict))


def toy_suite(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str
) -> Any:
    """One toy model through these parts; the result, after the table was printed."""
    monkeypatch.setattr(gpu_parts, "TOYS", {"toy LoRA": gpu_parts.TOYS["toy LoRA"]})
    monkeypatch.setattr(gpu_parts, "METHODS", {"LoRA": gpu_parts.METHODS["LoRA"]})
    monkeypatch.setattr("sys.argv", ["gpu_suite", "--toy", "--results", str(folder), *arguments])
    gpu_suite.main()
    assert "toy run, not a result" in capsys.readouterr().out
    return json.loads((folder / "gpu_suite_toy.json").read_text())


def test_the_gpu_suite_trains_what_trl_trains_by_the_command_that_users_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = toy_suite(monkeypatch, capsys, tmp_path, "--parts", "kernels", "sizes", "idle")
    toy = result["sizes"]["toy LoRA"]
    ours, peer = toy["contenders"][gpu_parts.OURS], toy["contenders"][gpu_parts.SAME]
    assert ours["tokens"] == peer["tokens"] and toy["loss_difference"] < 1e-3
    assert toy["gate"] == "passed" and toy["times_best_trl"] > 0
    assert ours["attention"] == "sft_packed" and ours["versions"]["trl"] and ours["planned_gib"] > 0
    assert result["idle"][gpu_parts.OURS]["waits_per_step"] and result["software"]["flash-attn"]


def test_the_gpu_suite_sweeps_a_pretrained_model_and_uses_all_cards(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = toy_suite(
        monkeypatch, capsys, tmp_path, "--parts", "model", "cards", "--model", str(world.model), "--seconds", "900"
    )
    assert [len(cell["axes"]) for cell in result["model"]["LoRA"]["cells"]] == [2, 2, 2, 2]
    assert all(cell["tokens_per_second"] > 0 for cell in result["model"]["LoRA"]["cells"])
    assert result["cards"]["one on each card"]["concurrent_trials"] == 2
    assert result["cards"]["one trial on two"]["batch"]["num_devices"] == 2


def test_the_gpu_suite_ends_in_time(tmp_path: Path) -> None:
    suite = gpu_parts.Suite(toy=True, root=tmp_path, budget=gpu_parts.Budget(1))
    for part in ("sizes", "others"):
        found = gpu_parts.PARTS[part].work(suite)
    assert set(found["toy"]["contenders"].values()) == {gpu_parts.NO_TIME}
    assert gpu_suite.measure(suite, ["grid"], tmp_path)["grid"] == gpu_parts.NO_TIME
    with pytest.raises(gpu_product.CommandFailed, match="not done in 0 s"):
        gpu_product.run_sft(tmp_path, 0, "plan", "--json")


def test_a_part_of_the_gpu_suite_that_fails_is_told_and_fails_it(tmp_path: Path) -> None:
    suite = gpu_parts.Suite(toy=True, root=tmp_path, budget=gpu_parts.Budget(500), model=tmp_path / "nothing")
    result = gpu_suite.measure(suite, ["model"], tmp_path)
    (reason,) = gpu_suite.failures(result)
    assert "nothing" in reason and reason in markdown(result)


@pytest.mark.parametrize(("tokens", "loss"), [(101, 2.0), (100, 2.1)])
def test_speed_counts_only_where_ours_and_trl_trained_the_same(tokens: int, loss: float) -> None:
    found = {"tokens": 100, "first_logged_loss": 2.0, "tokens_per_second": 10.0}
    peer = {"tokens": tokens, "first_logged_loss": loss, "tokens_per_second": 5.0}
    assert gpu_parts.judge({gpu_parts.OURS: found, gpu_parts.SAME: found})["gate"] == "passed"
    judged = gpu_parts.judge({gpu_parts.OURS: found, gpu_parts.SAME: peer})
    assert list(gpu_suite.failures({"sizes": judged})) and judged["times_best_trl"] == 2


def test_a_toy_run_is_never_shown_as_a_result_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpu_suite_toy.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["gpu_suite", "--table", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="no GPU has run the suite yet"):
        gpu_suite.main()
    before = sorted(gpu_suite.RESULTS.iterdir())
    monkeypatch.setattr("sys.argv", ["gpu_suite", "--toy", "--parts", "kernels"])
    gpu_suite.main()
    assert sorted(gpu_suite.RESULTS.iterdir()) == before


def test_a_peak_is_compared_with_the_plan_for_tensors() -> None:
    events = [{"memory/device_peak_gib": 2.5}, {"memory/device_peak_gib": 3.0}, {"eval/loss": 1.0}]
    found = gpu_product.memory(events, {"total": 3.55 * 2**30, "reserve": 0.8 * 2**30})
    assert found["peak_gib"] == 3.0 and found["peak_to_plan"] == pytest.approx(3.0 / 2.75)


def test_overlapping_kernels_count_once() -> None:
    assert covered([(0, 2), (1, 3), (5, 6)]) == 4


def test_the_table_names_what_is_missed(tmp_path: Path) -> None:
    result = {"cells": 9, "steps": 20, "times": {"a": 9.0, "b": 2.0}, "targets": {"a": 8.0, "b": 3.0}}
    (tmp_path / "grid.json").write_text(json.dumps(result))
    lines = run_all.summary(tmp_path).splitlines()[2:]
    assert [line.split("|")[-2].strip() for line in lines] == ["met", "missed"]


def test_a_peer_of_another_environment_takes_part_where_its_interpreter_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("subprocess.run", lambda command, **options: started.append(command[2:]))
    monkeypatch.setattr("sys.argv", ["run_all", "--only", "C3", "C6", "C9", "--litgpt", "there/python"])
    run_all.main()
    assert started == [
        ["benchmarks.training_step", "--few", "--litgpt", "there/python"],
        ["benchmarks.halving"],
        ["benchmarks.trial_start"],
    ]


def test_recorded_results_are_what_the_table_reads() -> None:
    assert run_all.summary().count("\n") > len(run_all.COMMANDS)


def test_early_stopping_is_replayed_as_the_real_sweep_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halving, "RATES", "train.learning_rate=0.001,0.002,0.005")
    monkeypatch.setattr(halving, "FIXED", [*halving.FIXED, "train.effective_batch_size=16", "train.max_steps=20"])
    seed = halving.run_seed(tmp_path, 42, None)
    assert len(seed["losses"]) == 3
    for name, found in seed["contenders"].items():
        assert 1 <= found["times"]["least"] <= found["times"]["most"] < 3, name
    real = halving.confirm(tmp_path, 42)
    assert real["tokens"] == real["predicted_tokens"]
    assert real["loss"] == real["predicted_loss"]
