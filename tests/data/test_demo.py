import subprocess
import sys

from sft_experiments.data.sources import CAPITALS, DEMO_DEFAULTS, SKILLS, generate_demo_rows

PRINT_TOKENIZER = """
import hashlib
from sft_experiments.data.sources import build_demo_tokenizer
print(hashlib.sha256(build_demo_tokenizer().backend_tokenizer.to_str().encode()).hexdigest())
"""


SOLVE = {
    "capital": lambda words: next(city for country, city in CAPITALS.items() if country in words),
    "reverse": lambda words: " ".join(reversed(words[1:])),
    "sort": lambda words: " ".join(sorted(words[1:])),
    "largest": lambda words: max(words[2:]),
    "last_letter": lambda words: words[-1],
    "uppercase": lambda words: " ".join(words[1:]).upper(),
    "addition": lambda words: str(int(words[0]) + int(words[2])),
}


def prompts(rows):
    return {row["messages"][0]["content"] for row in rows}


def test_no_validation_prompt_is_ever_trained_whatever_sizes_and_seeds():
    validation = prompts(generate_demo_rows("validation", **DEMO_DEFAULTS))
    for seed in range(3):
        assert not validation & prompts(generate_demo_rows("train", num_train=2000, num_validation=10, seed=seed))


def test_the_same_arguments_give_the_same_rows_and_another_seed_gives_others():
    arguments = {"num_train": 70, "num_validation": 14}
    assert generate_demo_rows("train", seed=1, **arguments) == generate_demo_rows("train", seed=1, **arguments)
    assert generate_demo_rows("train", seed=1, **arguments) != generate_demo_rows("train", seed=2, **arguments)


def test_every_answer_is_right():
    for row in generate_demo_rows("train", num_train=700, num_validation=0, seed=3):
        prompt, answer = (message["content"] for message in row["messages"])
        words = prompt.replace(":", "").split()
        assert answer == SOLVE[row["skill"]](words)


def test_skills_have_equal_shares():
    skills = [row["skill"] for row in generate_demo_rows("train", **DEMO_DEFAULTS)]
    assert {skill: skills.count(skill) for skill in SKILLS} == dict.fromkeys(SKILLS, 6000 // len(SKILLS))


def test_the_tokenizer_splits_digits_and_tells_padding_from_the_end(tokenizer):
    assert tokenizer.tokenize("12 + 7") == ["1", "2", "Ġ+", "Ġ", "7"]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert 450 < len(tokenizer) <= 640
    assert tokenizer.decode(tokenizer("Grüße, 世界 <b>")["input_ids"]) == "Grüße, 世界 <b>"


def test_the_tokenizer_is_the_same_in_another_process(tokenizer):
    import hashlib

    here = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    there = subprocess.run([sys.executable, "-c", PRINT_TOKENIZER], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here
