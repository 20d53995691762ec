"""The console in a real browser, and the promises that its pages make without one."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from intarsia_platform.gateway.pages import FILES
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

CONSOLE = Path(__file__).parents[3] / "platform/intarsia_platform/gateway/console"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)  # fmt: skip
in_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"
)


class Page:
    """The console in a browser."""

    def __init__(self, browser: webdriver.Chrome, served: Any, until: Callable[..., None]) -> None:
        self.browser, self.served, self.until = browser, served, until

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def sign_in(self, key: str) -> None:
        self.find("#key").send_keys(key, Keys.ENTER)

    def sign_in_as(self, principal: str) -> None:
        self.browser.get(f"{self.served.url}/")
        self.sign_in(self.served.departments.keys[principal])
        self.until(lambda: self.find("#ask").is_displayed())

    def ask(self, text: str) -> WebElement:
        before = len(self.all("article"))
        self.find("#prompt").send_keys(text)
        self.find("#send").click()
        self.until(lambda: len(self.all("article")) == before + 1)
        shown = self.all("article")[-1]
        self.until(lambda: not shown.find_elements(By.CSS_SELECTOR, ".answer[aria-busy]"))
        return shown

    def cells(self) -> list[list[str]]:
        """The table of access, read at one moment."""
        found: list[list[str]] = self.browser.execute_script(
            "return [...document.querySelectorAll('#access-table tbody tr')].map("
            "(row) => [...row.querySelectorAll('td')].map((cell) => cell.innerText.trim()))"
        )
        return found

    def complaints(self) -> list[str]:
        """What the browser itself found wrong, refusals by status left out."""
        entries = self.browser.get_log("browser")
        return [
            entry["message"] for entry in entries if "the server responded" not in entry["message"]
        ]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    started.set_window_size(1200, 900)
    yield started
    started.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, served: Any, until: Any) -> Page:
    return Page(browser, served, until)


@in_browser
@pytest.mark.slow
def test_one_signs_in_asks_and_sees_what_was_used(page: Page, tmp_path: Path):
    page.sign_in_as("dora")
    assert page.find("#principal").text == "dora"
    assert [one.text for one in page.all(".adapter label")] == ["legal", "medical"]
    assert not page.find("#to-access").is_displayed()
    page.find("#tokens").clear()
    page.find("#tokens").send_keys("12")
    page.find("#adapter-0").click()
    shown = page.ask("the contract binds")
    assert shown.find_element(By.CSS_SELECTOR, ".asked").text == "the contract binds"
    assert shown.find_element(By.CSS_SELECTOR, ".answer").text != ""
    used = shown.find_element(By.CSS_SELECTOR, ".used").text
    assert used.startswith("Drew on legal 100 %")
    page.find("#adapter-1").click()
    used = page.ask("again").find_element(By.CSS_SELECTOR, ".used").text
    assert "legal 50 %" in used
    assert "medical 50 %" in used
    page.find('input[value="base"]').click()
    used = page.ask("once more").find_element(By.CSS_SELECTOR, ".used").text
    assert used == "Drew on no adapter. The base answered."
    page.until(lambda: "12 written" in page.find("#status").text)
    page.browser.save_screenshot(str(tmp_path / "asked.png"))
    assert page.complaints() == []


@in_browser
@pytest.mark.slow
def test_an_answer_can_be_stopped_and_signing_out_leaves_nothing(page: Page):
    page.sign_in_as("ana")
    page.find("#tokens").clear()
    page.find("#tokens").send_keys("1900")
    page.find("#prompt").send_keys("the contract")
    page.find("#send").click()
    page.until(lambda: page.find(".answer").text != "")
    page.find("#stop").click()
    page.until(lambda: page.find("#status").text == "Stopped.")
    page.until(lambda: page.served.service.statistics.running == 0)
    page.find("#sign-out").click()
    assert page.find("#sign-in").is_displayed()
    assert page.all("article") == []
    key = page.served.departments.keys["ana"]
    assert key not in page.browser.page_source
    stored = page.browser.execute_script(
        "return [localStorage.length, sessionStorage.length, document.cookie,"
        " document.getElementById('key').value]"
    )
    assert stored == [0, 0, "", ""]


@in_browser
@pytest.mark.slow
def test_a_wrong_key_is_told_and_can_be_corrected(page: Page):
    page.browser.get(f"{page.served.url}/console/")
    page.sign_in("ik-wrong")
    page.until(lambda: "credential: is not valid here" in page.find("#sign-in-error").text)
    page.find("#key").clear()
    page.sign_in(page.served.departments.keys["eve"])
    page.until(lambda: page.find("#ask").is_displayed())
    assert "You may use no adapter" in page.find("#adapter-list").text


@in_browser
@pytest.mark.slow
def test_stewards_see_who_may_read_what_and_why(page: Page, tmp_path: Path):
    page.sign_in_as("cleo")
    page.find("#to-access").click()
    page.until(lambda: len(page.all("#access-table tbody tr")) == 5)
    cells = page.cells()
    assert cells[0] == ["✓ may", "✗ may not"]
    assert cells[3] == ["✓ may", "✓ may"]
    page.find("#access-table tbody tr td button").send_keys(Keys.ENTER)
    why = page.find("#why-text").text
    assert "ana may read legal. Decided by legal readers (line" in why
    assert 'contains("lawyers")' in why
    page.find("#access-purpose").send_keys("audit", Keys.ENTER)
    page.until(lambda: page.cells()[2:3] == [["✓ may", "✓ may"]])
    page.browser.save_screenshot(str(tmp_path / "access.png"))
    assert page.complaints() == []


@in_browser
@pytest.mark.slow
def test_it_fits_a_phone_and_every_field_has_a_name(page: Page, tmp_path: Path):
    page.browser.set_window_size(500, 900)
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True},
    )
    try:
        page.sign_in_as("cleo")
        page.browser.save_screenshot(str(tmp_path / "phone.png"))
        wide = "return document.documentElement.scrollWidth - window.innerWidth"
        assert page.browser.execute_script(wide) <= 0
        page.find("#to-access").click()
        page.until(lambda: len(page.all("#access-table tbody tr")) == 5)
        assert page.browser.execute_script(wide) <= 0
        nameless = [
            one.get_attribute("id")
            for one in page.all("input, select, textarea, button")
            if not one.accessible_name and one.is_displayed()
        ]
        assert nameless == []
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.browser.set_window_size(1200, 900)


def test_the_pages_are_served_with_their_policy(served: Any):
    answer = httpx.get(f"{served.url}/", follow_redirects=True)
    assert answer.url.path == "/console/"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'")
    assert "unsafe" not in policy
    for end, (name, kind) in FILES.items():
        file = httpx.get(f"{served.url}/console/{end}")
        assert file.headers["content-type"] == kind
        assert file.headers["x-content-type-options"] == "nosniff"
        assert file.content == (CONSOLE / name).read_bytes()
    assert {name for name, _ in FILES.values()} == {path.name for path in CONSOLE.iterdir()}
    assert httpx.get(f"{served.url}/console/../settings.py").status_code == 404


@pytest.mark.parametrize("name", [name for name, _ in FILES.values()])
def test_nothing_is_inline_or_from_elsewhere(name: str):
    text = (CONSOLE / name).read_text(encoding="utf-8")
    assert not re.search(
        r"https?:(?!//www\.w3\.org/2000/svg)|//(?!www\.w3)[a-z]+\.|@import|localStorage|sessionStorage|cookie",
        text,
    )
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
    if name.endswith(".html"):
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=", text)
