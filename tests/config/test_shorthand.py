"""What people type for a model or a data file is written out, said, and refused where it is not clear."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_experiments.commands import longhand, main
from sft_experiments.config.hydra import composed
from sft_experiments.errors import SftError

ROWS: dict[str, dict[str, object]] = {
    "messages": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "prompt_completion": {"prompt": "a", "completion": "b"},
    "alpaca": {"instruction": "a", "input": "", "output": "b"},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "text": {"text": "a"},
}


def write(file: Path, *rows: dict[str, object]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("name", ROWS)
def test_a_data_file_is_read_in_the_format_of_its_first_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("my rows.jsonl"), *[ROWS[name]] * 3)
    assert main(["plan", "dataset=my rows.jsonl"]) == 0
    shown = capsys.readouterr()
    assert f"dataset=my rows.jsonl: dataset={name} dataset.train_files=['my rows.jsonl']" in shown.err
    with composed(longhand(["dataset=my rows.jsonl"])) as composer:
        dataset = composer.master.dataset
        assert (dataset.format, dataset.train_files) == (name, ["my rows.jsonl"])


def test_several_files_of_one_format_are_one_data_set_and_a_pattern_stays_one(tmp_path: Path) -> None:
    for part in "ab":
        write(tmp_path / f"{part}.jsonl", ROWS["alpaca"])
    for typed in (f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl", f"{tmp_path}/*.jsonl"):
        with composed(longhand([f"dataset={typed}"])) as composer:
            assert list(composer.master.dataset.train_files) == typed.split(",")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([ROWS["text"] | ROWS["alpaca"]], "can be read as alpaca and as text; type dataset=alpaca or dataset=text"),
        ([{"question": "a", "answer": "b"}], "no format fits the columns of"),
        ([], "is empty"),
    ],
    ids=["two formats", "none", "no row"],
)
def test_a_file_whose_format_is_not_clear_is_refused(tmp_path: Path, rows: list[dict[str, object]], told: str) -> None:
    file = write(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(SftError, match=told):
        longhand([f"dataset={file}"])


def test_files_that_are_not_there_or_of_two_formats_are_refused(tmp_path: Path) -> None:
    one, other = (write(tmp_path / f"{name}.jsonl", ROWS[name]) for name in ("text", "alpaca"))
    with pytest.raises(SftError, match="files of several formats"):
        longhand([f"dataset={one},{other}"])
    with pytest.raises(SftError, match="does not exist"):
        longhand([f"dataset={tmp_path}/nothing.jsonl"])


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        ("model=Qwen/Qwen3-0.6B", ["model=hub", "model.name=Qwen/Qwen3-0.6B"]),
        ("model=a/b,c/d", ["model=hub", "model.name=a/b,c/d"]),
        ("model=qwen3_4b", ["model=qwen3_4b"]),
        ("model=tiny,qwen3_4b", ["model=tiny,qwen3_4b"]),
        ("dataset=demo", ["dataset=demo"]),
        ("dataset={name: a/b}", ["dataset={name: a/b}"]),
        ("model.name=a/b", ["model.name=a/b"]),
    ],
)
def test_ids_are_models_of_the_hub_and_names_are_options(typed: str, written: list[str]) -> None:
    assert longhand([typed]) == written


def test_a_folder_is_a_model_and_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "lr=1, a model"
    folder.mkdir()
    with pytest.raises(SftError, match="no such folder"):
        longhand(["model=./nowhere"])
    with pytest.raises(SftError, match="tiny is an option and the others are"):
        longhand(["model=tiny,a/b"])
    plain = tmp_path / "model"
    plain.mkdir()
    assert longhand([f"model={plain}"]) == ["model=hub", f"model.name={plain}"]


@given(st.lists(st.text(alphabet="abc/.=,{}[]'~-_ ", max_size=12)))
def test_whatever_else_is_typed_stays_as_it_is(texts: list[str]) -> None:
    settings = [text for text in texts if not text.startswith(("model=", "dataset="))]
    assert longhand(settings) == settings


def test_recommend_takes_a_model_as_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    for typed in ("qwen3_4b", "Qwen/Qwen3-4B", "model=qwen3_4b"):
        assert main(["recommend", typed]) == 0
        assert "Qwen/Qwen3-4B" in capsys.readouterr().out
