"""What `sft schedules` shows is what a run logs, at every step, for every schedule that conf/scheduler offers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sft_experiments.commands.schedules import sample_points, sparkline, write_html, write_png
from sft_experiments.config.hydra import composed, conf_dir
from sft_experiments.launch.trial import plan_run
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.plan_file import BatchPlan, Choice, StepPlan
from sft_experiments.training.arguments import planned_learning_rates, training_arguments
from sft_experiments.training.trainer import ExperimentTrainer

STEPS = StepPlan(sequences=24, steps_per_epoch=6, total_steps=13, warmup_steps=3, last_group_examples=4)


@pytest.mark.parametrize("name", sorted(file.stem for file in (conf_dir() / "scheduler").glob("*.yaml")))
def test_the_preview_is_what_the_trainer_logs_at_every_step(
    name: str,
    tiny_model: Callable[..., Any],
    tiny_rows: Callable[..., Any],
    tiny_tokenizer: Any,
    tmp_path: Path,
) -> None:
    with composed([f"scheduler={name}", "train.max_steps=13", "logger=none"]) as composition:
        trial = plan_run(composition)
    steps = STEPS if name != "constant" else StepPlan(24, 6, 13, 0, 4)
    config = trial.config
    config.train.logging_steps, config.train.eval_on_start, config.train.load_best_model_at_end = 1, False, False
    config.train.extra |= {"save_strategy": "no"}
    plan = replace(trial.plan, batch=BatchPlan(4, 1, 1), steps=steps, attention=Choice("sdpa", ""))
    arguments = training_arguments(config, plan, RunFolder(tmp_path), resumes=False)
    rows = tiny_rows()
    trainer = ExperimentTrainer(
        model=tiny_model(), args=arguments, train_dataset=rows, eval_dataset=rows, processing_class=tiny_tokenizer
    )
    trainer.train()
    logged = [event["learning_rate"] for event in trainer.state.log_history if "learning_rate" in event]
    assert logged == pytest.approx(planned_learning_rates(config, steps), rel=1e-9, abs=0)
    assert len(logged) == 13


def test_the_sample_points_are_those_of_the_tutorial() -> None:
    assert sample_points(1000, 100) == [0, 50, 100, 250, 500, 750, 999]
    assert sample_points(3, 0) == [0, 1, 2]


def test_pictures_of_all_schedules_are_written(tmp_path: Path) -> None:
    lines = {"linear": [1.0, 0.5, 0.0], "flat": [1.0, 1.0, 1.0]}
    page = write_html(tmp_path / "schedules.html", lines, [0, 1, 2]).read_text()
    assert page.count("<polyline") == 2
    assert "<td>0.5</td>" in page
    picture = write_png(tmp_path / "schedules.png", lines)
    assert picture is None or picture.read_bytes().startswith(b"\x89PNG")


def test_a_sparkline_shows_rise_and_fall() -> None:
    line = sparkline([0.0, 1.0, 0.0], 1.0)
    assert line[0] == line[-1] == " "
    assert "█" in line
