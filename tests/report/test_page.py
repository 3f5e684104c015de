import json
import re
from pathlib import Path
from random import Random

import pytest

from sft_experiments.report.page import plotting_library, script_json
from sft_experiments.report.page_data import MOST_CURVES
from sft_experiments.report.publish import write_report
from sft_experiments.runs.record import Status
from tests.results.sweep_factory import bowl, write_extras, write_grid, write_run

HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">{{7*7}}\u2028\''


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def own_part(page: str) -> str:
    return page.replace(plotting_library(), "")


def test_the_same_folders_give_the_same_bytes(tmp_path: Path) -> None:
    write_grid(tmp_path, noise=0.01, num_seeds=2, curves=True)
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = own_part(page_of(write_grid(tmp_path, curves=True)))
    assert not re.search(r"""(src|href)=["']?(https?:|//|/|\.)""", page)
    assert "@import" not in page
    assert "url(" not in page


def test_every_part_of_the_page_is_there(tmp_path: Path) -> None:
    write_grid(tmp_path, noise=0.01, num_seeds=2, curves=True)
    folder = write_run(tmp_path, 0.05, 16, None, status=Status.diverged, curves=True)
    best = write_run(tmp_path, 2e-3, 16, 0.29, 99, curves=True, alerts=[{"rule": "spike", "step": 50, "message": "m"}])
    sample = {"step": 180, "prompt_index": 0, "prompt": [{"role": "user", "content": "2 + 2?"}], "reference": "4"}
    write_extras(
        best,
        [sample | {"answer": "4", "exact": True}],
        {"rows_proven": 9, "splits": {"train": {"rows": 1200}}, "findings": [{"rule": "empty_turn"}]},
    )
    page = own_part(page_of(tmp_path))
    for id in ("map", "profile", "loss", "task_0", "schedule", "grad_norm", "throughput", "memory", "health"):
        assert 'class="chart' in page
        assert f'id="{id}"' in page
    for words in (
        "2 + 2?",
        "rows proven",
        "1,200",
        "empty_turn",
        "step 2 loss nan",
        folder.path.name,
        "sft train --from",
        "torch",
    ):
        assert words in page


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    alerts = [{"rule": HOSTILE, "step": 10, "message": HOSTILE}]
    folder = write_run(tmp_path, 1e-3, 8, 0.5, curves=True, model__name=HOSTILE, alerts=alerts, command=HOSTILE)
    write_run(tmp_path, 2e-3, 8, 0.6, model__name="tame", notes=[HOSTILE])
    sample = {"step": 1, "prompt": [{"role": "user", "content": HOSTILE}], "answer": HOSTILE, "reference": HOSTILE}
    write_extras(folder, [sample], {HOSTILE: HOSTILE, "list": [HOSTILE]})
    page = own_part(page_of(tmp_path))
    assert "<script>window.hacked" not in page
    assert "<img" not in page
    assert "{{7*7}}" in page
    assert page.count("</script>") == 4  # the data, the library and the two scripts of the page


def test_json_in_a_script_element_cannot_end_it() -> None:
    text = script_json({"text": HOSTILE})
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == {"text": HOSTILE}


def test_a_hundred_runs_of_a_thousand_points_stay_below_five_megabytes(tmp_path: Path) -> None:
    rates, random = [1e-4 * 1.4**power for power in range(20)], Random(0)
    event = {"train/loss": 0.0, "train/grad_norm": 0.0, "train/tokens_per_second": 0.0, "memory/host_rss_gib": 0.0}
    for batch in (8, 16, 32, 64, 128):
        for rate in rates:
            folder = write_run(tmp_path, rate, batch, bowl()(rate, batch))
            with folder.metrics.open("w", encoding="utf-8") as file:
                for step in range(1000):
                    values = {name: random.random() for name in event} | {"train/learning_rate": random.random()}
                    file.write(json.dumps({"step": step, "tokens": 600 * step} | values) + "\n")
    assert len(own_part(page_of(tmp_path)).encode()) < 5_000_000


def test_of_very_many_runs_the_best_and_the_alarming_ones_are_drawn(tmp_path: Path) -> None:
    write_grid(tmp_path, noise=0.01, num_seeds=4, rates=[1e-4 * 1.2**power for power in range(16)])
    write_run(tmp_path, 0.9, 8, 9.0, alerts=[{"rule": "spike", "step": 5, "message": "m"}])
    page = page_of(tmp_path)
    assert f"Curves of {MOST_CURVES} of 193 runs" in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page).group(1))
    assert len(data["runs"]) == MOST_CURVES
    assert data["runs"][0]["rank"] == 1
    assert any(run["alerts"] for run in data["runs"])


@pytest.mark.parametrize("status", [Status.running, Status.failed])
def test_a_page_is_written_while_nothing_has_completed(tmp_path: Path, status: Status) -> None:
    write_run(tmp_path, 1e-3, 8, None, status=status)
    assert "nothing is ranked" in own_part(page_of(tmp_path))


def test_a_running_sweep_is_marked_as_preliminary(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5)
    write_run(tmp_path, 2e-3, 8, None, status=Status.running)
    assert "1 trial is not finished" in own_part(page_of(tmp_path))


def test_search_that_is_no_grid_is_drawn_as_points(tmp_path: Path) -> None:
    random = Random(1)
    for _ in range(30):
        rate, batch = 10 ** random.uniform(-4, -2), random.choice([8, 16, 32])
        write_run(tmp_path, float(f"{rate:.3g}"), batch, bowl()(rate, batch))
    data = json.loads(re.search(r'id="data">(.*?)</script>', page_of(tmp_path)).group(1))
    assert data["figures"]["heat_map"]["is_grid"] is False
    assert len(data["figures"]["heat_map"]["data"][0]["x"]) == 30


def test_settings_without_a_logarithm_get_an_axis_of_categories(tmp_path: Path) -> None:
    for decay in (0.0, 0.01, 0.1):
        for scheduler in ("cosine", "linear"):
            write_run(tmp_path, 1e-3, 8, 0.5 + decay, train__weight_decay=decay, scheduler__name=scheduler)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page_of(tmp_path)).group(1))
    layout = data["figures"]["heat_map"]["layout"]
    assert {layout["xaxis"]["type"], layout["yaxis"]["type"]} == {"category"}
