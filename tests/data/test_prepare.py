"""One preparation for a whole sweep: built once, shared, and never stale."""

import multiprocessing
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest

from sft_experiments.data.encode import IGNORED
from sft_experiments.data.prepare import prepare_data
from sft_experiments.data.sources import SKILLS
from sft_experiments.data.store import cached_report, clear_cache, list_entries
from sft_experiments.errors import DataError
from sft_experiments.schema import ModelConfig, PackingStrategy
from tests.data.conftest import chat, good_rows


def test_the_demo_comes_out_complete(prepare):
    prepared = prepare(source="demo", max_length=64)
    assert prepared.train.column_names == ["input_ids", "labels"]
    assert (len(prepared.train), len(prepared.validation), prepared.test) == (5999, 342, None)
    assert prepared.prompts[0].messages[-1]["role"] == "user" and prepared.prompts[0].skill in SKILLS
    assert prepared.report.splits["train"].dropped == {}
    assert set(prepared.fingerprints) == {"train", "validation", "tokenizer", "prepared"}


def test_prompts_and_references_are_the_validation_rows(prepare, write_jsonl):
    train = write_jsonl(good_rows(9), "train.jsonl")
    validation = write_jsonl([chat("be brief", "a ?", "b", "c ?", "d", roles="suaua")], "validation.jsonl")
    (prompt,) = prepare(train_files=[train], validation_files=[validation]).prompts
    assert [message["content"] for message in prompt.messages] == ["be brief", "a ?", "b", "c ?"]
    assert prompt.reference == "d"


def test_packed_rows_hold_the_same_documents_and_no_label_crosses_a_boundary(prepare):
    plain, packed = (prepare(source="demo", max_length=64, packing=packing) for packing in ("none", "bfd"))
    documents = []
    for row in packed.train:
        assert sum(row["seq_lengths"]) == len(row["input_ids"]) <= 64
        start = 0
        for length in row["seq_lengths"]:
            documents.append(
                (tuple(row["input_ids"][start : start + length]), tuple(row["labels"][start : start + length]))
            )
            assert row["labels"][start] == IGNORED
            start += length
    assert sorted(documents) == sorted((tuple(row["input_ids"]), tuple(row["labels"])) for row in plain.train)
    assert packed.report.splits["train"].fill > 0.9
    assert packed.validation[:] == plain.validation[:]


def test_the_second_call_reads_the_cache(prepare, write_jsonl):
    file = write_jsonl(good_rows(9))
    first, second = prepare(train_files=[file]), prepare(train_files=[file])
    assert (first.report.cached, second.report.cached) == (False, True)
    assert first.train[:] == second.train[:] and first.prompts == second.prompts


@pytest.mark.parametrize(
    "change",
    [{"max_length": 99}, {"packing": "bfd"}, {"train_on": "last_assistant"}, {"rules": {"placeholder": "drop"}}],
)
def test_any_setting_that_decides_the_rows_builds_again(prepare, write_jsonl, change):
    file = write_jsonl(good_rows(9))
    prepare(train_files=[file])
    assert not prepare(train_files=[file], **change).report.cached


def test_another_template_builds_again(prepare, write_jsonl, tokenizer):
    from copy import deepcopy

    other = deepcopy(tokenizer)
    other.chat_template = tokenizer.chat_template + " "
    file = write_jsonl(good_rows(9))
    prepare(train_files=[file])
    assert not prepare(other, train_files=[file]).report.cached


def test_the_name_and_the_place_of_the_files_do_not_matter(prepare, write_jsonl):
    prepare(train_files=[write_jsonl(good_rows(9))])
    assert prepare(train_files=[write_jsonl(good_rows(9), "copy.jsonl")], name="other").report.cached


def test_an_edit_of_the_same_size_and_time_is_seen(prepare, write_jsonl):
    file = Path(write_jsonl([chat("sort: 3 1", "1 3"), *good_rows(3)]))
    before = file.stat()
    prepare(train_files=[str(file)])
    file.write_text(file.read_text().replace("sort: 3 1", "sort: 1 3"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert not prepare(train_files=[str(file)]).report.cached


def test_validation_is_held_out_by_content_and_does_not_move_when_rows_are_added(prepare, write_jsonl):
    first = prepare(train_files=[write_jsonl(good_rows(200))], validation_fraction=0.2)
    more = prepare(train_files=[write_jsonl(good_rows(300)[::-1], "more.jsonl")], validation_fraction=0.2)
    first_prompts = {prompt.messages[0]["content"] for prompt in first.prompts}
    more_prompts = {prompt.messages[0]["content"] for prompt in more.prompts}
    assert 20 <= len(first_prompts) <= 60
    assert first_prompts == {p for p in more_prompts if int(p.split()[0]) < 200}


def test_the_same_prompt_is_never_on_both_sides_of_the_split(prepare, write_jsonl):
    rows = [chat(f"{number % 50} + 1 =", f"answer {number}") for number in range(200)]
    prepared = prepare(train_files=[write_jsonl(rows)], validation_fraction=0.3)
    assert prepared.report.splits["validation"].dropped == {}


def test_max_rows_are_a_choice_that_repeats(prepare, write_jsonl):
    file = write_jsonl(good_rows(100))
    prepared = prepare(train_files=[file], max_train_rows=10, validation_fraction=0.3, max_validation_rows=5)
    assert (len(prepared.train), len(prepared.validation)) == (10, 5)
    again = prepare(train_files=[file], max_train_rows=10, validation_fraction=0.3, max_validation_rows=5)
    assert again.train[:] == prepared.train[:]


def test_a_mixture_weighs_its_sources(prepare, write_jsonl):
    twice = {"train_files": [write_jsonl(good_rows(10), "a.jsonl")], "weight": 2.0}
    half = {
        "format": "alpaca",
        "train_files": [write_jsonl([{"instruction": f"i{n}", "output": "o"} for n in range(200)], "b.jsonl")],
        "weight": 0.5,
    }
    prepared = prepare(source="mixture", mixture={"a": twice, "b": half}, validation_fraction=0.0)
    assert 20 + 70 <= len(prepared.train) <= 20 + 130


def test_a_damaged_entry_is_built_again(prepare, write_jsonl, tmp_path):
    file = write_jsonl(good_rows(9))
    prepare(train_files=[file])
    (entry,) = list_entries(tmp_path / "cache")
    entry.report.write_text("{")
    assert not prepare(train_files=[file]).report.cached
    assert prepare(train_files=[file]).report.cached


def test_a_refused_preparation_leaves_nothing_behind(prepare, write_jsonl, tmp_path):
    with pytest.raises(DataError):
        prepare(train_files=[write_jsonl([{"messages": 1}])], rules={"no_messages": "error"})
    left = [path for path in (tmp_path / "cache").rglob("*") if path.suffix in {".arrow", ".json"}]
    assert left == []


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(settings, write_jsonl, tokenizer, tmp_path):
    (tmp_path / "blocked").write_text("a file, not a folder")
    with pytest.raises(DataError, match=r"cannot be written: .*set SFT_CACHE_DIR"):
        prepare_data(settings(train_files=[write_jsonl(good_rows(3))]), tokenizer, cache_dir=tmp_path / "blocked")


def _prepare_in_process(settings, cache, queue):
    from sft_experiments.data.sources import build_demo_tokenizer

    prepared = prepare_data(settings, build_demo_tokenizer(), cache_dir=cache, show_progress=False)
    queue.put((prepared.report.cached, len(prepared.train), prepared.report.key))


@pytest.mark.slow
def test_two_processes_at_once_build_one_entry(settings, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (settings(source="demo", max_length=64), tmp_path / "cache", queue)
    processes = [context.Process(target=_prepare_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert len({key for _, _, key in results}) == 1
    assert {rows for _, rows, _ in results} == {5999}
    assert sorted(cached for cached, _, _ in results) == [False, True]
    assert len(list_entries(tmp_path / "cache")) == 1


def test_a_plan_finds_the_report_of_an_earlier_preparation(settings, tokenizer, write_jsonl, tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_CACHE_DIR", str(tmp_path / "cache"))
    dataset, model = settings(train_files=[write_jsonl(good_rows(9))]), ModelConfig(name="m")
    assert cached_report(dataset, model) is None
    prepared = prepare_data(dataset, tokenizer, model=model, show_progress=False)
    report = cached_report(dataset, model)
    assert report is not None
    assert report["splits"]["train"]["sequences"] == len(prepared.train)
    assert cached_report(settings(train_files=dataset.train_files, packing=PackingStrategy.bfd), model) is None


def test_the_cache_is_listed_and_cleared(prepare, write_jsonl, tmp_path):
    for count in (5, 6):
        prepare(train_files=[write_jsonl(good_rows(count))])
    assert len(list_entries(tmp_path / "cache")) == 2
    count, num_bytes = clear_cache(tmp_path / "cache")
    assert count == 2 and num_bytes > 0 and list_entries(tmp_path / "cache") == []


def test_planning_imports_nothing_heavy():
    code = (
        "import sys, sft_experiments.data.store, sft_experiments.data.gate, sft_experiments.plan.data_facts\n"
        "heavy = ('torch', 'transformers', 'datasets', 'trl', 'pyarrow', 'numpy')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_few_rows_still_give_a_validation_row(prepare, write_jsonl):
    prepared = prepare(train_files=[write_jsonl(good_rows(4))], validation_fraction=0.001)
    assert (len(prepared.train), len(prepared.validation)) == (3, 1)


THOUGHTFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_prompt_knows_what_the_loss_sees_of_its_answer(prepare, write_jsonl, tokenizer):
    rows = [chat("sort: 3 1", "1 3", "and 9 8", "8 9")]
    plain = prepare(train_files=[write_jsonl(good_rows(4))], validation_files=[write_jsonl(rows, "v.jsonl")])
    assert [prompt.supervised for prompt in plain.prompts] == ["8 9"]
    thoughtful = deepcopy(tokenizer)
    thoughtful.chat_template = THOUGHTFUL
    files = {"train_files": [write_jsonl(good_rows(4))], "validation_files": [write_jsonl(rows, "v.jsonl")]}
    (prompt,) = prepare(thoughtful, **files).prompts
    assert prompt.reference == "8 9" and prompt.supervised == "<think>\n\n</think>\n\n8 9"
