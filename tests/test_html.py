"""The page of the self-check in a real browser: what it shows, what it may never do, and who can read it."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import lacking, need_program
from records import at, run

from checkpoint import model, monitor
from checkpoint.incident import Incident, Quiet, State
from checkpoint.model import Checkpoint, OwnerState, Standing, Status, Step, StepStatus
from checkpoint.monitor import Finding, Policy, Reason, Severity
from checkpoint.render import html
from checkpoint.render.html import Page, PageRun

NOW = at(7200)
STORE = "memory/checkpoints"
ORIGIN = "http://page.test/"
ALIVE, DEAD = Standing(OwnerState.ALIVE), Standing(OwnerState.DEAD)
LONG = "w" * 3000

PLANTED = (
    "\"'><script>window.planted=1</script><img src=x onerror=window.planted=1><svg onload=window.planted=1>"
    "<a href='javascript:window.planted=1'>x</a><iframe srcdoc='<script>parent.planted=1</script>'></iframe>"
    "</title></style></script></svg></noscript><style>*{background:url(http://evil.test/a)}</style>"
    "<link rel=stylesheet href=http://evil.test/b><meta http-equiv=refresh content='0;url=http://evil.test/c'>"
    "<base href=http://evil.test/>]]>--><!-- {{planted}} ${planted} &lt;script&gt; &#60;script&#62;"
    "\x00\x1b[31m\u202egnp.exe\u2066\u200b\ufffe\ufdd0\ud800"
)


def page(*runs: PageRun, at_: datetime = NOW, **more: Any) -> Page:
    findings = [one.finding for one in runs if one.finding is not None] + list(more.pop("findings", ()))
    report = monitor.report(at_, more.pop("stores", (STORE,)), findings, len(runs), Policy())
    settings: dict[str, Any] = {
        "report": report,
        "old_at": at_ + timedelta(minutes=20),
        "unfinished": runs,
        "more": 0,
        "recent": (),
        "incidents": (),
        "resolved": (),
        "quiets": (),
    }
    return Page(**(settings | more))


def judged(checkpoint: Checkpoint, standing: Standing, store: str = STORE) -> PageRun:
    finding = monitor.judge(checkpoint, standing, NOW, Policy(), store)
    return PageRun(store, model.view(checkpoint, standing), finding)


def steps(*wanted: tuple[str, StepStatus, float | None, float | None], **more: Any) -> tuple[Step, ...]:
    return tuple(
        Step(
            name,
            status,
            attempts=0 if begun is None else 1,
            token=1,
            begun_at=None if begun is None else at(begun),
            ended_at=None if ended is None else at(ended),
            **more,
        )
        for name, status, begun, ended in wanted
    )


COMPLETED, FAILED, BEGUN = StepStatus.COMPLETED, StepStatus.FAILED, StepStatus.BEGUN
PENDING, SKIPPED = StepStatus.PENDING, StepStatus.SKIPPED


def empty() -> Page:
    return page()


def rich() -> Page:
    release = run(id="release-4c1de07a9b12")._replace(
        steps=steps(
            ("fetch-sources", COMPLETED, 0, 42),
            ("build", COMPLETED, 45, 640),
            ("unit-tests", COMPLETED, 645, 1320),
            ("lint", SKIPPED, None, 1325),
            ("publish-to-every-mirror-of-the-company", BEGUN, 1330, None),
            ("announce", PENDING, None, None),
            ("tidy", PENDING, None, None),
        ),
        progress_at=at(1330),
        handoff_to="night-shift",
    )
    backup = run(id="backup", workflow="backup")._replace(
        steps=steps(("dump", COMPLETED, 100, 900), ("encrypt", FAILED, 905, 930), ("upload", PENDING, None, None)),
        progress_at=at(930),
    )
    backup = backup._replace(steps=(backup.steps[0], backup.steps[1]._replace(error="gpg: no such key"), backup.steps[2]))
    report = run(id="report", workflow="report")._replace(
        steps=steps(("collect", COMPLETED, 6900, 7000), ("render", BEGUN, 7010, None), ("send", PENDING, None, None)),
        progress_at=at(7010),
    )
    waits = run(id="migrate", workflow="migrate")._replace(
        status=Status.BLOCKED, reason="waits for the approval of change 4711", progress_at=at(7100), lease=None
    )
    runs = (judged(release, DEAD), judged(backup, DEAD), judged(waits, Standing(OwnerState.NONE)), judged(report, ALIVE))
    torn = Finding(Severity.CRITICAL, Reason.DAMAGED, STORE, "invoices", "not JSON, or cut short: it ends within a text")
    gone = monitor.missing_store("srv/other/memory/checkpoints", "the store does not exist")
    stale = runs[0].finding
    failed = runs[1].finding
    assert stale is not None
    assert failed is not None
    done = run(id="nightly", workflow="nightly")._replace(lease=None, finished_at=at(3000))
    return page(
        *runs,
        findings=(torn, gone),
        stores=(STORE, "srv/other/memory/checkpoints"),
        more=3,
        recent=(
            done._replace(status=Status.COMPLETED),
            done._replace(status=Status.FAILED, id="sync", reason="the other side closed the connection", finished_at=at(60)),
            done._replace(status=Status.CANCELLED, id="import", reason="not needed any more", finished_at=at(9.5)),
        ),
        incidents=(
            Incident(torn, State.OPEN, at(7200), at(7200)),
            Incident(
                stale, State.ESCALATED, at(2000), at(7200), (Reason.ABANDONED, Reason.IN_DOUBT), Severity.WARNING, at(5000)
            ),
            Incident(failed, State.OPEN, at(2000), at(7200), (Reason.FAILED,), Severity.WARNING, at(2000), quiet=True),
        ),
        resolved=(Incident(stale._replace(id="nightly"), State.RESOLVED, at(1000), at(2900), resolved_at=at(3000)),),
        quiets=(
            Quiet("snooze", "backup", STORE, "ann", "the key arrives on Monday", at(2100), at(90000), at(930)),
            Quiet("silence", "test-*", None, "bob", "load tests", at(100), at(40000)),
        ),
    )


def hostile(words: str = PLANTED) -> Page:
    bad = run()._replace(
        id=words,
        workflow=words,
        run_id=words,
        agent=words,
        handoff_to=words,
        reason=words,
        steps=(
            *steps((words, FAILED, 1, 2), ("b" + words, BEGUN, 2, None), error=words, reason=words),
            *steps(("c" + words, PENDING, None, None), (LONG, SKIPPED, None, 4)),
        ),
        progress_at=at(4),
    )
    lease = bad.lease
    assert lease is not None
    bad = bad._replace(lease=lease._replace(owner=words))
    one = judged(bad, DEAD, words)
    blocked = PageRun(words, model.view(bad._replace(status=Status.BLOCKED), ALIVE), None)
    finding = Finding(Severity.CRITICAL, Reason.DAMAGED, words, words, words, owner=words, next=words, in_doubt=(words,))
    assert one.finding is not None
    incident = Incident(finding, State.OPEN, at(1), at(2), (Reason.DAMAGED,), Severity.CRITICAL, at(2), quiet=True)
    return page(
        one,
        blocked,
        findings=(finding, monitor.missing_store(words, words)),
        stores=(words, LONG),
        recent=(bad._replace(status=Status.FAILED, finished_at=at(9)),),
        incidents=(incident, incident._replace(quiet=False)),
        resolved=(incident._replace(resolved_at=at(9)),),
        quiets=(
            Quiet("snooze", words, words, words, words, at(1), at(9999)),
            Quiet("silence", words + "*", words, words, words, at(1), at(9999)),
        ),
    )


PAGES: dict[str, Callable[[], Page]] = {
    "empty": empty,
    "rich": rich,
    "hostile": hostile,
    "long": lambda: hostile(LONG),
    "right to left": lambda: hostile("\u05d0\u05d1\u05d2" * 200),
}


# --- without a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_well_formed(name: str) -> None:
    text = html.render(PAGES[name]())
    text.encode()
    root = ET.fromstring(text)
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    for element in root.iter():
        assert "style" not in element.attrib
        assert not [attribute for attribute in element.attrib if attribute.startswith("on") or attribute in ("href", "src")]
    assert [element.tag for element in root.iter() if element.tag in ("script", "link", "img", "iframe", "a", "form")] == [
        "script"
    ]


def test_the_same_page_gives_the_same_text() -> None:
    assert html.render(rich()) == html.render(rich())


def test_what_came_out_of_a_record_stands_on_one_line_and_cut() -> None:
    text = html.render(page(findings=(monitor.missing_store("a\nb\x1b[0m", LONG),)))
    assert "a\\nb\\x1b[0m" in text
    assert LONG[:500] not in text
    assert "\N{HORIZONTAL ELLIPSIS}" in text


def many_steps(count: int, *, begun: int) -> Checkpoint:
    done = tuple(Step(f"step-{n}", COMPLETED, 1, begun_at=at(n), ended_at=at(n + 1)) for n in range(begun))
    waiting = tuple(Step(f"step-{n}") for n in range(begun + 1, count))
    middle = Step(f"step-{begun}", BEGUN, 1, token=1, begun_at=at(begun))
    return run()._replace(steps=(*done, middle, *waiting), progress_at=at(begun))


def test_ten_thousand_steps_are_bounded_and_the_telling_ones_shown() -> None:
    big = many_steps(10_000, begun=5_000)
    big = big._replace(steps=(big.steps[0]._replace(status=FAILED), *big.steps[1:]))
    text = html.render(page(judged(big, DEAD)))
    assert len(text) < 1_000_000
    assert text.count("<rect class=") == html.MOST_BARS + 1
    for name in ("step-0", "step-5000", "step-5001", "step-4999"):
        assert f">{name}</text>" in text
    assert "40 of 10,000 steps are shown" in text
    told = re.search(r"left out: ([\d,]+) done, ([\d,]+) pending", text)
    assert told is not None
    assert sum(int(number.replace(",", "")) for number in told.groups()) == 9_960


def test_a_hundred_unfinished_runs_are_bounded() -> None:
    runs = [judged(many_steps(1000, begun=500)._replace(id=f"run-{n}"), DEAD) for n in range(100)]
    assert len(html.render(page(*runs))) < 2_000_000
    bad = hostile().unfinished[0]
    assert len(html.render(page(*[bad] * 100))) < 2_000_000


def test_a_thousand_incidents_are_bounded() -> None:
    one = rich().incidents[1]
    text = html.render(page(incidents=tuple(one._replace(finding=one.finding._replace(id=f"i{n}")) for n in range(1000))))
    assert "900 more left out here" in text


@pytest.mark.parametrize("skew", [-(10**9), -1, 0, 10**9])
def test_any_dates_make_a_picture(skew: int) -> None:
    odd = run()._replace(
        steps=steps(("a", COMPLETED, 10, skew), ("b", SKIPPED, None, skew), ("c", FAILED, skew, None), ("d", BEGUN, skew, None))
    )
    for standing in (ALIVE, DEAD):
        text = html.render(page(PageRun(STORE, model.view(odd, standing), None)))
        for x, width in re.findall(r'<rect class="\w+" x="([-\d.]+)%" y="\d+" width="([-\d.]+)%"', text):
            assert float(x) >= 0
            assert float(width) > 0
            assert float(x) + float(width) <= 100.02


# --- in the browser --------------------------------------------------------------------------------------------------------

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", event => window.violations.push(event.violatedDirective));
"""


class Shown(NamedTuple):
    """A page as it stands in the browser, and what it asked for while it came."""

    page: Any
    requests: list[str]
    console: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if util.find_spec("playwright") is None:
        lacking("playwright is not installed")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - may be missing

    path = need_program("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def show(browser: Any) -> Iterator[Callable[..., Shown]]:
    contexts = []

    def shown(content: str, *, clock: datetime = NOW, **more: Any) -> Shown:
        context = browser.new_context(**({"viewport": {"width": 1000, "height": 900}} | more))
        contexts.append(context)
        requests: list[str] = []
        console: list[str] = []

        def answer(route: Any) -> None:
            requests.append(route.request.url)
            if route.request.url == ORIGIN:
                route.fulfill(body=content.encode(), content_type="text/html; charset=utf-8")
            else:
                route.abort()

        context.route("**/*", answer)
        context.add_init_script(WATCH)
        tab = context.new_page()
        tab.on("console", lambda message: console.append(message.text))
        tab.on("pageerror", lambda error: console.append(str(error)))
        tab.clock.install(time=clock)
        tab.goto(ORIGIN)
        return Shown(tab, requests, console)

    yield shown
    for context in contexts:
        context.close()


LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"color_scheme": "light", "viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "is_mobile": True},
    "dark phone": {"color_scheme": "dark", "viewport": {"width": 360, "height": 740}},
}


def violations_of(tab: Any) -> list[str]:
    if util.find_spec("axe_playwright_python") is None:
        lacking("axe-playwright-python is not installed")
    from axe_playwright_python.sync_playwright import Axe  # noqa: PLC0415 - may be missing

    found = Axe().run(tab).response["violations"]
    return [
        f"{violation['id']}: {json.dumps(violation['nodes'][0])[:600]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", ["empty", "rich", "hostile"])
def test_everybody_can_read_it(name: str, look: str, show: Callable[..., Shown]) -> None:
    for clock in (NOW, NOW + timedelta(days=1)):
        assert violations_of(show(html.render(PAGES[name]()), clock=clock, **LOOKS[look]).page) == []


def test_the_check_of_readability_finds_what_cannot_be_read(show: Callable[..., Shown]) -> None:
    assert violations_of(show("<!DOCTYPE html><title>x</title><img src='data:,'><p style='color:#ccc'>pale").page)


@pytest.mark.parametrize("name", PAGES)
def test_nothing_planted_runs_and_nothing_is_asked_for(name: str, show: Callable[..., Shown]) -> None:
    shown = show(html.render(PAGES[name]()))
    tab = shown.page
    tab.clock.run_for(10_000)
    for element in tab.query_selector_all("text, rect, bdi, code"):
        element.dispatch_event("click")
        element.dispatch_event("mouseover")
    assert tab.evaluate("[window.planted, window.violations]") == [None, []]
    assert shown.requests == [ORIGIN]
    assert shown.console == []
    allowed = {"meta", "title", "style", "noscript", "script", "svg"}
    assert set(tab.evaluate("[...document.head.children, ...document.body.children].map(e => e.localName)")) <= allowed | {
        "header",
        "main",
        "footer",
    }
    assert tab.evaluate("document.querySelectorAll('script').length") == 1


def test_planted_code_would_be_noticed(show: Callable[..., Shown]) -> None:
    whole = html.render(empty())
    open_ = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", whole).replace("<main>", f"<main>{PLANTED}")
    shown = show(re.sub("<meta http-equiv=refresh[^>]*>", "", open_).encode(errors="replace").decode())
    assert shown.page.evaluate("window.planted") == 1
    assert len(shown.requests) > 1


def test_the_policy_holds_what_gets_in_all_the_same(show: Callable[..., Shown]) -> None:
    shown = show(html.render(empty()).replace("<main>", "<main><img src='/x' onerror='window.planted=1'><p style='color:red'>"))
    shown.page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.planted = 1'}))")
    assert shown.page.evaluate("window.planted") is None
    assert {word.split("-")[0] for word in shown.page.evaluate("window.violations")} == {"img", "style", "script"}
    assert shown.requests == [ORIGIN]


@pytest.mark.parametrize("name", PAGES)
def test_nothing_scrolls_sideways_on_a_phone(name: str, show: Callable[..., Shown]) -> None:
    tab = show(html.render(PAGES[name]()), **LOOKS["phone"]).page
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    cut = tab.evaluate(
        """[...document.querySelectorAll("figure > svg > g")].filter(row => {
            const [name, how] = [...row.querySelectorAll("text")].filter(text => text.getBoundingClientRect().width)
                .map(text => text.getBoundingClientRect());
            return name.right > how.left && !/[w\\u05d0-\\u05ea]{9}/.test(row.textContent);
        }).length"""
    )
    assert cut == 0


def test_the_page_says_that_it_is_old(show: Callable[..., Shown]) -> None:
    text = html.render(rich())
    tab = show(text, clock=NOW + timedelta(minutes=19)).page
    assert not tab.locator("#old").is_visible()
    assert tab.title() == "CRITICAL - checkpoints"
    tab.uncheck("input")
    tab.clock.run_for(66_000)
    assert tab.locator("#old").is_visible()
    assert "This page is old: the self-check has not run since 2026-03-01 14:00:00 UTC" in tab.inner_text("header")
    assert tab.title() == "OLD - CRITICAL - checkpoints"
    assert show(text, clock=NOW + timedelta(days=3)).page.locator("#old").is_visible()


def test_the_page_loads_itself_again_every_minute_unless_told_not_to(show: Callable[..., Shown]) -> None:
    shown = show(html.render(empty()))
    with shown.page.expect_navigation():
        shown.page.clock.run_for(61_000)
    assert shown.requests == [ORIGIN] * 2
    shown.page.uncheck("input")
    shown.page.clock.run_for(130_000)
    assert shown.requests == [ORIGIN] * 2


def test_without_scripts_it_says_how_to_tell(show: Callable[..., Shown]) -> None:
    tab = show(html.render(empty()), java_script_enabled=False).page
    words = tab.locator(".note").inner_text()
    assert "If it is later than 2026-03-01 14:20:00 UTC, the self-check has not run since 2026-03-01 14:00:00 UTC" in words
    assert not tab.locator("#old").is_visible()
    assert not tab.locator("input").is_visible()


def test_what_the_page_says(show: Callable[..., Shown]) -> None:
    tab = show(html.render(rich())).page
    said = " ".join(tab.inner_text("body").split())
    assert [tab.inner_text("h1").split()[-1], *tab.locator("h2").all_inner_texts()] == [
        "CRITICAL",
        "Stores, files and the self-check itself",
        "Unfinished runs",
        "Open incidents",
        "Recently resolved",
        "Recently finished",
    ]
    for words in (
        "2 stale runs, 1 unreadable file, 1 thing the self-check could not look at or write, 4 unfinished in all.",
        "missing store: the store does not exist",
        "abandoned for 1h 37m: its owner ann is dead, in doubt: publish-to-every-mirror-of-the-company",
        "ann (dead)",
        "Next step publish-to-every-mirror-of-the-company In doubt publish-to-every-mirror-of-the-company",
        "failed for 1h 44m: step encrypt failed: gpg: no such key",
        "blocked not yet for long: waits for the approval of change 4711",
        "All is well: last progress 3m 10s ago.",
        "3 more unfinished runs left out here",
        "Escalated, since 2026-03-01 12:33:20 UTC (1h 26m); told as abandoned, then in doubt, last 2026-03-01 13:23:20 UTC.",
        "Quiet until 2026-03-02 13:00:00 UTC (snooze by ann): the key arrives on Monday",
        "silence by bob",
        "not told yet",
        "completed after 50m",
        "cancelled after 9s: not needed any more",
    ):
        assert words in said, (words, said)
    kinds = [rect.get_attribute("class") for rect in tab.query_selector_all("article:first-of-type figure rect")]
    assert kinds == ["good", "good", "good", "skip", "doubt", "wait", "wait"]
    described = tab.locator("article:first-of-type desc").text_content()
    assert "publish-to-every-mirror-of-the-company: in doubt" in described
    for moment in tab.query_selector_all("time"):
        assert moment.get_attribute("datetime").replace("T", " ").replace("Z", " UTC") == moment.inner_text()


def test_screenshots(show: Callable[..., Shown], tmp_path: Path) -> None:
    """Something is drawn, and light and dark are not the same."""
    text = html.render(rich())
    taken = {look: show(text, **LOOKS[look]).page.screenshot(path=tmp_path / f"{look}.png") for look in ("light", "dark")}
    assert taken["light"] != taken["dark"]
