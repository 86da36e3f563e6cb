"""The page in headless Chromium: what is seen, moved and copied. ``make test-browser``."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from commands import pyemo, start

pytestmark = pytest.mark.browser
api = pytest.importorskip(
    "playwright.sync_api", reason="the page's tests need playwright: make test-browser"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("the page's tests need Chromium: apt install chromium", allow_module_level=True)

PROMPT = "the happy story"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


def serving(*options: object) -> Iterator[str]:
    """Yield the address of a server in a process of its own."""
    with start("serve", "--port", 0, "--threads", 1, "--json", *options) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def url(tiny_model_path: Path, vectors: Path) -> Iterator[str]:
    """A server of the tiny llama with its five vectors, of which one is of other weights."""
    yield from serving("-m", tiny_model_path, "--vectors", vectors, "--n-ctx", 4096)


@pytest.fixture(scope="module")
def default_url(smollm2: Path) -> Iterator[str]:
    """A server of the default model, with room for longer replies than any hand takes to move."""
    yield from serving("-m", smollm2, "--n-ctx", 8192)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """``open_page(url, **context)``: the page, ready; its faults and foreign requests fail."""
    faults: list[str] = []
    contexts: list[Any] = []

    def open_page(url: str, **context: Any) -> Any:
        # the page's policy forbids to evaluate strings, which is how these tests look at it
        opened = browser.new_context(**{"bypass_csp": True, **context})
        contexts.append(opened)
        page = opened.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request",
            lambda asked: (
                faults.append(asked.url) if not asked.url.startswith((f"{url}/", "data:")) else None
            ),
        )
        page.goto(url + "/")
        page.wait_for_selector("#model:not(:text('connecting'))", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def say(page: Any, words: str = PROMPT, n_tokens: int = 12) -> None:
    page.evaluate(f"$('length').value = {n_tokens}; $('heat').value = 0")
    page.fill("#prompt", words)
    page.press("#prompt", "Enter")


def wait(page: Any) -> None:
    page.wait_for_function("!running && $('again').hidden === false", timeout=300_000)


def wait_until_idle(url: str) -> None:
    """Wait for the end of replies that were left: beside another one's rows, bits may differ."""
    until = time.monotonic() + 60
    while "\npyemo_running 0.0\n" not in httpx2.get(f"{url}/metrics").text:
        assert time.monotonic() < until
        time.sleep(0.02)


def shown(page: Any, index: int = -1) -> str:
    """Return the text of a reply, without the labels in it."""
    texts = page.evaluate(
        "[...document.querySelectorAll('.reply .text')].map((text) => [...text.childNodes]"
        ".filter((node) => node.nodeType === 3).map((node) => node.data).join(''))"
    )
    return str(texts[index])


def move(page: Any, name: str, steps: int) -> None:
    """Move a slider by its keys, as somebody without a mouse does."""
    slider = page.get_by_label(name, exact=True)
    slider.focus()
    for _ in range(steps):
        slider.press("ArrowRight")


def endless(route: Any) -> None:
    """Let no end of its own end a reply; the prompt is read anew, so equal moods write alike."""
    body = json.loads(route.request.post_data)
    body |= {"ignore_eos": True, "cache_prompt": False}
    body["pyemo"]["repetition_stop"] = False
    route.continue_(post_data=json.dumps(body))


def run_text(model: Path, *options: object, n_tokens: int = 12) -> str:
    """Return what ``pyemo run`` says at temperature 0 and the page's seed."""
    settings = ("-n", n_tokens, "--temperature", 0, "--seed", 1, "--threads", 1, "--json")
    result = pyemo("run", "-m", model, *settings, *options, PROMPT)
    assert result.exit_code == 0, result.stderr
    return str(json.loads(result.stdout)["text"])


# --- a reply ---


def test_reply_is_that_of_pyemo_run(
    open_page: Callable[..., Any], url: str, tiny_model_path: Path, vectors: Path
) -> None:
    page = open_page(url)
    say(page)
    wait(page)
    assert shown(page) == run_text(tiny_model_path, "--kv-type", "f16")
    page.evaluate("setMood('calibrated=0.3')")
    page.click("#again")
    wait(page)
    mood = f"{vectors}/calibrated.gguf=0.3"
    assert shown(page) == run_text(tiny_model_path, "--cvec", mood)
    footer = page.inner_text(".pair:last-child footer")
    assert "12 tokens" in footer
    assert "reads calibrated " in footer  # the gauge in words


def test_comparison_stands_beside_the_unsteered_reply(
    open_page: Callable[..., Any], url: str, tiny_model_path: Path
) -> None:
    page = open_page(url)
    page.evaluate("setMood('warm=0.5')")
    page.check("#compare")
    say(page)
    wait(page)
    titles = page.locator(".reply h2").all_inner_texts()
    assert titles == ["unsteered", "warm 0.5"]
    assert shown(page, 0) == run_text(tiny_model_path)
    assert shown(page, 1) != shown(page, 0)
    left, right = (page.locator(".reply").nth(i).bounding_box() for i in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]


def test_second_turn_is_told_the_first(open_page: Callable[..., Any], url: str) -> None:
    page = open_page(url)
    say(page)
    wait(page)
    first = shown(page)
    say(page, "the")
    wait(page)
    history = page.evaluate("history")
    assert [turn["role"] for turn in history] == ["user", "assistant"] * 2
    assert history[1]["content"] == first


def test_slider_moved_in_mid_sentence_changes_the_mood_from_the_next_token(
    open_page: Callable[..., Any], default_url: str
) -> None:
    page = open_page(default_url)
    page.route("**/v1/chat/completions", endless)
    answers: list[Any] = []
    page.on("response", lambda told: answers.append(told) if "/v1/steering/" in told.url else None)
    prompt = "Write a short message to your neighbour about the noise last night."
    wait_until_idle(default_url)
    say(page, prompt, 8000)
    page.wait_for_function("running.reply.tokens.length >= 8", timeout=300_000)
    page.evaluate("window.reply = running.reply, null")
    move(page, "angry", 30)
    # every request of the slider was answered, and what the last mood decides is on the page
    page.wait_for_function(
        "!running.isSteering && reply.tokens.length >= [...reply.turns.keys()].at(-1) + 60",
        timeout=300_000,
    )
    page.keyboard.press("Escape")
    wait(page)
    tokens = page.evaluate("reply.tokens.map((node) => node.data)")
    turns = page.evaluate("[...reply.turns].map(([at, turn]) => [at, turn.mood])")
    first, (_, mood) = turns[0][0], turns[-1]
    assert first >= 8
    assert mood.startswith("angry=0.0")
    assert [answer.json()["applied"] for answer in answers][-1] == mood
    assert page.locator(".turn").all_inner_texts()[-1] == mood.replace("=", " ")
    assert page.locator("#mood").inner_text() == mood.replace("=", " ")

    page.click("#fresh")
    page.evaluate("setMood('')")
    wait_until_idle(default_url)
    say(page, prompt, len(tokens))
    wait(page)
    plain = page.evaluate(
        "[...document.querySelectorAll('.text')[0].childNodes].map((node) => node.data)"
    )
    assert len(plain) == len(tokens)
    assert tokens[:first] == plain[:first]  # nothing before it has changed
    assert tokens[first:] != plain[first:]


def test_stopped_reply_stays_and_the_server_goes_on(
    open_page: Callable[..., Any], default_url: str
) -> None:
    page = open_page(default_url)
    say(page, "Tell me about the sea.", 400)
    page.wait_for_function("running && running.reply.tokens.length >= 4", timeout=300_000)
    page.keyboard.press("Escape")
    wait(page)
    assert "stopped by you" in page.inner_text(".reply footer")
    began = time.monotonic()
    say(page, "Hello!", 4)
    wait(page)
    assert shown(page)
    assert time.monotonic() - began < 20


# --- what is drawn ---


def test_window_is_drawn_where_the_slider_has_it(open_page: Callable[..., Any], url: str) -> None:
    page = open_page(url)
    row = page.locator(".strip", has=page.get_by_label("calibrated", exact=True))
    slider = page.get_by_label("calibrated", exact=True)
    slider.evaluate("(input) => { strips.get('calibrated').set(0.4); moodChanged(); }")
    window = row.locator(".marks .window").bounding_box()
    fill = row.locator(".marks .fill").bounding_box()
    assert window["x"] + window["width"] == pytest.approx(fill["x"] + fill["width"], abs=2)
    assert slider.get_attribute("aria-valuetext") == "0.4, in its window"
    slider.evaluate("(input) => { strips.get('calibrated').set(0.5); }")
    assert slider.get_attribute("aria-valuetext") == "0.5, above its window"
    assert "0.3 is recommended; its window is 0.2 to 0.4" in row.get_attribute("title")


def test_only_usable_vectors_have_a_slider(open_page: Callable[..., Any], url: str) -> None:
    names = open_page(url).locator(".strip label").all_inner_texts()
    assert names == ["calibrated", "cold", "raw", "warm"]


def test_gauges_run_while_it_writes(open_page: Callable[..., Any], url: str) -> None:
    page = open_page(url)
    say(page)
    wait(page)
    points = page.evaluate("strips.get('warm').curve.getAttribute('points').split(' ')")
    assert page.inner_text(".reply footer").startswith(f"{len(points)} tokens")
    assert len({point.split(",")[1] for point in points}) > 3
    assert page.evaluate("strips.get('raw').readings") == []  # it says nothing a gauge needs


@pytest.mark.parametrize(
    ("regime", "said"),
    [("surgical", "coherent"), ("collapse", "repeating"), ("explosion", "falling apart")],
)
def test_light_says_it_in_words(
    open_page: Callable[..., Any], url: str, regime: str, said: str
) -> None:
    page = open_page(url)
    page.evaluate(f"setLight('{regime}')")
    assert said in page.inner_text("#light")
    signs = page.evaluate("Object.values(LIGHTS).map(([sign]) => sign)")
    assert len(set(signs)) == len(signs)  # told apart without colour


def test_guard_s_steps_are_told(open_page: Callable[..., Any], url: str) -> None:
    page = open_page(url)
    page.check("#guard")
    page.evaluate("setMood('warm=3')")
    say(page, n_tokens=60)
    wait(page)
    assert "guard went back" in page.inner_text(".reply footer")


def test_guard_s_steps_are_told_while_the_reply_is_written(
    open_page: Callable[..., Any], url: str
) -> None:
    page = open_page(url)
    page.check("#guard")
    page.evaluate("setMood('warm=3')")
    page.evaluate(
        """() => {
            window.told = [];
            const look = () => document.querySelectorAll('.reply.running footer').forEach(
                (footer) => footer.textContent && window.told.push(footer.textContent));
            new MutationObserver(look).observe(
                document.getElementById('log'), { subtree: true, childList: true });
        }"""
    )
    say(page, n_tokens=60)
    wait(page)
    assert any("guard goes back" in words for words in page.evaluate("window.told"))


# --- taking it away ---


def test_mood_is_copied_as_a_line_and_as_a_body(
    open_page: Callable[..., Any], url: str, tiny_model_path: Path, vectors: Path
) -> None:
    rights = ["clipboard-read", "clipboard-write"]
    page = open_page(url, permissions=rights)
    page.evaluate("setMood('warm=0.5 + cold=-0.1@1:3')")
    page.click("text=Copy --cvec line")
    line = page.evaluate("navigator.clipboard.readText()")
    assert line == "--cvec cold=-0.1@1:3 --cvec warm=0.5"
    say(page)
    wait(page)
    steered = shown(page)
    page.evaluate("history.pop()")
    page.click("text=Copy JSON body")
    copied = page.evaluate("navigator.clipboard.readText()")
    answer = page.request.post(f"{url}/v1/chat/completions", data=json.loads(copied))
    assert answer.json()["choices"][0]["message"]["content"] == steered
    typed = [word.replace("warm", f"{vectors}/warm.gguf") for word in line.split()]
    typed = [word.replace("cold", f"{vectors}/cold.gguf") for word in typed]
    assert run_text(tiny_model_path, *typed) == steered


# --- for everybody ---


def test_page_works_under_its_own_policy(open_page: Callable[..., Any], url: str) -> None:
    page = open_page(url, bypass_csp=False)
    page.fill("#prompt", PROMPT)
    page.press("#prompt", "Enter")
    page.wait_for_selector(".reply:not(.running) footer:not(:empty)", timeout=300_000)
    assert "tokens" in page.inner_text(".reply footer")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"viewport": {"width": 1280, "height": 850}}, PHONE])
def test_axe_finds_nothing(
    open_page: Callable[..., Any], url: str, scheme: str, size: dict[str, Any]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="make test-browser")
    page = open_page(url, color_scheme=scheme, **size)
    page.evaluate("$('desk').open = true; setMood('warm=0.5 + calibrated=0.5')")
    page.check("#compare")
    say(page)
    wait(page)
    page.evaluate("complain(new Error('as an example'))")
    found = axe.Axe().run(page).response["violations"]
    assert [(fault["id"], fault["impact"]) for fault in found] == []


def test_phone_has_all_of_it_without_scrolling_sideways(
    open_page: Callable[..., Any], url: str
) -> None:
    page = open_page(url, **PHONE)
    assert not page.is_visible("#strips")
    page.locator("#desk summary").focus()
    page.keyboard.press("Enter")
    assert page.is_visible("#strips")
    slider = page.get_by_label("warm", exact=True).bounding_box()
    assert slider["height"] >= 24
    page.keyboard.press("Enter")
    page.check("#compare")
    say(page)
    wait(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.is_visible("#send")


def test_error_is_shown_and_the_message_kept(open_page: Callable[..., Any], url: str) -> None:
    page = open_page(url)
    page.evaluate("$('heat').max = ''; $('seed').value = ''")
    page.evaluate("body = ((old) => (...asked) => ({ ...old(...asked), temperature: -1 }))(body)")
    page.fill("#prompt", PROMPT)
    page.press("#prompt", "Enter")
    page.wait_for_selector(".problem")
    assert "temperature" in page.inner_text(".problem")
    assert page.input_value("#prompt") == PROMPT
    assert page.evaluate("history.length") == 0


def test_failed_second_answer_leaves_the_first(open_page: Callable[..., Any], url: str) -> None:
    page = open_page(url)
    say(page)
    wait(page)
    first = shown(page)
    page.evaluate("body = ((old) => (...asked) => ({ ...old(...asked), temperature: -1 }))(body)")
    page.click("#again")
    page.wait_for_selector(".problem")
    assert shown(page) == first
    assert page.evaluate("history.at(-1).content") == first
    assert page.input_value("#prompt") == ""


def test_new_chat_ends_the_running_reply_and_is_empty(
    open_page: Callable[..., Any], default_url: str
) -> None:
    page = open_page(default_url)
    say(page, "Tell me about the sea.", 400)
    page.wait_for_function("running && running.reply.tokens.length >= 2", timeout=300_000)
    page.click("#fresh")
    page.wait_for_function("!running")
    assert page.evaluate("history.length") == 0
    assert page.locator(".reply").count() == 0
    assert page.is_visible("#hello")
    assert page.is_visible("#send")


def test_page_asks_for_the_key(browser: Any, tiny_model_path: Path, vectors: Path) -> None:
    options = ("-m", tiny_model_path, "--vectors", vectors, "--api-key", "secret-key")
    for url in serving(*options):
        page = browser.new_page(bypass_csp=True)
        page.goto(url + "/")
        page.wait_for_selector("#api-key", state="visible")
        page.fill("#api-key", "secret-key")
        page.press("#api-key", "Tab")
        page.wait_for_selector(".strip", state="attached")
        say(page)
        wait(page)
        assert shown(page)
        page.close()


def test_base_model_continues_the_text(
    open_page: Callable[..., Any], tiny: Callable[[str], Any]
) -> None:
    for url in serving("-m", tiny("gpt2").path):
        page = open_page(url)
        say(page)
        wait(page)
        assert shown(page)
