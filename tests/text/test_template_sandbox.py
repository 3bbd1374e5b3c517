"""Templates of strangers: hostile ones end within the bounds, honest ones render as Jinja does."""

from __future__ import annotations

import os
import resource
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.errors import HalterError, Refusal
from halter.text.chat.conversations import ChatTemplate
from halter.text.chat.render import Renderer
from halter.text.templates import rendering, sandbox
from halter.text.templates.sandbox import Sandbox

# What ends by the clock costs a second of processor time each, so only a few of them are run here.
ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "big numbers": "{% set ns = namespace(n=7) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "long search": "{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{% if (s ~ i) in s %}{% endif %}{% endfor %}",
    "filter chain": "{{ ('a' * 99999999) | upper | lower | title | list | length }}",
}
BIT_BY_BIT = ("doubling", "lists", "indent")
"""Of GREEDY those that fill memory bit by bit: where the system hands it out slowly, the clock ends them first."""
GREEDY = {
    "string times": "{{ 'a' * 10**9 }}",
    "list times": "{{ ([1] * 10**9) | length }}",
    "doubling": "{% set ns = namespace(s='aaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "lists": "{% set ns = namespace(l=[]) %}{% for i in range(40) %}{% set ns.l = ns.l + ns.l + [0] %}{% endfor %}",
    "format width": "{{ '%999999999d' % 3 }}",
    "format method": "{{ '{:>999999999}'.format('a') }}",
    "centre": "{{ 'a' | center(999999999) }}",
    "indent": "{{ ('a\n' * 9999) | indent(999999) }}",
    "join": "{{ range(9999) | join('a' * 99999) }}",
    "replace": "{{ ('a' * 99999).replace('a', 'a' * 99999) }}",
    "long loop": "{% for i in range(99999) %}{{ 'aaaaaaaaaaaaaaaa' }}{% endfor %}",
    "just over": "{{ 'a' * 1048577 }}",
    "batch": "{{ range(10) | batch(999999999, 'a') | list }}",
}
FORBIDDEN = {
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "deep source": "{{ " + "(" * 3000 + ")" * 3000 + " }}",
    "big range": "{% for i in range(10**9) %}{% endfor %}",
    "class walk": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr filter": "{{ '' | attr('__class__') | attr('__mro__') | list }}",
    "format escape": "{{ '{0.__class__.__mro__}'.format('') }}",
    "mutation": "{{ messages.append(1) }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "lorem ipsum": "{{ lipsum(n=99999) }}",
    "closing tag": "{% endfor %}",
    "namespace dunder": "{% set ns = namespace() %}{% set ns.__class__ = 3 %}{{ ns.__class__.__mro__ | list }}",
}
# Besides those above; the endless ones among them are for the long form alone.
MORE_ENDLESS = {
    "sorting": "{% for i in range(99999) %}{% if range(99999) | sort %}{% endif %}{% endfor %}",
    "grouping": "{% for i in range(9999) %}{% if range(9999) | groupby('real') %}{% endif %}{% endfor %}",
    "unique": "{% for i in range(99999) %}{% if range(99999) | unique | list %}{% endif %}{% endfor %}",
    "power": "{% set x = 7 ** 9999999 %}{{ x % 10 }}",
    "digits": "{{ (7 ** 999999) | string | length }}{{ 7 ** 9999999 % 3 }}",
    "word wrap": "{% for i in range(99999) %}{% if ('a ' * 99999) | wordwrap(1) %}{% endif %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "urls": "{% for i in range(9999) %}{% if ('www.a.b ' * 999) | urlize %}{% endif %}{% endfor %}",
    "batches": "{% for i in range(99999) %}{% if range(99999) | batch(2) | list %}{% endif %}{% endfor %}",
}
MORE_GREEDY = {
    "repeat filter": "{{ 'a' | center(10**8) | replace('a', 'b' * 10**8) }}",
    "slices": "{{ range(99999) | slice(99999) | list | length }}{{ [0] * 10**9 }}",
    "dict": "{% set ns = namespace(d={}) %}{% for i in range(99) %}{% set ns.d = [ns.d, ns.d] %}{% endfor %}{{ ns.d }}",
    "json": "{{ ([[1] * 9999] * 9999) | tojson }}",
    "tuple times": "{{ ((1, 2) * 10**9) | length }}",
    "format named": "{{ '{a:>999999999}'.format(a=1) }}",
    "percent star": "{{ '%*d' % (999999999, 3) }}",
    "zfill": "{{ 'a'.zfill(999999999) }}",
    "ljust": "{{ 'a'.ljust(999999999) }}",
    "expandtabs": "{{ ('\t' * 9999).expandtabs(999999) }}",
    "encode": "{{ ('a' * 99999999).encode('utf-32') | length }}{{ 'a' * 10**9 }}",
}


@pytest.fixture
def box() -> Any:
    box = Sandbox()
    yield box
    box.close()


def job(source: str, **variables: Any) -> dict[str, Any]:
    return {"source": source, "variables": {"messages": [], **variables}, "date": None}


def render(box: Sandbox, source: str, **variables: Any) -> str:
    text: str = box.run([job(source, **variables)])[0]["text"]
    return text


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_templates_are_killed_after_a_second(name: str, box: Sandbox) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(Refusal) as caught:
        box.run([job("fine"), job(ENDLESS[name])])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert caught.value.id == "template-too-slow" and 0.5 < used < 1.5
    assert render(box, "still {{ 1 + 1 }}") == "still 2"


def test_greedy_templates_end_by_their_size(box: Sandbox) -> None:
    # Children of earlier tests, and a fork of this large process before it becomes the worker, count as well.
    earlier = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    for name, source in GREEDY.items():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            assert box.run([job(source)])[0].get("kind") in ("memory", "output", "template"), name
        except Refusal as refusal:
            assert refusal.id == "template-too-slow" and name in BIT_BY_BIT, name
        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before.ru_utime
        assert used < 1.5, name
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10  # of any child, start included
    assert largest <= max(earlier, own, rendering.MEMORY_BYTES + (64 << 20))
    assert render(box, "{{ 'a' * 1048576 }}") == "a" * rendering.OUTPUT_CHARS


def hostile(box: Sandbox, sources: dict[str, str]) -> None:
    """Each ends within 1.5 s of processor time, by a refusal, an error or a harmless text."""
    slowest, ends = 0.0, Counter[str]()
    for name, source in sources.items():
        before = _children()
        try:
            kind = str(box.run([job(source)])[0].get("kind", "text"))
        except Refusal as refusal:
            kind = refusal.id
        except HalterError:
            kind = "died"
        box.close()  # a child's time counts when it has ended
        ends[kind] += 1
        slowest = max(slowest, _children() - before)
        assert _children() - before <= 1.5, (name, _children() - before)
    print(f"hostile templates: {len(sources)}, all ended, slowest {slowest:.2f} s (limit 1.5); {dict(ends)}")


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.nightly
def test_fifty_hostile_templates_end(box: Sandbox) -> None:
    sources = ENDLESS | MORE_ENDLESS | GREEDY | MORE_GREEDY | FORBIDDEN
    assert len(sources) >= 50
    hostile(box, sources)


def test_more_greedy_templates_end(box: Sandbox) -> None:
    hostile(box, MORE_GREEDY)


def test_forbidden_things_are_refused_or_empty(box: Sandbox) -> None:
    for name, source in FORBIDDEN.items():
        reply = box.run([job(source)])[0]
        assert reply.get("kind") == "template" or reply["text"] in ("", "[]"), (name, reply)
        assert "root:" not in str(reply) and "<class" not in str(reply)


def test_the_worker_knows_no_secrets_and_writes_no_files(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-4711")
    assert render(box, "x") == "x"
    process = box.process
    assert process is not None
    with open(f"/proc/{process.pid}/environ", "rb") as file:
        assert b"canary-4711" not in file.read()
    with open(f"/proc/{process.pid}/limits") as file:
        limits = {line[:26].strip(): line[26:].split()[:2] for line in file}
    assert limits["Max file size"] == ["0", "0"]
    assert all(0 < int(n) < 1 << 32 for n in limits["Max address space"])


PARTS = ["a", "{{ messages[0].content }}", "{{ messages | tojson }}", "{% for m in messages %}", "{% endfor %}"]
PARTS += ["{{ m.role }}", "{% if m %}", "{% endif %}", "\n", "  ", "{%- set x = 1 -%}", "{{ x }}", "{% break %}"]


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from(PARTS), max_size=8), content=st.text(max_size=5))
def test_honest_templates_render_as_in_this_process(parts: list[str], content: str) -> None:
    """The worker and the trusted path agree, and where no loop control is, a plain Jinja agrees with both."""
    source, variables = "".join(parts), {"messages": [{"role": "user", "content": content}]}
    here, there = (Renderer("t", trusted).render([job(source, **variables)])[0] for trusted in (True, False))
    assert str(here) == str(there)
    if isinstance(here, str) and "break" not in source:
        plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        plain.filters["tojson"] = rendering._tojson
        assert plain.from_string(source).render(variables) == here


def test_many_threads_and_a_fork_share_it(box: Sandbox) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda i: render(box, "{{ n }}" * 3, n=i), range(200)))
    assert texts == [f"{i}" * 3 for i in range(200)]
    mine = box.process
    child = os.fork()
    if child == 0:
        ok = render(box, "child") == "child" and box.process is not mine
        box.close()
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert render(box, "parent") == "parent" and box.process is mine
    assert threading.active_count() < 20


def test_a_worker_that_dies_is_said_so_and_replaced(box: Sandbox) -> None:
    render(box, "x")
    assert box.process is not None
    box.process.kill()
    box.process.wait()
    assert render(box, "{{ 1 }}") == "1"


def test_an_answer_that_nobody_waited_for_is_not_the_next_one_s(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(stream: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rendering, "receive", interrupted)
        render(box, "first")
    assert render(box, "second") == "second"


def test_built_in_templates_need_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(jobs: Any) -> Any:
        raise AssertionError("a built-in template went to the sandbox")

    monkeypatch.setattr(sandbox.sandbox, "run", never)
    for name in ("llama-2", "llama-3", "alpaca", "vicuna"):
        source = ChatTemplate.builtin(name).source
        assert Renderer(name, trusted=True).names(source)
        chat = [{"role": "user", "content": "q"}]
        reply = Renderer(name, trusted=True).render([job(source, messages=chat, eos_token="</s>")])[0]
        assert isinstance(reply, str) and "q" in reply
    with pytest.raises(AssertionError):
        Renderer("given", trusted=False).render([job("x")])


def test_a_source_beyond_reason_is_not_even_sent() -> None:
    reply = Renderer("long", trusted=False).render([job("x" * (1 << 20) + "y")])[0]
    assert isinstance(reply, Refusal) and reply.id == "template-failed"


def test_a_long_conversation_goes_in_parts(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its jobs hold each of its beginnings; the process has no memory for those of a thousand messages at once."""
    sizes: list[int] = []
    send = rendering.send
    monkeypatch.setattr(rendering, "send", lambda stream, jobs: sizes.append(len(jobs)) or send(stream, jobs))
    one = {"source": "{{ number }}", "date": None}
    replies = box.run([{**one, "variables": {"number": number}} for number in range(100)])
    assert [reply["text"] for reply in replies] == [str(number) for number in range(100)]
    assert sum(sizes) == 100 and max(sizes) == 16
