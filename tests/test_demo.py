"""The demo page, driven as a user would: in a headless Chromium."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import soundfile

pytest.importorskip("gradio", reason="the demo page needs the extra 'demo'")
webdriver = pytest.importorskip("selenium.webdriver")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("there is no chromium and chromedriver", allow_module_level=True)

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--window-size=1400,1000"),
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def page(saved_captioner, tmp_path_factory):
    """The address of the page, served by the command itself."""
    port = free_port()
    command = [sys.executable, "-m", "dlink_plugin.cli", "demo"]
    log = tmp_path_factory.mktemp("demo") / "log.txt"
    with log.open("w") as file:
        server = subprocess.Popen(
            [*command, "--model", saved_captioner, "--port", str(port)],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=file,
            stderr=file,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert server.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(switch)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    yield driver
    driver.quit()


def upload(browser, path):
    """Put a file into the page's sound and wait until it is there."""
    wait = WebDriverWait(browser, 60)
    field = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "input[type=file]"))
    field.send_keys(str(path))
    wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, "[data-testid*='waveform']"))
    browser.find_element(By.ID, "caption").click()
    return wait


def test_a_sound_gets_two_captions_and_a_map(page, browser, tmp_path):
    time_axis = np.arange(16000) / 16000
    tone = 0.3 * np.sin(2 * np.pi * 440 * time_axis)
    soundfile.write(tmp_path / "tone.wav", tone, 16000)
    browser.get(page)
    wait = upload(browser, tmp_path / "tone.wav")

    def text_of(name):
        return browser.find_element(By.CSS_SELECTOR, f"#{name} textarea").get_property(
            "value"
        )

    wait.until(lambda b: text_of("bridged"))
    assert text_of("raw")
    drawn = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "#map img"))
    wait.until(lambda b: drawn.get_property("naturalWidth") > 300)
    assert browser.find_elements(By.CSS_SELECTOR, "#alternatives li")
    shot = os.environ.get("DLINK_SCREENSHOT")
    if shot:
        browser.save_screenshot(shot)


def test_a_silent_sound_is_told_without_the_servers_path(page, browser, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(16000), 16000)
    browser.get(page)
    wait = upload(browser, tmp_path / "silence.wav")
    # While the message fades in, its text reads as empty.
    told = wait.until(
        lambda b: b.find_element(By.CSS_SELECTOR, ".toast-body, .toast-text").text
    )
    assert "silence.wav is silent" in told and "/" not in told
