"""Which GPUs a run may use is asked of the driver, and never guessed when it does not answer."""

import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from sft_experiments.errors import ConfigError
from sft_experiments.plan import gpus as module
from sft_experiments.plan.gpus import gpus
from tests.plan.fake_nvml import Card, Driver, cards, install

FOUR = cards("GPU-aaaa", "GPU-bbbb", "GPU-bccc", "GPU-dddd")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    module._visible.cache_clear()


def visible(*chosen: str) -> list[int]:
    return [gpu.index for gpu in gpus(chosen)]


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("0", [0]),
        ("0, 1", [0, 1]),
        ("3,2", [3, 2]),
        ("0,-1,1", [0]),
        ("-1", []),
        ("", []),
        ("NoDevFiles", []),
        ("GPU-dddd,GPU-aaaa", [3, 0]),
        ("GPU-bc", [2]),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, expected: list[int]
) -> None:
    install(monkeypatch, Driver(FOUR), variable)
    assert visible() == expected


@pytest.mark.parametrize(
    ("variable", "named"),
    [
        ("4", "no GPU 4 is here"),
        ("0,GPU-9", "no GPU GPU-9 is here"),
        ("all", "no GPU all"),
        ("1,1", "names GPU 1 twice"),
    ],
)
def test_a_device_that_the_environment_names_and_that_is_not_here_is_an_error(
    monkeypatch: pytest.MonkeyPatch, variable: str, named: str
) -> None:
    install(monkeypatch, Driver(FOUR), variable)
    with pytest.raises(ConfigError, match=rf"CUDA_VISIBLE_DEVICES={variable}: .*{named}"):
        gpus()


def test_so_is_one_on_a_machine_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None, "0")
    with pytest.raises(
        ConfigError, match=r"CUDA_VISIBLE_DEVICES=0: no GPU 0 is here; GPUs: none; .*compute\.device=cpu"
    ):
        gpus()
    install(monkeypatch, None)
    assert gpus() == ()


def test_chosen_devices_are_among_the_visible_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Driver(FOUR), "3,2,1")
    assert visible("1", "GPU-dddd") == [1, 3]
    with pytest.raises(ConfigError, match=r"compute\.devices=0: no GPU 0 is here; GPUs: 3 \(Test GPU\), 2 .*, 1 "):
        gpus(["0"])


def test_a_card_says_how_large_and_how_full_it_is_and_which_cores_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Card("GPU-full", "Big", total=80.0, used=61.0, capability=(8, 6), cores=(0, 63, 64, 130))
    install(monkeypatch, Driver([full, Card("GPU-idle", used=0.5)]))
    first, second = gpus()
    assert (first.memory_gib, first.used_gib, first.compute_capability) == (80.0, 61.0, 8.6)
    assert first.near_cores == {0, 63, 64, 130}
    assert second.near_cores == frozenset()
    assert (first.is_busy, second.is_busy) == (True, False)
    assert str(first) == "Big, 80 GiB; card 0: 61 of 80 GiB in use by others"


def test_memory_that_is_the_hosts_is_not_taken_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Driver([Card("GPU-orin", "Orin", total=None, capability=(8, 7))]))
    (gpu,) = gpus()
    assert (gpu.memory_gib, gpu.is_busy, str(gpu)) == (None, False, "Orin, the host's memory")


def test_old_cards_have_no_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Driver([Card("GPU-old", capability=(7, 0))]))
    assert [gpu.visible_as for gpu in gpus()] == ["GPU-old"]


def test_instances_of_a_card_are_devices_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = Card("GPU-cut", instances=[Card("MIG-1", "3g", total=40.0), Card("MIG-2", "1g", total=10.0)])
    install(monkeypatch, Driver([cut, Card("GPU-whole")]))
    assert [gpu.visible_as for gpu in gpus()] == ["MIG-1", "MIG-2", "GPU-whole"]
    install(monkeypatch, Driver([cut]), "MIG-2")
    assert [(gpu.memory_gib, gpu.compute_capability, gpu.is_part) for gpu in gpus()] == [(10.0, 9.0, True)]
    install(monkeypatch, Driver([cut]), "0")
    assert [gpu.visible_as for gpu in gpus()] == ["MIG-1"]  # as CUDA does


def test_cards_that_a_container_keeps_away_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Card("GPU-away", refuses=pynvml.NVML_ERROR_NO_PERMISSION)
    install(monkeypatch, Driver([away, Card("GPU-ours")]), "0")
    assert [gpu.visible_as for gpu in gpus()] == ["GPU-ours"]


# ---- a driver that NVML cannot reach: torch is asked, here a program in its place


@pytest.fixture
def pretend_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    driver = tmp_path / "nvidiactl"
    driver.touch()
    monkeypatch.setattr(module, "DRIVER_FILES", (str(driver),))

    def says(script: str) -> None:
        python = tmp_path / "python"
        python.write_text(f"#!{sys.executable}\n{script}\n")
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(python))

    return says


TWO = json.dumps([["Big", 80 * 2**30, 2**30, 9.0], ["Big", 80 * 2**30, 0, 9.0]])


@pytest.mark.parametrize(("variable", "names"), [(None, ["0", "1"]), ("GPU-b,GPU-a", ["GPU-b", "GPU-a"])])
def test_where_nvml_is_absent_torch_is_asked(
    monkeypatch: pytest.MonkeyPatch, pretend_torch, variable: str | None, names: list[str]
) -> None:
    install(monkeypatch, None, variable)
    pretend_torch(f"print({TWO!r})")
    assert [gpu.visible_as for gpu in gpus()] == names
    assert [(gpu.name, gpu.memory_gib, gpu.used_gib) for gpu in gpus()] == [("Big", 80.0, 1.0), ("Big", 80.0, 0.0)]


def test_numbers_mean_the_same_whoever_is_asked(monkeypatch: pytest.MonkeyPatch, pretend_torch) -> None:
    install(monkeypatch, None, "5,2")
    pretend_torch(f"print({TWO!r})")
    assert visible("2") == [2]


@pytest.mark.parametrize(
    "driver",
    [
        None,
        Driver([], starts=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH),
        Driver([Card("", refuses=pynvml.NVML_ERROR_GPU_IS_LOST)]),
    ],
)
@pytest.mark.parametrize("script", ["raise RuntimeError('driver too old')", "print('?')", "import os; os.abort()"])
def test_a_driver_that_nobody_can_ask_is_an_error_and_not_a_machine_without_gpus(
    monkeypatch: pytest.MonkeyPatch, pretend_torch, driver: Driver | None, script: str
) -> None:
    install(monkeypatch, driver)
    pretend_torch(script)
    with pytest.raises(ConfigError, match=r"an NVIDIA driver is here, but .*NVML.*torch: .*compute\.device=cpu"):
        gpus()


def test_fewer_gpus_than_the_environment_names_are_an_error(monkeypatch: pytest.MonkeyPatch, pretend_torch) -> None:
    install(monkeypatch, None, "0,1,5")
    pretend_torch(f"print({TWO!r})")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=0,1,5: torch sees 2"):
        gpus()
