"""The page in headless Chromium: the laws that it keeps, on a real server."""

from __future__ import annotations

import ast
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsing
import pytest
from browsing import MESSAGE, PROMPT, Paced, Watched, choose
from test_leaving import until
from test_page import log_of
from test_trust import ring

pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(bool(browsing.MISSING), reason=browsing.MISSING)
CHAT = "/v1/chat/completions"
ANSWERED = ".answer .tools button"
PROBES = (
    "<img src=x onerror='window.ran=1'>",
    "<script>window.ran=1</script>",
    "<svg onload='window.ran=1'><iframe srcdoc='<script>parent.ran=1</script>'>",
    "[a](javascript:window.ran=1) [b](JaVa\tScRiPt:window.ran=1) [c](data:text/html,<script>window.ran=1</script>)",
    "![leak](https://evil.example/p.png) ![](//evil.example/q.png) <https://evil.example/r>",
    "`<b onmouseover=window.ran=1>` **<i>** | a |\n|---|---|\n| <img src=//evil.example/s onerror=window.ran=1> |",
    "<style>@import 'https://evil.example/t.css'</style><link rel=stylesheet href=https://evil.example/u.css>",
    "<form action=https://evil.example><button autofocus onfocus=window.ran=1>",
    "'\"--></textarea></title><img src=x onerror=window.ran=1>",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing.chromium() as opened:
        yield opened


def ask(page: Any, text: str, area: str = MESSAGE) -> None:
    page.fill(area, text)
    page.press(area, "Control+Enter")


def answered(page: Any, count: int = 1, view: str = "#chat") -> list[str]:
    """What the answers of a view say, once so many are whole."""
    page.wait_for_function(
        "([view, count]) => document.querySelectorAll(`${view} .tools`).length >= count"
        " && [...document.querySelectorAll(`${view} .tools`)].every((one) => one.childNodes.length)",
        arg=[view, count],
    )
    return page.locator(f"{view} .answer .said:not(.differs)").all_inner_texts()


def alone(server: Any, model: str, text: str, **more: Any) -> str:
    asked = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "seed": 0, **more}
    return str(server.ask(CHAT, asked)[2]["choices"][0]["message"]["content"])


def raw(page: Any, view: str = "#chat") -> list[str]:
    """The texts of the answers as they came, from what the page would download."""
    with page.expect_download() as loading:
        page.click(f"{view} button:text-is('Download')")
    told = json.loads(Path(loading.value.path()).read_text("utf-8"))
    return [one["answer"]["text"] if "answer" in one else one["text"] for one in told]


# 1


def test_nothing_that_is_answered_runs_or_leads_elsewhere(browser: Any, served: Any) -> None:
    with Watched(browser, served.port) as tab:
        page = tab.open()
        tab.fake_answer(*"\n\n".join(PROBES))
        ask(page, PROBES[0])
        answered(page)
        assert page.locator("#chat .said img, #chat .said script, #chat .said iframe, #chat .said style").count() == 0
        links = page.locator("#chat .said a")
        hrefs = [links.nth(at).get_attribute("href") for at in range(links.count())]
        rels = {links.nth(at).get_attribute("rel") for at in range(links.count())}
        assert "https://evil.example/r" in hrefs and rels == {"noopener noreferrer nofollow"}
        assert all(href.startswith("https://evil.example/") for href in hrefs)  # what may be clicked, by a person
        assert "leak (https://evil.example/p.png)" in page.inner_text("#chat .said")
        assert page.evaluate("window.ran") is None


def test_nothing_that_is_named_or_told_runs(browser: Any, served: Any) -> None:
    names = [{"id": probe, "object": "model", "parent": "b", "halter": {}} for probe in PROBES]
    runs = [{"name": probe, "finished": False, "bytes": 9, "changed": 1} for probe in PROBES]
    line = {"step": 1, "loss": 2.0, "trouble": PROBES[0], "trainee": 1, PROBES[1]: 3, "epoch": 1.0}
    card = {"name": PROBES[0], "kind": "adapter", "method": PROBES[1], "licence": PROBES[2], "parameters": 1}
    card |= {"methods": [{"name": "x", PROBES[3]: PROBES[4]}], "template": PROBES[5], "base": {"name": PROBES[6]}}
    scores = {"data": PROBES[0], "rows": 1, "base": {PROBES[7]: 1}, "adapter": {}}
    broken = {"name": PROBES[2], "kind": "adapter", "unusable": PROBES[0]}
    with Watched(browser, served.port, may=["status of 400"]) as tab:
        tab.fake("**/v1/models", {"data": [{"id": "b", "halter": {}}, *names]})
        tab.fake("**/ui/runs", {"runs": runs})
        next = {"x_halter_next": "9", "x_halter_file": "f"}
        tab.fake("**/ui/runs/*/metrics?*", f"{json.dumps(line)}\n", "text/plain", **next)
        tab.fake("**/ui/cards", {"cards": [{**card, "scores": scores}, broken]})
        error = {"error": {"message": PROBES[0], "type": "x", "param": None, "code": PROBES[1]}}
        tab.fake("**/v1/chat/completions", error, status=400)
        page = tab.open()
        choose(page, "#chat select", PROBES[0])
        ask(page, "Hi")
        answered(page)
        assert PROBES[0] in page.inner_text("#chat .failed")
        for view, there in (("watch", "svg.chart"), ("adapters", "table"), ("compare", ".pane")):
            page.goto(f"{tab.home}#{view}")
            page.wait_for_selector(f"#{view} {there}", state="attached")
            assert page.locator(f"#{view} :is(script, iframe, style, img)").count() == 0
        assert PROBES[1] in page.locator("#adapters .tag").first.text_content()
        assert page.evaluate("window.ran") is None


def test_the_policy_holds_whatever_a_script_tries(browser: Any, served: Any) -> None:
    with Watched(browser, served.port, may=["."]) as tab:
        page = tab.open()
        for code in (
            "document.body.innerHTML = 'x'",
            "document.body.insertAdjacentHTML('beforeend', 'x')",
            "eval('1')",
        ):
            tried = f"try {{ {code}; done(''); }} catch (error) {{ done(error.name); }}"  # not from the debugger's line
            assert page.evaluate(f"new Promise((done) => setTimeout(() => {{ {tried} }}))") in (
                "TypeError",
                "EvalError",
            )
        assert page.evaluate("fetch('https://evil.example/').then(() => 'sent', () => 'held')") == "held"
        assert set(page.evaluate("window.violations")) >= {"require-trusted-types-for", "connect-src"}
        tab.faults.clear()
        page.evaluate("window.violations = []")


# 2


def test_stop_ends_the_work(browser: Any, world: Any) -> None:
    with world.server() as server, Watched(browser, server.port) as tab:
        Paced(server)
        page = tab.open()
        page.fill("#chat input[max='1048576']", "400")
        endless(page, world)
        for press in (lambda: page.click("#chat button:has-text('Stop')"), lambda: page.keyboard.press("Escape")):
            before = len(server.records)
            ask(page, "Go on")
            page.wait_for_selector("#chat .said.running :text-matches('.')")
            press()
            until(lambda before=before: len(server.records) > before)
            assert server.records[-1]["finish"] == ["cancelled"] and server.records[-1]["completion_tokens"] < 400
            page.wait_for_selector("#chat .facts:last-of-type :text('stopped')")
        until(lambda: server.service.admission.answers == 0)


def endless(page: Any, world: Any) -> None:
    """From now on no answer ends by itself."""
    bias = dict.fromkeys(map(str, world.tokenizer.stop_ids), -100)

    def longer(route: Any) -> None:
        route.continue_(post_data=json.dumps({**route.request.post_data_json, "logit_bias": bias}))

    page.route("**/v1/chat/completions", longer)


# 3


def test_panes_say_what_each_model_says_alone_and_are_one_batch(browser: Any, world: Any) -> None:
    with world.server() as server, Watched(browser, server.port) as tab:
        models = ("tiny", "lora", "loreft", "tiny")
        wanted = [alone(server, model, "Where is Zürich?", max_tokens=24) for model in models]
        paced = Paced(server)
        page = tab.open("#compare", ".pane")
        for _ in range(2):
            page.click("text=Add a pane")
        for at, model in enumerate(models):
            page.locator("#compare .pane select").nth(at).select_option(model)
        page.click("text=Options of all panes")
        page.fill("#compare .shared input[max='1048576']", "24")
        ask(page, "Where is Zürich?", PROMPT)
        answered(page, 4, "#compare")
        assert raw(page, "#compare") == wanted
        assert paced.most == 4
        told = page.locator("#compare .facts").all_inner_texts()
        digest = {one["name"]: one["digest"] for record in server.records for one in record["adapters"]}
        for model, facts in zip(models, told, strict=True):
            assert (f"{model}@{digest[model][:8]}" if model in digest else "digest not known") in facts
            assert "greedy" in facts and "seed 0" in facts
        assert page.locator("#compare .who").all_inner_texts() == list(models)


# 4


def test_another_choice_while_an_answer_comes_changes_nothing_of_it(browser: Any, world: Any) -> None:
    with world.server() as server, Watched(browser, server.port) as tab:
        wanted = {model: alone(server, model, "Go on", max_tokens=60) for model in ("lora", "dora")}
        Paced(server)
        page = tab.open()
        page.fill("#chat input[max='1048576']", "60")
        choose(page, "#chat select", "lora")
        ask(page, "Go on")
        page.wait_for_selector("#chat .said.running")
        choose(page, "#chat select", "dora")
        page.fill("#chat input[max='1048576']", "1")
        answered(page)
        assert raw(page) == [wanted["lora"]] and page.inner_text("#chat .who") == "lora"
        assert "lora@" in page.inner_text("#chat .facts")
        page.click("text=New conversation")
        page.fill("#chat input[max='1048576']", "60")
        ask(page, "Go on")
        answered(page)
        assert raw(page) == [wanted["dora"]] and page.inner_text("#chat .who") == "dora"


# 5


def long_text() -> str:
    block = "# Head\n\nSome *words* with `code` and [a link](https://example.org/x).\n\n- one\n- two\n  - three\n\n"
    block += "```py\ndef f(x):\n    return x  # **not bold**\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n> quoted\n\n"
    return (block * 500)[:100_000]


GROW = """async ([text, size]) => {
  const { Growing } = await import("/ui/markdown.js");
  const made = (pieces) => {
    const node = document.createElement("div");
    const growing = new Growing(node);
    for (const piece of pieces) { growing.add(piece); growing.show(false); }
    growing.show();
    return [node.textContent, node.querySelectorAll("*").length, growing.parsed];
  };
  const pieces = [];
  for (let at = 0; at < text.length; at += size) pieces.push(text.slice(at, at + size));
  return [made([text]), made(pieces)];
}"""


def test_a_long_answer_is_looked_at_a_few_times_not_once_a_token(browser: Any, served: Any) -> None:
    with Watched(browser, served.port) as tab:
        page = tab.open()
        text = long_text()
        whole, grown = page.evaluate(GROW, [text, 20])
        assert grown[:2] == whole[:2] and whole[2] < 2 * len(text)
        # 5,000 pieces; each time only the open end is read again, which is about a block: 100 letters, 5,000 times.
        assert grown[2] < 20 * len(text)
        # What has no ends is no more work than what has: brackets, stars and ticks that nothing closes.
        for mark in ("*", "_", "`", "[", "![", "**a", "`` ", "~~", "> ", "- ", "|", "http://", "\\"):
            page.evaluate(GROW, [mark * (20_000 // len(mark)), 20_000])


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_an_answer_in_pieces_is_the_answer_as_a_whole(size: int, browser: Any, served: Any) -> None:
    hard = "a|b\n---|--\n1|2\n\ntext\n- x\n\n- y\n  more\n\npara\n# head\n> q\n> r\n\n"
    hard += "```\ncode\n\n# not\n```\n***\n1. a\n2. b\nend"
    with Watched(browser, served.port) as tab:
        whole, grown = tab.open().evaluate(GROW, [hard + "\n\n" + "*a* **b** `c` _d_ ~~e~~\n" * 3, size])
        assert grown[:2] == whole[:2]


# 6


def test_a_connection_that_is_cut_is_told_and_the_text_stays(browser: Any, world: Any) -> None:
    with world.server() as server, Watched(browser, server.port, may=["ERR_"]) as tab:
        Paced(server)
        page = tab.open()
        page.fill("#chat input[max='1048576']", "400")
        endless(page, world)
        ask(page, "Go on")
        page.wait_for_selector("#chat .said.running :text-matches('.')")

        def cut() -> None:
            for connection in list(server.server.server_state.connections):
                connection.transport.abort()

        server.loop.call_soon_threadsafe(cut)
        page.wait_for_selector("#chat .failed")
        assert "ended before the answer was whole" in page.inner_text("#chat .failed")
        assert page.inner_text("#chat .said").strip() and page.input_value(MESSAGE) == ""
        page.route("**/v1/chat/completions", lambda route: route.abort())
        ask(page, "Again")
        page.wait_for_selector("#chat .failed >> nth=1")
        assert "cannot be reached" in page.locator("#chat .failed").nth(1).inner_text()
        assert page.input_value(MESSAGE) == "Again"


def test_an_error_within_a_stream_is_told(browser: Any, served: Any) -> None:
    with Watched(browser, served.port) as tab:
        page = tab.open()
        events = [{"choices": [{"index": 0, "delta": {"content": "So far"}}]}, {"error": {"message": "No more"}}]
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        tab.fake("**/v1/chat/completions", body, "text/event-stream")
        ask(page, "Hi")
        assert answered(page) == ["So far"] and page.inner_text("#chat .failed") == "No more"


# 7


def test_a_key_is_asked_for_and_outlives_a_reload_but_the_chat_does_not(browser: Any, world: Any) -> None:
    with world.server(admit=ring().admit) as server, Watched(browser, server.port, may=["status of 401"]) as tab:
        page = tab.open(ready="#entry:not([hidden])")
        assert page.evaluate("document.activeElement.id") == "key" and page.locator("#chat").is_hidden()
        page.keyboard.type("nobody")
        page.keyboard.press("Enter")
        page.wait_for_selector("#trouble:text('not known')")
        page.fill("#key", "of-law")
        page.keyboard.press("Enter")
        page.wait_for_selector("#chat:not([hidden]) option", state="attached")
        assert page.locator("#chat option").all_inner_texts() == ["tiny (base)", "lora"]
        ask(page, "Hi")
        answered(page)
        stores = "[JSON.stringify(localStorage), document.cookie, location.href, sessionStorage['halter.key']]"
        kept, cookie, address, key = page.evaluate(stores)
        assert "of-law" not in kept + cookie + address and key == "of-law"
        page.reload()
        page.wait_for_selector("#chat:not([hidden]) option", state="attached")
        assert page.locator("#chat .answer").count() == 0
        page.click("text=Forget the key")
        page.wait_for_selector("#entry:not([hidden])")
        assert page.evaluate("sessionStorage.length") == 0
        # Behind the address, where it does not stay.
        page.goto("about:blank")
        tab.open("#key=of-all")
        assert page.url == tab.home and "dora" in page.inner_text("#chat select")


# 8


SPLIT = """async (bytes) => {
  const { chat } = await import("/ui/api.js");
  const whole = new Uint8Array(bytes);
  const said = async (pieces) => {
    const start = (out) => { pieces.forEach((piece) => out.enqueue(piece)); out.close(); };
    window.fetch = async () => new Response(new ReadableStream({ start }));
    let text = "";
    const told = await chat({}, null, { begun() {}, text: (piece) => (text += piece) });
    return JSON.stringify([text, told]);
  };
  const found = new Set([await said([whole]), await said([...whole].map((one) => new Uint8Array([one])))]);
  for (let at = 1; at < whole.length; at += 1) found.add(await said([whole.slice(0, at), whole.slice(at)]));
  return [...found];
}"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_stream_cut_at_any_byte_says_the_same(end: str, browser: Any, served: Any) -> None:
    words = ["Zürich 你好 ", "🙂\n\ndata: no", "\u2028 end"]
    events = [{"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]} for word in words]
    usage = {"completion_tokens": 3}
    events += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": usage}]
    told = [json.dumps(event, ensure_ascii=False) for event in events]
    body = f": hello{end}{end}" + "".join(f"data: {one}{end}{end}" for one in (*told, "[DONE]"))
    with Watched(browser, served.port) as tab:
        (only,) = tab.open().evaluate(SPLIT, list(body.encode()))
    assert json.loads(only)[0] == "".join(words)
    assert json.loads(only)[1] == {"finish": "stop", "usage": usage, "adapters": None, "contextFull": False}


# 9


@pytest.fixture(scope="module")
def shown(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with two runs to look at."""
    folder = tmp_path_factory.mktemp("runs")
    for number, name in enumerate(("first", "second")):
        lines = [
            {"step": step, "loss": 4 / (step + number), "grad_norm": 1.0, "learning_rate": 1e-4, "attempt": 1}
            for step in range(1, 40)
        ]
        lines += [{"step": 20, "eval_loss": 1.5}, {"step": 39, "loss": 9.0, "trouble": "spike", "applied": False}]
        log_of(folder / name, *(json.dumps(line) + "\n" for line in lines))
    with world.server(runs=(str(folder),)) as server:
        server.folder = folder
        yield server


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 320)])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_window(
    scheme: str, width: int, browser: Any, shown: Any
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with Watched(browser, shown.port, bypass_csp=True, color_scheme=scheme) as tab:
        page = tab.open()
        page.set_viewport_size({"width": width, "height": 700})
        tab.fake_answer(long_text()[:400] + "\u202e", usage={"completion_tokens": 3})
        ask(page, "Hello " * 30 + "x" * 60)
        answered(page)
        looked_at(page, axe, "chat", width)
        page.goto(f"{tab.home}#compare")
        ask(page, "Hello", PROMPT)
        answered(page, 2, "#compare")
        page.click("#compare summary >> nth=0")
        looked_at(page, axe, "compare", width)
        page.locator("#compare .under select").select_option("0")
        looked_at(page, axe, "differences", width)
        for view, there in (("watch", "svg.chart"), ("adapters", "dl")):
            page.goto(f"{tab.home}#{view}")
            page.wait_for_selector(f"#{view} {there}", state="attached")
            looked_at(page, axe, view, width)
        page.goto(f"{tab.home}#watch")
        page.click("text=Show tables")
        looked_at(page, axe, "tables", width)


def looked_at(page: Any, axe: Any, view: str, width: int) -> None:
    found = axe.run(page)
    assert found.violations_count == 0, f"{view}: {found.generate_report()}"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, view


def test_axe_finds_nothing_where_a_key_is_asked_for(browser: Any, world: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with world.server(admit=ring().admit) as server:
        with Watched(browser, server.port, may=["status of 401"], bypass_csp=True) as tab:
            looked_at(tab.open(ready="#entry:not([hidden])"), axe, "key", 1280)


# 10


def test_the_keyboard_is_enough(browser: Any, served: Any) -> None:
    with Watched(browser, served.port) as tab:
        page = tab.open()
        reached = []
        for _ in range(20):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate("(document.activeElement.ariaLabel ?? document.activeElement.textContent).trim()")
            )
            if reached[-1] == "Message":
                break
        assert reached[:5] == ["Skip to the content", "Chat", "Compare", "Watch", "Adapters"] and "Message" in reached
        page.keyboard.type("Hello")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "SELECT"
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Control+Enter")
        answered(page)
        assert page.evaluate("document.activeElement.ariaLabel") == "Message"
        assert "answered" in page.inner_text("#status")
        assert page.get_attribute("#chat .log", "aria-live") == "off"


def test_the_keyboard_is_enough_to_compare_and_to_vote(browser: Any, served: Any) -> None:
    with Watched(browser, served.port) as tab:
        page = tab.open("#compare", ".pane")
        page.evaluate("document.activeElement.blur()")
        pressed_until(page, "Prompt")
        page.keyboard.type("Hello")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#compare .vote:not([hidden])")
        pressed_until(page, "B")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=1 vote kept in this browser")


def pressed_until(page: Any, name: str) -> None:
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("(document.activeElement.ariaLabel ?? document.activeElement.textContent).trim()") == name:
            return
    raise AssertionError(f"no way to {name}")


# What else it does.


REQUESTS = """async (body) => {
  const { asCurl, asPython, useKey } = await import("/ui/api.js");
  const without = [asCurl(body), asPython(body)];
  useKey("secret");
  return [...without, asCurl(body), asPython(body)];
}"""


def test_a_request_is_copied_as_it_was_sent(browser: Any, served: Any) -> None:
    said = 'It\'s "5" $HOME `id` \\ \n\u2028 🙂 Zürich'
    body = {"model": "a.b", "messages": [{"role": "user", "content": said}], "temperature": 0.5, "n": None, "x": [True]}
    with Watched(browser, served.port) as tab:
        found = tab.open().evaluate(REQUESTS, body)
    assert "secret" not in "".join(found)
    for curl in found[::2]:
        words = shlex.split(curl)
        assert json.loads(words[words.index("-d") + 1]) == body and words[1].endswith("/v1/chat/completions")
    for code in found[1::2]:
        (call,) = [one for one in ast.walk(ast.parse(code)) if isinstance(one, ast.Call) and len(one.keywords) > 2]
        assert {one.arg: ast.literal_eval(one.value) for one in call.keywords} == body
    assert '"$HALTER_KEY"' not in found[0] and "Bearer $HALTER_KEY" in found[2]
    assert 'os.environ["HALTER_KEY"]' in found[3] and "import os" not in found[1]


def test_a_base_whose_digest_is_made_meanwhile_is_told_by_it(browser: Any, served: Any) -> None:
    with Watched(browser, served.port) as tab:
        page = tab.open()
        tab.fake_answer("Yes.")
        choose(page, "#chat select", "tiny")
        ask(page, "Known?")
        page.wait_for_selector("#chat .facts:has-text('digest not known')")
        tab.fake("**/v1/models/tiny", {"id": "tiny", "halter": {"digest": "0123456789" * 6, "sees": False}})
        ask(page, "And now?")
        page.wait_for_selector("#chat .facts >> nth=1 >> text=tiny@01234567")


def test_a_blind_vote_hides_who_answers_until_it_is_cast(browser: Any, served: Any) -> None:
    with Watched(browser, served.port) as tab:
        page = tab.open("#compare", ".pane")
        for at, model in enumerate(("tiny", "lora")):
            page.locator("#compare .pane select").nth(at).select_option(model)
        page.check("#compare .tick input")
        ask(page, "Hi", PROMPT)
        page.wait_for_selector("#compare .vote:not([hidden])")
        shown = page.inner_text("#compare")
        assert "Answer A" in shown and "Answer B" in shown and "lora" not in shown and "tiny" not in shown
        assert page.locator("#compare article").evaluate_all("all => all.map(one => one.ariaLabel)") == [
            "Answer of Answer A",
            "Answer of Answer B",
        ]
        page.click("#compare .vote button:text-is('B')")
        names = page.locator("#compare .who").all_inner_texts()
        assert sorted(names) == ["lora", "tiny"]
        with page.expect_download() as loading:
            page.click("text=Export the votes")
        (vote,) = json.loads(Path(loading.value.path()).read_text("utf-8"))
        assert vote["choice"] == 1 and vote["blind"] and [pane["model"] for pane in vote["panes"]] == names
        assert vote["prompt"] == "Hi" and f"{names[1]} 1" in page.inner_text("#compare .kept")
        page.reload()
        page.wait_for_selector("text=1 vote kept in this browser")
        page.click("text=Forget them")
        assert page.evaluate("localStorage.getItem('halter.votes')") is None


DIFF = """async ([before, after]) => {
  const { differences } = await import("/ui/diff.js");
  return differences(before, after).map(({ kind, text }) => [kind, text]);
}"""


def test_differences_are_words_and_give_both_texts_back(browser: Any, served: Any) -> None:
    with Watched(browser, served.port) as tab:
        page = tab.open()
        found = page.evaluate(DIFF, ["It pays 12 coins.", "It pays 22 coins."])
        assert found == [["same", "It pays "], ["gone", "12"], ["added", "22"], ["same", " coins."]]
        pairs = [
            ("", ""),
            ("a", ""),
            ("", "b"),
            ("a b c d", "d c b a"),
            ("x y", "x  y"),
            ("Zürich 你好", "你好 Zürich!"),
        ]
        pairs += [("a b c a b b a", "c b a b a c"), ("one two three", "one three"), ("w " * 3000, "v " * 3000)]
        for before, after in pairs:
            parts = page.evaluate(DIFF, [before, after])
            assert "".join(text for kind, text in parts if kind != "added") == before
            assert "".join(text for kind, text in parts if kind != "gone") == after


def test_a_run_is_read_on_while_it_grows(browser: Any, shown: Any) -> None:
    asked: list[str] = []
    with Watched(browser, shown.port) as tab:
        tab.page.on("request", lambda request: asked.append(request.url))
        page = tab.open("#watch", "#watch svg.chart")
        page.uncheck("#watch .watch-side .tick input")
        page.locator("#watch .runs input").nth(0).check()
        page.locator("#watch .runs input").nth(1).check()
        page.wait_for_function("() => document.querySelectorAll('#watch figure:first-child .key').length === 2")
        assert "spike, step left out" in page.inner_text("#watch .guards")
        size = (shown.folder / "first" / "metrics.jsonl").stat().st_size
        log_of(shown.folder / "first", '{"step": 40, "loss": 0.0625, "attempt": 1}\n')
        page.wait_for_selector("#watch figure:first-child .key:has-text('0.0625')")
        assert any(url.endswith(f"/ui/runs/first/metrics?after={size}") for url in asked)
        # A run that begins later is there, too.
        log_of(shown.folder / "third", '{"step": 1, "loss": 1.0}\n')
        page.wait_for_selector("#watch .runs input[value=third]")
        page.click("text=Show tables")
        assert "0.0625" in page.inner_text("#watch figure:first-child table")


LOG = """async (lines) => {
  const { RunLog, thinned, smoothed, ticks } = await import("/ui/curves.js");
  const log = new RunLog();
  for (const line of lines) log.add(line);
  const points = [...Array(100000).keys()].map((at) => [at, at === 54321 ? 9 : Math.sin(at / 999)]);
  const kept = thinned(points, 500);
  return {
    series: Object.fromEntries([...log.series].map(([name, one]) => [name, [one.steps, one.values]])),
    events: log.events, kept: kept.length, peak: Math.max(...kept.map(([, value]) => value)),
    order: kept.every(([x], at) => at === 0 || x > kept[at - 1][0]),
    level: smoothed([3, 3, 3]), ticks: ticks(0, 10, 5),
  };
}"""


def test_a_log_becomes_curves(browser: Any, served: Any) -> None:
    records: list[Any] = [{"step": step, "loss": float(step), "attempt": 1} for step in (1, 2, 3, 4)]
    records += [{"step": step, "loss": step / 10, "attempt": 2} for step in (3, 4)]
    records += [{"step": 5, "trainee": 1, "loss": 7.0, "attempt": 2}, {"step": 5, "alarm": "spike", "loss": 9.0}]
    records += [
        {"step": 5, "loss": None, "trouble": "non-finite", "applied": False},
        {"step": 5, "kept_step": 4},
        7,
        None,
    ]
    text = "".join(json.dumps(one) + "\n" for one in records)
    with Watched(browser, served.port) as tab:
        page = tab.open()
        for pieces in ([text], list(text), [text[:50] + "\n", "torn{\n" + text[50:]]):
            found = page.evaluate(LOG, pieces)
            if len(pieces) == 2:
                continue  # a torn line spoils itself alone
            assert found["series"]["loss"] == [[1, 2, 3, 4], [1.0, 2.0, 0.3, 0.4]]
            assert found["series"]["loss#2"] == [[5], [7.0]]
            assert [event["what"] for event in found["events"]] == ["non-finite, step left out", "kept step 4"]
        assert found["kept"] <= 1002 and found["peak"] == 9 and found["order"]
        assert found["level"] == pytest.approx([3, 3, 3]) and found["ticks"] == [0, 2, 4, 6, 8, 10]


def test_a_picture_goes_along_as_a_data_uri(browser: Any, served: Any, tmp_path: Path) -> None:
    picture = tmp_path / "dot.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    asked: list[Any] = []
    with Watched(browser, served.port) as tab:
        page = tab.open()
        choose(page, "#chat select", "tiny")
        assert page.locator("#chat button:has-text('Attach a picture')").is_disabled()  # it sees none
        choose(page, "#chat select", "ia3")
        tab.fake_answer("A dot.")
        page.on("request", lambda request: asked.append(request.post_data_json) if request.post_data else None)
        page.set_input_files("#chat input[type=file]", str(picture))
        page.wait_for_selector("#chat .pictures img")
        ask(page, "What is this?")
        assert answered(page) == ["A dot."]
        first, second = asked[0]["messages"][0]["content"]
        assert first["image_url"]["url"].startswith("data:image/png;base64,iVBORw0KGgo")
        assert second == {"type": "text", "text": "What is this?"} and page.locator("#chat .pictures").is_hidden()


def test_options_are_asked_for_and_told(browser: Any, served: Any) -> None:
    asked: list[Any] = []
    with Watched(browser, served.port) as tab:
        page = tab.open()
        page.on("request", lambda request: asked.append(request.post_data_json) if request.post_data else None)
        page.fill("#chat .options textarea", "Be brief.")
        page.fill("#chat input[max='2']", "0.7")
        page.fill("#chat input[max='1048576']", "3")
        ask(page, "Hi")
        answered(page)
        page.fill("#chat input[max='2']", "9")
        ask(page, "Not sent")
        assert len(asked) == 1 and asked[0]["messages"][0] == {"role": "system", "content": "Be brief."}
        assert {name: asked[0][name] for name in ("temperature", "top_p", "max_tokens", "seed")} == {
            "temperature": 0.7,
            "top_p": 1,
            "max_tokens": 3,
            "seed": 0,
        }
        told = page.inner_text("#chat .facts")
        assert "temperature 0.7" in told and "at most 3 tokens" in told and "3 tokens" in told
        page.fill("#chat input[max='2']", "0")
        page.fill(MESSAGE, "And now?")
        page.press(MESSAGE, "Control+Enter")
        answered(page, 2)
        assert [message["role"] for message in asked[1]["messages"]] == ["system", "user", "assistant", "user"]
