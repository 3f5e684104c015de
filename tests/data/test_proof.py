"""The proof must find masks that are wrong: each test breaks a right one."""

import numpy as np
import pytest

from sft_experiments.data.encode import IGNORED, Encoder
from sft_experiments.data.formats import Conversation, Origin
from sft_experiments.data.proof import MaskProof
from sft_experiments.schema import TrainOn
from tests.data.conftest import chat, encoded

MESSAGES = chat("be brief", "last letter of a b c", "c", "sort: 3 1", "1 3", roles="suaua")["messages"]


@pytest.fixture
def row(tokenizer):
    return encoded(Encoder(tokenizer, TrainOn.assistant), Conversation(MESSAGES, Origin("rows", 1)))


@pytest.fixture
def proof(tokenizer):
    return MaskProof(tokenizer, TrainOn.assistant)


def test_a_right_mask_passes_and_its_end_tokens_are_known(row, proof, tokenizer):
    assert proof.fault(row) is None
    assert proof.end_of_turn_ids == {tokenizer.eos_token_id}


def test_a_supervised_user_turn_is_found(row, proof):
    start = row.text.index("sort: 3 1")
    first, second = row.spans
    row.spans = [first, (start, second[1])]
    assert "turn 4 (user)" in proof.fault(row)


def test_an_assistant_turn_left_out_is_found(row, proof):
    row.spans = row.spans[:1]
    assert "turn 5 (assistant)" in proof.fault(row)


def test_a_missing_end_token_is_found(row, proof, tokenizer):
    row.labels[row.input_ids == tokenizer.eos_token_id] = IGNORED
    assert "not in an end-of-turn token" in proof.fault(row)


def test_labels_shifted_by_one_are_found(row, proof):
    row.labels = np.roll(np.where(row.labels == IGNORED, IGNORED, row.input_ids), 1)
    assert proof.fault(row) is not None


def test_a_token_missing_inside_an_answer_is_found(row, proof):
    start = int(np.flatnonzero(row.labels != IGNORED)[-4])
    row.labels[start] = IGNORED
    assert proof.fault(row) is not None


def test_nothing_supervised_is_found(row, proof):
    row.labels[:] = IGNORED
    assert "no token is supervised" in proof.fault(row)


def test_a_long_text_that_nobody_wrote_is_found(row, proof):
    extra = "x" * 500
    row.text = row.text[: row.spans[0][0]] + extra + row.text[row.spans[0][0] :]
    row.spans = [(row.spans[0][0], row.spans[0][1] + 500), (row.spans[1][0] + 500, row.spans[1][1] + 500)]
    assert "not the assistant's are supervised" in proof.fault(row)


def test_two_beginnings_are_found(tokenizer):
    from copy import deepcopy

    with_bos = deepcopy(tokenizer)
    with_bos.bos_token = "<|system|>"
    with_bos.chat_template = "{{ bos_token }}{{ bos_token }}" + tokenizer.chat_template
    row = encoded(Encoder(with_bos, TrainOn.assistant), Conversation(MESSAGES[1:], Origin("rows", 1)))
    assert "two '<|system|>' tokens" in str(MaskProof(with_bos, TrainOn.assistant).fault(row))


def test_padding_with_the_end_token_keeps_the_real_end_supervised(tokenizer):
    from copy import deepcopy

    same = deepcopy(tokenizer)
    same.pad_token = same.eos_token
    row = encoded(Encoder(same, TrainOn.assistant), Conversation(MESSAGES, Origin("rows", 1)))
    assert row.labels[-1] == same.eos_token_id
    assert MaskProof(same, TrainOn.assistant).fault(row) is None
