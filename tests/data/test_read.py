import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from sft_experiments.data.formats import RowFault
from sft_experiments.data.read import read_rows, resolve_files
from sft_experiments.errors import DataError

ROWS = [{"text": "one"}, {"text": "zwei ä"}]


def values(file):
    return [value for _, value in read_rows(file)]


def write_as(ending, file):
    table = pa.Table.from_pylist(ROWS)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    if ending == ".jsonl.gz":
        file.write_bytes(gzip.compress(text.encode()))
    elif ending == ".jsonl":
        file.write_text(text, encoding="utf-8")
    elif ending == ".json":
        file.write_text(json.dumps(ROWS), encoding="utf-8")
    elif ending == ".csv":
        file.write_text("text\none\nzwei ä\n", encoding="utf-8")
    elif ending == ".parquet":
        pa.parquet.write_table(table, file)
    elif ending == ".arrow":
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet", ".arrow", ".feather"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    file = tmp_path / f"rows{ending}"
    write_as(ending, file)
    assert values(file) == ROWS


def test_json_lines_under_the_ending_json_are_read(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert values(file) == [{"text": "one"}, {"text": "two"}]


def test_a_byte_order_mark_and_blank_lines_are_no_rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n\n{"text": "two"}\n')
    assert [(origin.row, value) for origin, value in read_rows(file)] == [(1, {"text": "one"}), (3, {"text": "two"})]


def test_a_missing_file_is_named_with_its_key(tmp_path):
    with pytest.raises(DataError, match=r"dataset\.train_files: .*nowhere\.jsonl does not exist"):
        resolve_files([str(tmp_path / "nowhere.jsonl")], "dataset.train_files")


def test_a_folder_is_refused_with_a_pattern_to_use(tmp_path):
    with pytest.raises(DataError, match=r"is a folder; name its files"):
        resolve_files([str(tmp_path)], "dataset.train_files")


def test_an_unknown_ending_names_the_known_ones(tmp_path):
    file = tmp_path / "rows.xlsx"
    file.touch()
    with pytest.raises(DataError, match=r"no known ending; allowed: \.jsonl"):
        resolve_files([str(file)], "dataset.train_files")


def test_a_pattern_takes_its_matches_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        (tmp_path / name).touch()
    found = resolve_files([str(tmp_path / "*.jsonl")], "dataset.train_files")
    assert [file.name for file in found] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match="is empty"):
        values(file)


def test_bytes_that_are_not_utf8_are_named_by_their_offset(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "one"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"not UTF-8: byte 29 \(0xe9\)"):
        values(file)


def test_a_file_without_permission_is_a_clear_error(tmp_path):
    folder = tmp_path / "rows.jsonl"
    folder.mkdir()  # reading a folder fails for root too
    with pytest.raises(DataError, match="cannot be read"):
        values(folder)


def test_a_broken_line_is_one_faulty_row_and_the_rest_is_read(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "one"}\n{"text": \n[1, 2]\n{"text": "four"}\n{"text": "fi')
    rows = list(read_rows(file))
    faults = {origin.row: value.what for origin, value in rows if isinstance(value, RowFault)}
    assert sorted(faults) == [2, 3, 5]
    assert "not JSON" in faults[2] and "must be an object" in faults[3] and "last line is cut" in faults[5]


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".json"])
def test_a_damaged_file_is_named(tmp_path, ending):
    file = tmp_path / f"rows{ending}"
    file.write_bytes(b"this is something else")
    with pytest.raises(DataError, match=f"rows{ending}"):
        values(file)


def test_a_csv_row_with_a_missing_field_is_faulty(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("prompt,completion\na,b\nc\n")
    assert isinstance(values(file)[1], RowFault)
