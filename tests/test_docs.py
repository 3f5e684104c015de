"""What the documents say can be done, can be done: links resolve, commands parse and compose."""

import re
import shlex
import tomllib
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from packaging.requirements import Requirement

from sft_experiments import __version__
from sft_experiments.commands import TABLE, longhand
from sft_experiments.config.hydra import conf_dir, register
from sft_experiments.runs.metrics import METRICS

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
HYDRA_FLAGS = {"-m", "--multirun"}


def commands(page: Path) -> list[list[str]]:
    """The words of every `sft ...` line in the shell blocks of a page, comments cut off, continued lines joined."""
    found = []
    for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" ; "):
                words = shlex.split(part.removeprefix("$ "), comments=True)
                if words[:1] == ["sft"]:
                    found.append(words[1:])
    return found


ALL = [(page.name, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), ALL, ids=[f"{page}: sft {' '.join(words)}" for page, words in ALL])
def test_every_command_in_the_documents_is_understood(
    page: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    (tmp_path / "chat.jsonl").write_text('{"messages": []}\n')
    name, arguments = words[0], words[1:]
    assert name in TABLE or name.startswith("-"), name
    if name.startswith("-"):
        return
    command = import_module(f"sft_experiments.commands.{TABLE[name][0]}").COMMANDS[name]
    if not command.takes_settings:
        parser = ArgumentParser()
        command.add_arguments(parser)
        parser.parse_intermixed_args(arguments)
    elif "--from" not in arguments:
        overrides = [word for word in arguments if "=" in word and not word.startswith("-")]
        single = [re.sub(r"^([\w./+~-]+=)([^\[{'\"]*?),.*$", r"\1\2", override) for override in overrides]
        register()
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            compose("config", overrides=longhand(single))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_resolves(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_is_short_and_its_make_targets_exist() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 200
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", text)) <= targets


def pins_of(file: str) -> dict[str, str]:
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / file).read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in pins}


def requirements(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    return [Requirement(text) for text in texts]


def test_every_pinned_core_dependency_satisfies_its_range() -> None:
    pins = pins_of("constraints.txt")
    for requirement in requirements():
        assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_the_lowest_versions_are_those_that_the_project_allows() -> None:
    (extras,) = re.findall(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    lowest = {
        requirement.name: bound.version
        for requirement in requirements(*extras.split(","))
        for bound in requirement.specifier
        if bound.operator == ">="
    }
    assert pins_of("constraints-lowest.txt") == {**lowest, "torch": pins_of("constraints.txt")["torch"]}


def test_the_version_stands_in_the_package_as_in_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__


def test_every_metric_of_the_register_is_explained() -> None:
    explained = (ROOT / "docs" / "metrics.md").read_text()
    assert [name for name in METRICS if f"`{name}`" not in explained] == []
