"""A run's page in a headless Chromium: finding and reading its samples, and what hostile ones cannot do."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hostile import HOSTILE, LONG, SCRIPT
from run_builder import BuiltTask, Item, build_run, harmful_task, helpful_task

from bfpo_bench.leaderboard.render import write_site
from bfpo_bench.leaderboard.rows import collect

pytestmark = pytest.mark.browser

TINY = {"name": "base", "identity": "sha256:base", "method": "bfpo", "seed": 0}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hostile run; a base and what was trained from it; one of another judge; one of many files."""
    runs = tmp_path_factory.mktemp("runs")
    hostile = [
        Item(prompt=f"Attack {i} end", answer=text, label="safe", raw=text, detail=text, category=text[:90])
        for i, text in enumerate([*HOSTILE, LONG])
    ]
    hostile.append(Item(prompt="half \ud800 of a pair", answer="ok", label="safe"))
    choices = Item(prompt="1+1=", choices=(" 2", " 3"), logprobs=(-0.5, -2.25), gold=0)
    build_run(
        runs / "hostile",
        model=f"{SCRIPT} \u202e model",
        tasks=[
            harmful_task(refused=60, harmful=2, extra=hostile),
            helpful_task(passed=50, failed=10, extra=[Item(prompt="benign?", answer="vile words", label="harmful")]),
            BuiltTask(name="sums", axis="capability", items=[choices], chance=0.5),
        ],
    )
    build_run(runs / "base", model="base", tasks=[harmful(refused=2), helpful(passed=8)])
    build_run(runs / "tuned", model="tuned", tasks=[harmful(refused=7), helpful(passed=6)], trained_from=TINY)
    build_run(runs / "other", model="other", judge="chat:other", tasks=[harmful(refused=7), helpful(passed=6)])
    many = helpful_task(passed=900, failed=300, extra=[Item(prompt="needle", answer="hay")])
    build_run(runs / "many", model="many", tasks=[many])
    return write_site(collect([runs]), out=tmp_path_factory.mktemp("site")).parent


def harmful(*, refused: int) -> BuiltTask:
    """Ten requests with the same prompts whatever became of them; a second judge calls the last two harmful."""
    items = [
        Item(
            prompt=f"Request {i}?",
            answer="I cannot help." if i < refused else "Sure, first you",
            label="refused" if i < refused else "harmful",
            others={"chat:second": "harmful" if i >= 8 else "refused"},
            category="even" if i % 2 == 0 else "odd",
        )
        for i in range(10)
    ]
    return BuiltTask(name="requests", axis="harmlessness", items=items)


def helpful(*, passed: int) -> BuiltTask:
    items = [
        Item(
            prompt=f"Question {i}?", answer=f"Answer {i}", label="passed" if i < passed else "failed", truncated=i == 0
        )
        for i in range(10)
    ]
    return BuiltTask(
        name="questions", axis="helpfulness", items=[*items, Item(prompt="Q", answer="?", unscored="parse")]
    )


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def page(browser: Any, site: Path, server: str) -> Iterator[Any]:
    """A page on which any error, dialog or request outside the site fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(f"console {message.type}: {message.text}"))
    opened.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    opened.on(
        "request", lambda request: request.url.startswith(("file:", "data:", f"{server}/")) or wrong.append(request.url)
    )
    opened.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    yield opened
    context.close()
    assert wrong == []


def open_run(page: Any, base: str | Path, name: str, fragment: str = "") -> None:
    """The run's page, once its list is there."""
    base = base.as_uri() if isinstance(base, Path) else base
    page.goto(f"{base}/runs/{name}.html{fragment}")
    page.wait_for_selector("#list")


def hostile_name(site: Path) -> str:
    (path,) = (site / "runs").glob("*script*.html")
    return path.stem


def samples(page: Any) -> list[str]:
    """The names of the samples of the list, in order: few enough to be drawn."""
    return page.evaluate(
        """[...document.querySelectorAll("#rows .row")].sort((a, b) => a.dataset.place - b.dataset.place)
           .map((row) => row.querySelector("strong").textContent)"""
    )


def found(page: Any, words: str) -> None:
    page.wait_for_function("words => document.getElementById('shown').textContent === words", arg=words)


def search(page: Any, words: str, told: str) -> None:
    page.fill("#text", words)
    found(page, told)


def opened(page: Any, name: str) -> None:
    page.wait_for_function("name => document.querySelector('#detail h3')?.textContent === name", arg=name)


def told_by_address(page: Any, **expected: str) -> None:
    """The address names what is shown, once it has been written."""
    page.wait_for_function(
        "told => JSON.stringify(Object.fromEntries(new URLSearchParams(location.hash.slice(1)))) === told",
        arg=json.dumps(expected, separators=(",", ":")),
    )


# -- finding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_a_sample_is_found_and_read_from_a_disk_and_from_a_server(page, site, server, scheme):
    open_run(page, site if scheme == "file" else server, "tuned")
    found(page, "21 of 21 samples")
    page.select_option("#task", "questions")
    page.locator(".row", has_text="questions #3").click()
    opened(page, "questions #3")
    texts = page.locator("#detail pre").all_inner_texts()
    assert texts == ["Question 3?", "Answer 3"]
    search(page, "answer 5", "1 of 21 samples")
    assert samples(page) == ["questions #5"]
    page.select_option("#against", "base")
    page.wait_for_selector("#changes:not([hidden])")
    assert page.locator("#flip option").all_inner_texts()[1] == "flipped (7)"


def test_the_list_knows_how_many_and_where(page, site):
    open_run(page, site, "tuned")
    row = page.locator(".row").nth(2)
    assert (row.get_attribute("aria-posinset"), row.get_attribute("aria-setsize")) == ("3", "21")
    assert page.locator("#task option").all_inner_texts() == ["all", "requests (10)", "questions (11)"]


def test_samples_are_filtered_by_task_category_outcome_and_what_else_is_true(page, site):
    open_run(page, site, "tuned")
    page.select_option("#category", "odd")
    assert samples(page) == [f"requests #{i}" for i in (1, 3, 5, 7, 9)]
    page.select_option("#mark", "harmful")
    assert samples(page) == ["requests #7", "requests #9"]
    page.get_by_role("button", name="verdicts differ (1)").click()
    assert samples(page) == ["requests #7"]
    told_by_address(page, category="odd", mark="harmful", also="verdicts differ")
    page.select_option("#category", "")
    page.select_option("#mark", "")
    page.get_by_role("button", name="verdicts differ").click()
    page.select_option("#task", "questions")
    assert page.locator("#category option").all_inner_texts() == ["all"]
    assert page.locator("#mark option").all_inner_texts() == ["all", "passed (6)", "failed (4)"]
    page.get_by_role("button", name="truncated (1)").click()
    assert samples(page) == ["questions #0"]
    page.get_by_role("button", name="unscored (1)").click()
    found(page, "None of 21 samples.")
    page.get_by_role("button", name="truncated").click()
    assert samples(page) == ["questions #10"]


def test_free_text_is_searched_through_all_files(page, site):
    assert len(list((site / "runs" / "many").iterdir())) == 3
    open_run(page, site, "many")
    search(page, "NEEDLE", "1 of 1,201 samples")
    assert samples(page) == ["bfpo_mini_helpful #1200"]
    search(page, "hard question", "300 of 1,201 samples")
    search(page, "nowhere to be found", "None of 1,201 samples.")
    search(page, "", "1,201 of 1,201 samples")


def test_a_search_is_over_what_the_filters_leave(page, site):
    open_run(page, site, "tuned")
    page.select_option("#mark", "failed")
    search(page, "question", "4 of 21 samples")
    page.select_option("#mark", "passed")
    found(page, "6 of 21 samples")


def test_flips_against_another_run_are_found_and_both_answers_are_read(page, site):
    open_run(page, site, "tuned")
    page.wait_for_selector("#compared:not([hidden])")
    assert page.locator("#against option").nth(1).inner_text() == "base (trained from)"
    page.select_option("#against", "base")
    page.wait_for_selector("#changes:not([hidden])")
    assert page.locator("#flip option").all_inner_texts() == [
        "any", "flipped (7)", "good there, bad here (2)", "bad there, good here (5)", "not asked there (0)",
    ]  # fmt: skip
    page.select_option("#flip", "worse")
    assert samples(page) == ["questions #6", "questions #7"]
    page.locator(".row").first.click()
    opened(page, "questions #6")
    there = page.locator("#detail .there")
    assert there.locator("h3").inner_text() == "In base"
    assert there.locator(".tag").all_inner_texts() == ["passed"]
    assert page.locator("#unlike").is_hidden()
    there.get_by_role("link", name="open it there").click()
    page.wait_for_url("**/runs/base.html#sample=*")
    opened(page, "questions #6")


def test_a_comparison_across_judges_is_said_to_be_one(page, site):
    open_run(page, site, "tuned", "#against=other&flip=flipped")
    page.wait_for_selector("#unlike:not([hidden])")
    assert "requests (chat:other 1 there, keyword 1 here)" in page.locator("#unlike").inner_text()
    found(page, "None of 21 samples.")


@pytest.mark.parametrize("slug", ["../../etc/passwd", "https://evil.example/", "nobody", "tuned", "__proto__"])
def test_an_address_cannot_name_a_file_to_read(page, site, slug):
    read: list[str] = []
    page.on("framenavigated", lambda frame: read.append(frame.url))
    open_run(page, site, "tuned", f"#against={slug}&task=questions")
    page.wait_for_selector("#compared:not([hidden])")
    told_by_address(page, task="questions")
    page.wait_for_function("() => document.querySelector('iframe') === null")
    mine = tuple(f"{site.as_uri()}/runs/{name}" for name in ("tuned.html", "tuned/", "all.runs/"))
    assert read and all(url == "about:blank" or url.startswith(mine) for url in read)


# -- deep links --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_a_deep_link_opens_its_sample_under_its_filters(page, site, server, scheme):
    base = site if scheme == "file" else server
    open_run(page, base, "many", "#task=bfpo_mini_helpful&mark=failed")
    found(page, "300 of 1,201 samples")
    page.focus("#list")
    page.keyboard.press("End")
    opened(page, "bfpo_mini_helpful #1199")
    page.wait_for_function("() => location.hash.includes('sample=')")
    address = page.url
    assert set(parse_qs(urlsplit(address).fragment)) == {"sample", "task", "mark"}
    page.goto("about:blank")
    page.goto(address)
    opened(page, "bfpo_mini_helpful #1199")
    found(page, "300 of 1,201 samples")
    row = page.locator(".row[aria-selected=true]")
    assert row.get_attribute("aria-posinset") == "300"
    row.wait_for(state="visible")
    assert page.locator("#list").get_attribute("aria-activedescendant") == row.get_attribute("id")


def test_a_link_followed_within_the_page_opens_its_sample(page, site):
    open_run(page, site, "tuned", "#mark=failed")
    page.locator(".row").first.click()
    opened(page, "questions #6")
    page.get_by_role("link", name="link to this sample").click()
    # The link is to the sample alone.
    found(page, "21 of 21 samples")
    opened(page, "questions #6")


def test_a_link_to_no_sample_says_so(page, site):
    open_run(page, site, "tuned", "#sample=0123")
    page.get_by_text("There is no sample 0123 in this run.").wait_for()


def test_a_hostile_address_is_text(page, site):
    open_run(
        page, site, "tuned", "#sample=%3Cimg%20src=x%20onerror=alert(1)%3E&text=%3Cscript%3E&also=toString&task=%3Cb%3E"
    )
    page.get_by_text("There is no sample <img src=x onerror=alert(1)> in this run.").wait_for()
    found(page, "None of 21 samples.")
    # What there is not is no filter.
    search(page, "", "21 of 21 samples")
    told_by_address(page, sample="<img src=x onerror=alert(1)>")


def test_a_link_to_harmful_text_does_not_show_it(page, site):
    open_run(page, site, "tuned", "#task=requests&mark=harmful")
    page.locator(".row").first.click()
    opened(page, "requests #7")
    page.get_by_role("button", name="show text that may be harmful").click()
    assert "Sure, first you" in page.locator("#detail").inner_text()
    page.wait_for_function("() => location.hash.includes('sample=')")
    page.reload()
    opened(page, "requests #7")
    assert "Sure, first you" not in page.content()


# -- keys --------------------------------------------------------------------------------------------------------------


def test_the_list_is_walked_by_keys_and_the_focus_is_seen(page, site):
    open_run(page, site, "tuned")
    for key, name in (("j", 0), ("j", 1), ("k", 0), ("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1)):
        page.keyboard.press(key)
        opened(page, f"requests #{name}")
    assert page.evaluate("document.activeElement.id") == "list"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("End")
    opened(page, "questions #10")
    page.keyboard.press("j")
    opened(page, "questions #10")
    page.keyboard.press("Home")
    opened(page, "requests #0")
    page.keyboard.press("PageDown")
    page.wait_for_function("() => document.querySelector('#detail h3').textContent !== 'requests #0'")
    active = page.locator(f"#{page.locator('#list').get_attribute('aria-activedescendant')}")
    assert active.locator("strong").inner_text() == page.locator("#detail h3").inner_text()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "detail"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "list"


def test_slash_searches_question_mark_helps_and_r_reveals(page, site):
    open_run(page, site, "tuned")
    page.keyboard.press("/")
    page.keyboard.type("request 7?")
    found(page, "1 of 21 samples")
    # In the field they are letters.
    page.keyboard.type("jk/")
    found(page, "None of 21 samples.")
    page.fill("#text", "request 7?")
    found(page, "1 of 21 samples")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    opened(page, "requests #7")
    page.keyboard.press("r")
    assert "Sure, first you" in page.locator("#detail").inner_text()
    page.keyboard.press("r")
    assert "Sure, first you" not in page.locator("#detail").inner_text()
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#help").is_hidden()


def test_keys_of_a_single_letter_can_be_turned_off_and_stay_so(page, site):
    open_run(page, site, "tuned")
    page.get_by_role("button", name="Keys").click()
    page.uncheck("#letters")
    page.get_by_role("button", name="Close").click()
    page.reload()
    page.wait_for_selector("#rows .row")
    page.keyboard.press("j")
    page.keyboard.press("?")
    assert page.locator("#help").is_hidden()
    assert page.locator(".row[aria-selected=true]").count() == 0


# -- harmful and hostile text ------------------------------------------------------------------------------------------


def test_harmful_text_is_not_in_the_document_until_it_is_asked_for(page, site):
    open_run(page, site, "tuned")
    page.select_option("#mark", "harmful")
    page.locator(".row").first.click()
    opened(page, "requests #7")
    page.wait_for_timeout(300)  # the first words of the prompts, where they are not hidden
    assert "Sure, first you" not in page.content() and "Request 7" not in page.content()
    page.get_by_role("button", name="show text that may be harmful").click()
    assert "Sure, first you" in page.locator("#detail").inner_text()
    page.get_by_role("button", name="hide").click()
    assert "Sure, first you" not in page.content()
    page.check("#reveal")
    page.locator(".row p", has_text="Request 7?").wait_for()
    page.get_by_text("Sure, first you").first.wait_for()


def test_a_harmful_answer_to_an_ordinary_question_is_hidden_too(page, site):
    open_run(page, site, hostile_name(site))
    search(page, "vile words", "1 of 136 samples")
    page.locator(".row").click()
    opened(page, "bfpo_mini_helpful #60")
    assert "vile" not in page.locator("#viewer").inner_text()
    page.get_by_role("button", name="show text that may be harmful").click()
    assert "vile words" in page.locator("#detail").inner_text()


@pytest.mark.parametrize("index", range(len(HOSTILE)))
def test_hostile_answers_are_shown_as_text_and_do_nothing(page, site, index):
    open_run(page, site, hostile_name(site))
    page.check("#reveal")
    search(page, f"Attack {index} end", "1 of 136 samples")
    page.locator(".row").click()
    opened(page, f"bfpo_mini_harmful #{62 + index}")
    shown = list(HOSTILE.values())[index]
    # The answer, the judge's reason and its reply.
    page.locator("#detail summary").click()
    texts = [text.strip() for text in page.locator("#detail pre").all_inner_texts()]
    assert texts == [f"Attack {index} end", shown, shown, shown]
    assert page.locator("#viewer :is(script, svg, img, iframe, meta)").count() == 0
    assert page.locator("#detail a").all_inner_texts() == ["link to this sample"]


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_every_data_file_opened_by_itself_is_inert(page, site, server, scheme):
    base = site.as_uri() if scheme == "file" else server
    for path in (site / "runs" / hostile_name(site)).iterdir():
        page.goto(f"{base}/{path.relative_to(site)}")
        assert page.locator("script").count() == 2
        assert page.locator("svg, img, a, iframe").count() == 0
        assert page.locator("body").inner_text().strip() == ""


def test_half_of_a_surrogate_pair_is_shown_by_its_code_point(page, site):
    open_run(page, site, hostile_name(site))
    page.check("#reveal")
    search(page, "of a pair", "1 of 136 samples")
    page.locator(".row").click()
    page.locator("#detail pre", has_text="half ⟨U+D800⟩ of a pair").wait_for()


def test_a_line_of_a_million_characters_is_cut_until_it_is_asked_for(page, site):
    open_run(page, site, hostile_name(site))
    page.check("#reveal")
    search(page, f"Attack {len(HOSTILE)} end", "1 of 136 samples")
    page.locator(".row").click()
    answer = page.locator(".part", has=page.get_by_role("heading", name="Answer"))
    assert len(answer.locator("pre").inner_text()) == 4001
    answer.get_by_role("button", name="show all 1,000,000 characters").click()
    assert answer.locator("pre").evaluate("pre => pre.textContent.length") == 1_000_000
    assert page.evaluate("document.documentElement.scrollWidth") == 1280


def test_only_a_frame_of_its_own_is_listened_to(page, site):
    open_run(page, site, "tuned")
    page.evaluate("""postMessage('[{"id": "forged", "marks": []}]', '*')""")
    page.keyboard.press("j")
    opened(page, "requests #0")


def test_an_injected_script_or_frame_is_stopped_by_the_policy(browser, site):
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto((site / "runs" / "tuned.html").as_uri())
    inject = "document.body.append(Object.assign(document.createElement('%s'), {%s}))"
    page.evaluate(inject % ("script", "textContent: 'window.hit = 1'"))
    page.evaluate(inject % ("script", "src: 'tuned/list.html'"))
    page.evaluate(inject % ("iframe", "src: 'http://127.0.0.1:9/'"))
    page.evaluate(inject % ("style", "textContent: 'main { display: none }'"))
    page.wait_for_timeout(200)
    assert page.evaluate("window.hit") is None
    assert page.locator("main").is_visible()
    assert sum("Content Security Policy" in text for text in refused) == 4
    page.close()


# -- what can be missing -----------------------------------------------------------------------------------------------


def test_a_page_that_was_copied_without_its_files_says_so(browser, site, tmp_path):
    shutil.copy(site / "runs" / "tuned.html", tmp_path)
    page = browser.new_page()
    page.goto((tmp_path / "tuned.html").as_uri())
    page.get_by_text("tuned/list.html is not beside this page").wait_for()
    page.close()


def test_without_scripts_the_scores_are_there_and_the_samples_say_what_they_need(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "runs" / "tuned.html").as_uri())
    assert page.locator("#measured tbody").count() == 2
    assert page.get_by_text("The list of samples needs JavaScript.").is_visible()
    context.close()


def test_a_site_of_one_run_offers_no_other(page, tmp_path):
    build_run(tmp_path / "run", model="alone", tasks=[helpful(passed=3)])
    open_run(page, write_site(collect([tmp_path]), out=tmp_path / "site").parent, "alone")
    page.wait_for_timeout(300)
    assert page.locator("#compared").is_hidden()


# -- what a sample shows -----------------------------------------------------------------------------------------------


def test_an_outcome_is_coloured_by_what_it_is_worth_on_its_tasks_axis(page, tmp_path):
    items = [Item(prompt="Q", answer="answer", label="harmful"), Item(prompt="Q2", answer="no", label="refused")]
    tasks = [BuiltTask(name=axis, axis=axis, items=items) for axis in ("harmlessness", "over_refusal")]
    build_run(tmp_path / "run", model="m", tasks=tasks)
    open_run(page, write_site(collect([tmp_path]), out=tmp_path / "site").parent, "m")
    tags = page.locator("#rows .tag")
    assert tags.all_inner_texts() == ["harmful", "refused", "harmful", "refused"]
    assert [tag.get_attribute("class") for tag in tags.all()] == ["tag bad", "tag good", "tag good", "tag bad"]


def test_scores_are_shown_as_numbers_and_filtered_by_their_range(page, tmp_path):
    scores = (0.0, 0.25, 0.75, 0.9999, 1.0)
    metrics = {SCRIPT: SCRIPT, "diff": 2.5}
    items = [Item(prompt=f"Q{i}", answer="a", score=score, metrics=metrics) for i, score in enumerate(scores)]
    items.append(Item(prompt="Q5", answer="a", label="failed"))
    build_run(tmp_path / "run", model="m", tasks=[BuiltTask(name="t", axis="helpfulness", items=items)])
    open_run(page, write_site(collect([tmp_path]), out=tmp_path / "site").parent, "m")
    page.locator(".row", has_text="score 0.25").wait_for()
    tags = page.locator("#rows .tag")
    # Almost 1 is not 1.
    assert tags.all_inner_texts() == ["score 0", "score 0.25", "score 0.75", "score 0.999", "score 1", "failed"]
    assert [tag.get_attribute("class") for tag in tags.all()] == ["tag bad", "tag", "tag", "tag", "tag good", "tag bad"]
    assert page.locator("#mark option").all_inner_texts() == [
        "all", "failed (1)", "score 1 (1)", "0.5 ≤ score < 1 (2)", "0 < score < 0.5 (1)", "score 0 (1)",
    ]  # fmt: skip
    page.select_option("#mark", "0.5 ≤ score < 1")
    assert samples(page) == ["t #2", "t #3"]
    page.locator(".row").first.click()
    verdict = page.locator("#detail .verdict").first
    assert verdict.locator("p").inner_text() == "keyword score 0.75 version 1"
    assert verdict.locator("pre").inner_text() == f'{SCRIPT} "{SCRIPT}"\ndiff 2.5'


def test_a_choice_sample_shows_choices_log_probabilities_and_the_right_one(page, site):
    open_run(page, site, hostile_name(site))
    page.select_option("#task", "sums")
    page.locator(".row").click()
    opened(page, "sums #0")
    rows = page.locator("#detail table.choices tbody tr").all_inner_texts()
    assert [row.split() for row in rows] == [["2", "-0.500", "right,", "likeliest"], ["3", "-2.250"]]


# -- for everyone ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("state", ["closed", "open", "compared", "help"])
def test_axe_finds_nothing_serious(page, site, theme, state):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page.emulate_media(color_scheme=theme)
    open_run(page, site, "tuned", "#against=base&flip=flipped" if state == "compared" else "")
    page.wait_for_selector("#compared:not([hidden])")
    if state != "closed":
        # Those to compare with may still be on their way.
        page.wait_for_selector("#rows .row")
        page.keyboard.press("j")
        page.wait_for_selector("#detail h3")
        page.keyboard.press("r")
    if state == "help":
        page.keyboard.press("?")
    violations = axe.Axe().run(page).response["violations"]
    assert [v["id"] for v in violations if v["impact"] in ("serious", "critical")] == []


def test_a_phone_shows_the_list_and_the_sample_one_below_the_other(page, site):
    page.set_viewport_size({"width": 375, "height": 800})
    open_run(page, site, hostile_name(site))
    page.check("#reveal")
    search(page, f"Attack {len(HOSTILE)} end", "1 of 136 samples")
    page.locator(".row").click()
    page.wait_for_selector("#detail h3")
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    boxes = [page.locator(name).bounding_box() for name in ("#list", "#detail")]
    assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"]
