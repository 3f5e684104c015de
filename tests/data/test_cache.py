from sft_experiments.commands import run as run_command
from tests.data.conftest import good_rows


def run(*arguments):
    return run_command("cache", list(arguments))


def test_the_cache_command_lists_and_clears(prepare, write_jsonl, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SFT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    prepare(train_files=[write_jsonl(good_rows(9))], validation_fraction=0.0, name="my_rows")
    assert run() == 0
    listed = capsys.readouterr().out
    assert "my_rows" in listed and "9" in listed
    assert run("--clear") == 0
    assert "deleted 1 prepared data sets" in capsys.readouterr().out
    run()
    assert "nothing is prepared" in capsys.readouterr().out
