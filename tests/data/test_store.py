import os
from pathlib import Path

import pytest

from sft_experiments.data.store import HashMemory, dataset_fingerprint
from sft_experiments.errors import ConfigError, DataError
from sft_experiments.plan.data_facts import count_rows
from tests.data.conftest import good_rows


def test_content_decides_not_the_path(settings, write_jsonl, monkeypatch, tmp_path):
    absolute = settings(train_files=[write_jsonl(good_rows(3))])
    other = settings(train_files=[write_jsonl(good_rows(3), "other.jsonl")])
    monkeypatch.chdir(tmp_path)
    relative = settings(train_files=["rows.jsonl"])
    assert dataset_fingerprint(absolute) == dataset_fingerprint(other) == dataset_fingerprint(relative)
    assert dataset_fingerprint(absolute) != dataset_fingerprint(settings(train_files=[write_jsonl(good_rows(4))]))


def test_only_splits_that_exist_are_named(settings, write_jsonl):
    file = write_jsonl(good_rows(3))
    assert set(dataset_fingerprint(settings(train_files=[file]))) == {"train"}
    assert set(dataset_fingerprint(settings(train_files=[file], test_files=[file]))) == {"train", "test"}
    assert set(dataset_fingerprint(settings(source="demo"))) == {"train", "validation"}


def test_the_demo_is_its_arguments(settings):
    assert dataset_fingerprint(settings(source="demo")) == dataset_fingerprint(
        settings(source="demo", demo={"seed": 0})
    )
    assert dataset_fingerprint(settings(source="demo")) != dataset_fingerprint(
        settings(source="demo", demo={"seed": 1})
    )
    with pytest.raises(ConfigError, match=r"dataset\.demo\.rows is not an argument; allowed: num_train"):
        dataset_fingerprint(settings(source="demo", demo={"rows": 1}))


def test_names_in_a_mixture_do_not_matter_but_weights_do(settings, write_jsonl):
    file = write_jsonl(good_rows(3))

    def of(**mixture):
        return dataset_fingerprint(settings(source="mixture", mixture=mixture))

    assert of(a={"train_files": [file]}) == of(b={"train_files": [file]})
    assert of(a={"train_files": [file]}) != of(a={"train_files": [file], "weight": 2.0})


def test_the_memory_spares_reading_an_unchanged_file_and_notices_a_changed_one(write_jsonl, tmp_path, monkeypatch):
    file = Path(write_jsonl(good_rows(3)))
    first = HashMemory(tmp_path / "cache").sha256(file)
    reads = []

    def counted(file: Path) -> str:
        reads.append(file)
        return "read"

    monkeypatch.setattr("sft_experiments.data.store.sha256_of_file", counted)
    assert HashMemory(tmp_path / "cache").sha256(file) == first and not reads
    os.utime(file, ns=(0, 0))
    assert HashMemory(tmp_path / "cache").sha256(file) == "read" and len(reads) == 1


def test_a_damaged_memory_is_forgotten(write_jsonl, tmp_path):
    file = Path(write_jsonl(good_rows(3)))
    first = HashMemory(tmp_path / "cache").sha256(file)
    (tmp_path / "cache" / "file_hashes.json").write_text("{")
    assert HashMemory(tmp_path / "cache").sha256(file) == first


def test_a_missing_file_is_named(settings):
    with pytest.raises(DataError, match=r"dataset\.train_files: nowhere\.jsonl does not exist"):
        dataset_fingerprint(settings(train_files=["nowhere.jsonl"]))


def test_rows_are_counted_where_it_is_cheap(settings, write_jsonl):
    file = write_jsonl(good_rows(7))
    assert count_rows(settings(train_files=[file])) == 7
    assert count_rows(settings(train_files=[file], max_train_rows=3)) == 3
    assert count_rows(settings(source="demo")) == 6000
    assert count_rows(settings(source="hub", hub_id="a/b")) is None
