import io

from rich.console import Console

from sft_experiments.data.prepare import print_summary
from sft_experiments.sanity.marked_rows import documents_of, show_rows_html, show_rows_terminal
from tests.data.conftest import chat, good_rows

ROW = chat("capital of <b>x</b> & y", "it is <i>z</i>")


def test_the_terminal_colours_exactly_the_supervised_tokens(prepare, write_jsonl, tokenizer):
    prepared = prepare(train_files=[write_jsonl([chat("sort: 3 1", "1 3")])], validation_fraction=0.0)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="256", width=100)
    show_rows_terminal(prepared.train, tokenizer, 3, console)
    line = next(line for line in out.getvalue().splitlines() if "sort" in line)
    start, _, rest = line.partition("\x1b[1;30;48;5;40m")
    assert start.endswith("<|assistant|>") and rest.startswith("1 3<|end|>\x1b[0m")


def test_html_marks_the_supervised_tokens_and_escapes_the_data(prepare, write_jsonl, tokenizer):
    prepared = prepare(train_files=[write_jsonl([ROW])], validation_fraction=0.0)
    page = show_rows_html(prepared.train, tokenizer, 1)
    assert "<mark>it is &lt;i&gt;z&lt;/i&gt;&lt;|end|&gt;</mark>" in page
    assert "capital of &lt;b&gt;x&lt;/b&gt; &amp; y" in page and "<b>" not in page
    assert "<script" not in page and "http" not in page


def test_documents_of_a_pack_are_shown_apart(prepare, write_jsonl, tokenizer):
    prepared = prepare(train_files=[write_jsonl(good_rows(4))], validation_fraction=0.0, packing="bfd")
    documents = list(documents_of(prepared.train[0], tokenizer))
    assert len(documents) == 4
    assert all(document.runs[-1].supervised and document.runs[-1].text.endswith("<|end|>") for document in documents)


def test_the_summary_fits_a_screen_and_names_the_findings(prepare, write_jsonl):
    rows = [*good_rows(30), chat("a", ""), chat("{{name}} ?", "b"), chat("c {{name}} ?", "b")]
    prepared = prepare(train_files=[write_jsonl(rows)], validation_fraction=0.0)
    out = io.StringIO()
    print_summary(prepared.report.as_json(), Console(file=out, width=300))
    text = out.getvalue()
    assert "empty_assistant_turn" in text and "placeholder" in text and "rows.jsonl:31" in text
    assert len(text.splitlines()) < 40
