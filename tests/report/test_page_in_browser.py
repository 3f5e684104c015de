"""The report in a real headless Chromium: drawn, quiet, usable, and deaf to hostile rows.

Needs Debian's ``chromium`` and ``chromium-driver`` and the ``selenium`` package. Without them the tests are skipped,
loudly; with ``SFT_REQUIRE_BROWSER=1`` (continuous integration) their absence is a failure.
"""

import base64
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sft_experiments.report.publish import write_report
from sft_experiments.runs.record import Status
from tests.conftest import skip_unless_required
from tests.report.test_page import HOSTILE
from tests.results.sweep_factory import write_extras, write_grid, write_run

pytestmark = pytest.mark.slow


def _missing() -> str | None:
    programs = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if programs:
        return f"{' and '.join(programs)} not found: apt-get install chromium chromium-driver"
    try:
        import selenium  # noqa: F401
    except ModuleNotFoundError:
        return "selenium not installed: pip install selenium"
    return None


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    missing = _missing()
    if missing:
        skip_unless_required(f"THE REPORT WAS NOT TESTED IN A BROWSER: {missing}", "SFT_REQUIRE_BROWSER")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = tmp_path_factory.mktemp("outputs") / "lr_x_batch"
    write_grid(sweep, noise=0.01, num_seeds=2, curves=True)
    write_run(sweep, 0.05, 16, None, status=Status.diverged, curves=True)
    alerts = [{"rule": HOSTILE, "step": 50, "message": HOSTILE}]
    hostile = write_run(sweep, 2e-3, 16, 0.25, 77, curves=True, alerts=alerts, command=HOSTILE)
    sample = {"step": 180, "prompt": [{"role": "user", "content": HOSTILE}], "reference": HOSTILE, "answer": HOSTILE}
    write_extras(hostile, [sample | {"exact": False}], {HOSTILE: HOSTILE})
    return write_report(sweep)


@pytest.fixture
def open_page(browser: Any, report: Path) -> Callable[..., Any]:
    def open_page(theme: str = "light", width: int = 1300) -> Any:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": theme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.get_log("browser")  # forget what earlier pages said
        browser.get(report.as_uri())
        browser.execute_script("try { localStorage.clear() } catch {}")
        browser.execute_script("document.querySelectorAll('.chart').forEach((chart) => drawOnce(chart.id))")
        return browser

    return open_page


def count(page: Any, selector: str) -> int:
    result: int = page.execute_script("return document.querySelectorAll(arguments[0]).length", selector)
    return result


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 390])
def test_all_charts_are_drawn_and_the_console_is_silent(open_page: Callable[..., Any], theme: str, width: int) -> None:
    page = open_page(theme, width)
    assert count(page, "#map .heatmaplayer image, #map .heatmaplayer .hm") >= 1
    assert count(page, "#map .shapelayer path") >= 2
    assert count(page, "#profile .scatterlayer .trace") == 3
    assert count(page, "#loss .scatterlayer .trace") == 2 * 32
    for chart in ("task_0", "schedule", "grad_norm", "throughput", "memory", "health"):
        assert count(page, f"#{chart} .scatterlayer .trace") >= 1, chart
    assert page.get_log("browser") == []
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


def test_hostile_rows_are_inert_and_shown_as_text(open_page: Callable[..., Any]) -> None:
    page = open_page()
    assert page.execute_script("return window.hacked === undefined")
    assert count(page, "main img") == 0
    legend = page.execute_script("return document.querySelector('#health .legendtext').textContent")
    assert legend.startswith(
        "</script><script>"
    )  # the plotting library reads some HTML in labels: none is left to read
    assert "onerror" in page.execute_script("return document.querySelector('.samples').textContent")


def test_nothing_is_fetched(open_page: Callable[..., Any]) -> None:
    page = open_page()
    names = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in names if not name.startswith("data:")] == []


def test_a_click_on_a_heading_sorts_the_rows_and_another_one_turns_them(open_page: Callable[..., Any]) -> None:
    page = open_page()
    script = """
        const buttons = [...document.querySelectorAll('#runs-table th button')];
        const button = buttons.find((one) => one.textContent === arguments[0]);
        button.click();
        const column = button.closest('th').cellIndex;
        return [...document.querySelectorAll('#runs-table tbody tr')].map((row) => row.cells[column].dataset.value);
    """
    rising = page.execute_script(script, "learning rate")
    assert [float(value) for value in rising] == sorted(float(value) for value in rising)
    assert page.execute_script(script, "learning rate") == rising[::-1]
    objectives = page.execute_script(script, "eval/loss")
    assert objectives[-1] == ""  # the diverged run has none and stays last


def test_the_filter_hides_rows_without_all_words(open_page: Callable[..., Any]) -> None:
    page = open_page()
    from selenium.webdriver.common.by import By

    page.find_element(By.ID, "filter").send_keys("diverged")
    assert count(page, "#runs-table tbody tr:not([hidden])") == 1
    assert page.find_element(By.ID, "shown").text == "1 of 16 rows"


def test_toggles_hide_curves_and_change_axes(open_page: Callable[..., Any]) -> None:
    page = open_page()
    click = "document.querySelector(arguments[0]).click()"
    page.execute_script(click, "[data-view=train]")
    assert count(page, "#loss .scatterlayer .trace") == 32
    page.execute_script(click, "[data-show=best]")
    assert count(page, "#loss .scatterlayer .trace") == 5
    page.execute_script(click, ".chip")
    assert count(page, "#loss .scatterlayer .trace") == 4
    page.execute_script(click, "[data-view=axis][value=step]")
    assert page.execute_script("return document.getElementById('loss').layout.xaxis.title.text") == "optimizer steps"
    page.execute_script(click, "[data-view=scale][value=log]")
    assert page.execute_script("return document.getElementById('loss').layout.yaxis.type") == "log"


def test_the_theme_follows_the_system_and_the_button(open_page: Callable[..., Any]) -> None:
    page = open_page("dark")
    background = "return getComputedStyle(document.body).backgroundColor"
    ink = "return document.getElementById('map').layout.font.color"
    dark = page.execute_script(background), page.execute_script(ink)
    page.execute_script("document.getElementById('theme').click()")
    light = page.execute_script(background), page.execute_script(ink)
    assert dark[0] != light[0]
    assert dark[1] != light[1]


def test_the_page_prints(open_page: Callable[..., Any]) -> None:
    page = open_page("dark")
    document = base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert document.startswith(b"%PDF")
    assert len(document) > 50_000
