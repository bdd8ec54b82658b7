"""The demo page, driven as a user would, in a headless Chromium, and as a program."""

import json
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
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("there is no chromium and chromedriver")
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
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

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

    def find(selector):
        return browser.find_element("css selector", selector)

    def text_of(name):
        return find(f"#{name} textarea").get_property("value")

    wait.until(lambda b: text_of("bridged"))
    assert text_of("raw")
    drawn = wait.until(lambda b: find("#map img"))
    wait.until(lambda b: drawn.get_property("naturalWidth") > 300)
    assert browser.find_elements("css selector", "#alternatives li")
    shot = os.environ.get("DLINK_SCREENSHOT")
    if shot:
        browser.save_screenshot(shot)


def test_a_silent_sound_is_told_without_the_servers_path(page, browser, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(16000), 16000)
    browser.get(page)
    wait = upload(browser, tmp_path / "silence.wav")
    # While the message fades in, its text reads as empty.
    told = wait.until(
        lambda b: b.find_element("css selector", ".toast-body, .toast-text").text
    )
    assert "silence.wav is silent" in told and "/" not in told


# What a program may send


def get(address, data=None, **headers):
    request = urllib.request.Request(address, data, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def send(page, path):
    """Upload a file; where the server says it put it."""
    data = (
        f'--x\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"'
        "\r\nContent-Type: audio/wav\r\n\r\n"
    ).encode()
    data += path.read_bytes() + b"\r\n--x--\r\n"
    kind = "multipart/form-data; boundary=x"
    answer = get(f"{page}/gradio_api/upload", data, **{"Content-Type": kind})
    return json.loads(answer)[0]


def ask(page, **sound):
    """What the endpoint of the button answers: "complete" or "error", and the rest."""
    sound = {"meta": {"_type": "gradio.FileData"}, **sound}
    sound = {key: value for key, value in sound.items() if value is not None}
    call = json.dumps({"data": [sound]}).encode()
    address = f"{page}/gradio_api/call/caption"
    started = get(address, call, **{"Content-Type": "application/json"})
    answer = get(f"{address}/{json.loads(started)['event_id']}")
    kind, _, rest = answer.removeprefix("event: ").partition("\n")
    return kind, rest


def write_tone(path, seconds=1.0, rate=16000):
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    soundfile.write(path, np.resize(wave, round(seconds * rate)), rate)
    return path


def test_an_uploaded_sound_is_captioned(page, tmp_path):
    kind, rest = ask(page, path=send(page, write_tone(tmp_path / "tone.wav")))
    assert kind == "complete", rest
    caption, *_ = json.loads(rest.partition("data: ")[2])
    assert caption.strip()


@pytest.mark.parametrize("place", ["text", "sound", "upward", "url", "no meta"])
def test_no_other_file_is_read_or_told_of(page, tmp_path, place):
    secret = tmp_path / "secret.txt"
    secret.write_text("in the vault")
    other = write_tone(tmp_path / "other.wav")
    sent = {
        "text": {"path": str(secret)},
        "sound": {"path": str(other)},
        "upward": {"path": f"{send(page, other)}/../../../../../..{other}"},
        "url": {"path": f"{page}/config"},
        "no meta": {"path": str(other), "meta": None},
    }[place]
    kind, rest = ask(page, **sent)
    assert kind == "error" and "vault" not in rest and "secret" not in rest
    for route in ("file=", "file/"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(f"{page}/gradio_api/{route}{secret}")
        assert refused.value.code in (403, 404)


def test_ten_minutes_are_the_longest(page, tmp_path):
    long = write_tone(tmp_path / "long.flac", 601, 8000)
    kind, rest = ask(page, path=send(page, long))
    assert kind == "error"
    assert "long.flac is too long (more than 600 seconds)" in rest and "/" not in rest


def test_the_page_says_how_large_a_file_may_be(page):
    assert json.loads(get(f"{page}/config"))["max_file_size"] == 200 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second loopback address")
def test_the_page_is_for_this_machine_alone(page):
    port = int(page.rpartition(":")[2])
    with socket.socket() as probe:
        # Taken on one address alone: another is still free.
        probe.bind(("127.0.0.2", port))
