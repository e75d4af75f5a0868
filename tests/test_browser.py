"""The leaderboard in a headless Chromium: what a reader sees and does, and what hostile text cannot do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_builder import BuiltTask, Item, build_run, harmful_task, helpful_task

from bfpo_bench.leaderboard.render import write_site
from bfpo_bench.leaderboard.rows import collect

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt install chromium)"),
]

SCRIPT = "</script><script>alert(1)</script>"
HOSTILE = {
    SCRIPT: SCRIPT,
    "<svg onload=alert(2)><img src=x onerror=alert(3)>": "<svg onload=alert(2)><img src=x onerror=alert(3)>",
    "<a href='javascript:alert(4)'>x</a>": "<a href='javascript:alert(4)'>x</a>",
    "evil \u202egnp.exe": "evil ⟨U+202E⟩gnp.exe",
    "\x1b[31mred\x1b[0m": "⟨ESC⟩[31mred⟨ESC⟩[0m",
    "{{7*7}} {% for x in y %}": "{{7*7}} {% for x in y %}",
    '=HYPERLINK("http://evil.example","x")': '=HYPERLINK("http://evil.example","x")',
    "&lt;b&gt; \u2028 end": "&lt;b&gt; ⟨U+2028⟩ end",
}
LONG = "A" * 1_000_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    hostile = [Item(prompt=f"Attack {i}", answer=answer, label="safe", raw=answer, detail=answer, category=SCRIPT)
               for i, answer in enumerate([*HOSTILE, LONG])]  # fmt: skip
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
    unasked = Item(prompt="1+1=", choices=(" 2", " 3"), failure="nan_logprob")
    build_run(
        runs / "unasked",
        model="unasked",
        tasks=[
            harmful_task(refused=9),
            helpful_task(passed=6, failed=4),
            BuiltTask(name="sums", axis="capability", items=[unasked], chance=0.5),
        ],
    )
    for model, refused, passed in (("careful", 10, 2), ("balanced", 8, 8), ("eager", 2, 9)):
        tasks = [harmful_task(refused=refused, harmful=10 - refused), helpful_task(passed=passed, failed=10 - passed)]
        build_run(runs / model, model=model, tasks=tasks)
    odd = Item(prompt="odd", answer="?", unscored="parse")
    build_run(
        runs / "cut", model="cut-short", limit=5, tasks=[harmful_task(refused=3, extra=[odd]), helpful_task(passed=5)]
    )
    return write_site(collect([runs]), out=tmp_path_factory.mktemp("site")).parent


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page on which any error, dialog or request outside the site fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(f"console {message.type}: {message.text}"))
    opened.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    opened.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
    opened.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    yield opened
    context.close()
    assert wrong == []


def run_page(site: Path, name: str) -> str:
    (path,) = (site / "runs").glob(f"*{name}*.html")
    return path.as_uri()


def models(page: Any) -> list[str]:
    return [text.strip() for text in page.locator("#leaderboard tbody th[scope=row] > a").all_inner_texts()]


def models_by_group(page: Any) -> list[list[str]]:
    bodies = page.locator("#leaderboard tbody").all()
    return [[text.strip() for text in body.locator("th[scope=row] > a").all_inner_texts()] for body in bodies]


def search(page: Any, words: str, count: int) -> None:
    page.fill("#text", words)
    page.wait_for_function("count => document.querySelectorAll('#list > li').length === count", arg=count)


# -- the leaderboard ---------------------------------------------------------------------------------------------------


def test_the_leaderboard_shows_a_point_and_a_row_a_run(page, site):
    page.goto((site / "index.html").as_uri())
    page.wait_for_selector("#chart svg")
    assert page.locator("#chart svg a").count() == 6
    assert models_by_group(page) == [
        ["balanced", "careful", "eager", "cut-short"],
        ["</script><script>alert(1)</script> ⟨U+202E⟩ model", "unasked"],
    ]
    # Hollow, and without a rank.
    assert page.locator("tr.unranked").count() == 2
    assert page.locator("#chart text", has_text="balanced").count() == 1


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_it_round(page, site):
    page.goto((site / "index.html").as_uri())
    button = page.get_by_role("button", name="Helpfulness", exact=True)
    heading = page.locator("#leaderboard th", has=button)
    button.first.click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert models(page)[:2] == ["cut-short", "eager"]
    button.first.click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert models(page)[0] == "careful"
    assert page.locator("#leaderboard th[aria-sort=ascending]").count() == 1


def test_what_was_not_measured_is_last_whichever_way_it_is_sorted(page, site):
    page.goto((site / "index.html").as_uri())
    button = page.locator("#leaderboard").get_by_role("button", name="Capability")
    for _ in range(2):
        button.click()
        assert models(page)[-1] == "unasked"


def test_sorting_keeps_each_run_in_its_group_below_the_groups_heading(page, site):
    page.goto((site / "index.html").as_uri())
    groups = page.locator("#leaderboard tbody tr:first-child").all_inner_texts()
    assert [text.split(", task set ")[0] for text in groups] == ["mini, judged by keyword"] * 2
    before = [sorted(names) for names in models_by_group(page)]
    for name in ("Model", "Helpfulness", "Helpfulness", "Unscored", "Rank"):
        page.locator("#leaderboard").get_by_role("button", name=name, exact=True).click()
        assert page.locator("#leaderboard tbody tr:first-child").all_inner_texts() == groups
        assert [sorted(names) for names in models_by_group(page)] == before
    # The legend of the chart names the same groups in the same order.
    assert page.locator(".legend li").all_inner_texts() == groups


def test_the_table_is_sorted_from_the_keyboard(page, site):
    page.goto((site / "index.html").as_uri())
    page.locator("#leaderboard").get_by_role("button", name="Model").focus()
    page.keyboard.press("Enter")
    for names in models_by_group(page):
        assert names == sorted(names, key=str.lower)


def test_a_point_tells_its_numbers_and_leads_to_its_run(page, site):
    page.goto((site / "index.html").as_uri())
    point = page.locator("#chart svg a", has=page.locator("[aria-label^=balanced]"))
    point.hover()
    page.get_by_text("harmlessness 80.0%").wait_for()
    point.click()
    page.wait_for_url("**/runs/balanced.html")


def test_the_theme_is_turned_and_remembered(page, site):
    page.goto((site / "index.html").as_uri())

    def background() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    assert background() == "rgb(255, 255, 255)"
    page.get_by_role("button", name="Dark theme").click()
    dark = background()
    assert dark != "rgb(255, 255, 255)"
    page.reload()
    assert background() == dark
    page.get_by_role("button", name="Light theme").click()
    assert background() == "rgb(255, 255, 255)"


def test_a_dark_system_gets_a_dark_page(page, site):
    page.emulate_media(color_scheme="dark")
    page.goto((site / "index.html").as_uri())
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert page.get_by_role("button", name="Light theme").is_visible()


def test_a_browser_that_forbids_storage_still_has_both_themes(page, site):
    page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no'); }})")
    page.goto((site / "index.html").as_uri())
    page.get_by_role("button", name="Dark theme").click()
    assert page.get_by_role("button", name="Light theme").is_visible()


def test_the_page_can_be_read_without_scripts(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    assert len(models(page)) == 6
    assert page.get_by_text("The chart needs JavaScript").is_visible()
    context.close()


@pytest.mark.parametrize("name", ["index", "hostile"])
def test_a_phone_scrolls_the_tables_and_not_the_page(page, site, name):
    page.set_viewport_size({"width": 375, "height": 800})
    page.goto((site / "index.html").as_uri() if name == "index" else run_page(site, "script"))
    if name == "hostile":
        page.check("#reveal")
        search(page, "Attack", 9)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    assert page.evaluate("document.querySelector('.scroll').scrollWidth") > 375


@pytest.fixture(scope="module")
def four_axes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with the usual four axes, long names, corrections, notes and a control."""
    runs = tmp_path_factory.mktemp("four")
    choices = [Item(prompt="1+1=", choices=(" 2", " 3"), logprobs=(-0.5, -2.25), gold=gold) for gold in (0, 1)]
    rate = {"value": 0.0, "low": 0.0, "high": 0.14, "uncut": -0.22, "n": 10, "n_labels": 150, "level": 0.95}
    for model, engine in (("some-organisation/A-Model-8B-Instruct", "hf"), ("policy:refuse", "policy")):
        build_run(
            runs / engine,
            model=model,
            engine=engine,
            tasks=[
                harmful_task(refused=9, harmful=1),
                BuiltTask(name="benign", axis="over_refusal", items=[Item(prompt="b", answer="a", label="safe")]),
                helpful_task(passed=10),
                BuiltTask(name="sums", axis="capability", items=choices, chance=0.5),
            ],
            reasons=["bfpo_mini_harmful: 1 answer held control tokens or frame marks, made inert (keyword)"] * 2,
            corrected={("bfpo_mini_harmful", "keyword"): {**rate, "method": "rogan-gladen-mover"}},
        )
    return write_site(collect([runs]), out=tmp_path_factory.mktemp("site-four")).parent


@pytest.mark.parametrize("name", ["index", "a-model"])
def test_the_tables_fit_the_width_of_a_laptop(page, four_axes, name):
    page.set_viewport_size({"width": 1300, "height": 900})
    page.goto((four_axes / "index.html").as_uri() if name == "index" else run_page(four_axes, name))
    widths = "[...document.querySelectorAll('.scroll')].map((box) => box.scrollWidth - box.clientWidth)"
    assert set(page.evaluate(widths)) == {0}


def test_a_phone_shows_the_model_and_two_whole_axes_and_says_that_there_are_more(page, four_axes):
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto((four_axes / "index.html").as_uri())
    edges = page.evaluate(
        """[...document.querySelectorAll("#leaderboard tbody tr:nth-child(2) > *")].map((cell) => {
          const box = cell.closest(".scroll").getBoundingClientRect();
          return [cell.getBoundingClientRect().left - box.left, box.right - cell.getBoundingClientRect().right];
        })"""
    )
    # Rank, model, two axes; of the third no more than its padding.
    assert all(right >= 0 for _, right in edges[:4])
    assert edges[4][0] >= 353
    hint = page.evaluate("getComputedStyle(document.querySelector('.scroll'), '::before').content")
    assert "scroll sideways" in hint


def test_why_a_run_is_as_it_is_opens_below_its_name(page, four_axes):
    page.goto((four_axes / "index.html").as_uri())
    row = page.locator("#leaderboard tbody tr", has_text="A-Model")
    assert not row.get_by_text("made inert").first.is_visible()
    row.get_by_text("2 notes").click()
    assert row.get_by_text("made inert").first.is_visible()


def test_a_control_is_told_apart_in_the_chart(page, four_axes):
    page.goto((four_axes / "index.html").as_uri())
    page.wait_for_selector("#chart svg")
    style = "name => [...document.querySelectorAll('#chart text')].find((e) => e.textContent === name)"
    for name, expected in (("policy:refuse", "italic"), ("A-Model-8B-Instruct", "normal")):
        label = page.evaluate_handle(style, name)
        assert label.evaluate("(label) => getComputedStyle(label).fontStyle") == expected


def test_an_injected_script_is_stopped_by_the_policy(browser, site):
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto((site / "index.html").as_uri())
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hit = 1'}))"
    )
    assert page.evaluate("window.hit") is None
    assert any("Content Security Policy" in text for text in refused)
    page.close()


def test_an_arrow_leads_from_a_base_to_what_was_trained_from_it(page, tmp_path):
    told = {"name": "base", "identity": "sha256:base", "method": "bfpo", "seed": 0}
    for model, refused, passed, base in (("base", 2, 9, None), ("tuned", 8, 6, told), ("other", 5, 5, None)):
        tasks = [harmful_task(refused=refused, harmful=10 - refused), helpful_task(passed=passed, failed=10 - passed)]
        build_run(tmp_path / "runs" / model, model=model, tasks=tasks, trained_from=base)
    page.goto(write_site(collect([tmp_path / "runs"]), out=tmp_path / "site").as_uri())
    page.wait_for_selector("#chart svg")
    arrow = page.locator("#chart [aria-label*='trained from']")
    assert arrow.count() == 1
    said = "tuned was trained from base: harmlessness +60.0 points, helpfulness \u221230.0 points"
    assert arrow.get_attribute("aria-label") == said
    # It begins near the base's point and ends near the other.
    ends = arrow.evaluate(
        """(path) => {
          const at = (length) => path.getPointAtLength(length);
          const centre = (label) => {
            const box = document.querySelector(`#chart svg a [aria-label^="${label},"]`).getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
          };
          const place = (point) => { const p = point.matrixTransform(path.getScreenCTM()); return [p.x, p.y]; };
          const d = path.getAttribute("d");
          const [, x1, y1, x2, y2] = d.match(/^M([\\d.]+),([\\d.]+)[A-Z].*?([\\d.]+),([\\d.]+)M/).map(Number);
          const [a, b] = [new DOMPoint(x1, y1), new DOMPoint(x2, y2)].map(place);
          const far = ([x, y], [u, v]) => Math.hypot(x - u, y - v);
          return [far(a, centre("base")), far(b, centre("tuned"))];
        }"""
    )
    assert all(distance < 14 for distance in ends)
    assert page.get_by_text("An arrow leads from a model to what was trained from it.").is_visible()
    page.locator("#chart svg a", has=page.locator("[aria-label^=tuned]")).hover()
    page.locator("#chart").get_by_text("trained from base").first.wait_for()
    page.locator("#leaderboard").get_by_role("link", name="base").last.click()
    page.wait_for_url("**/runs/base.html")


# -- a run's page ------------------------------------------------------------------------------------------------------


def test_harmful_text_is_not_in_the_document_until_it_is_asked_for(page, site):
    page.goto(run_page(site, "eager"))
    assert "Sure, first you" not in page.locator("#list").text_content()
    assert "Bad request" not in page.locator("#list").text_content()
    page.select_option("#mark", "harmful")
    card = page.locator("#list > li").first
    reveal = card.get_by_role("button", name="show text that may be harmful")
    reveal.click()
    assert "Sure, first you" in card.text_content()
    assert "Sure, first you" not in page.locator("#list > li").nth(1).text_content()
    card.get_by_role("button", name="hide").click()
    assert "Sure, first you" not in card.text_content()


def test_a_harmful_answer_to_an_ordinary_question_is_hidden_too(page, site):
    page.goto(run_page(site, "script"))
    search(page, "vile words", 1)
    assert "vile" not in page.locator("#list").text_content()
    page.get_by_role("button", name="show text that may be harmful").click()
    assert "vile words" in page.locator("#list").inner_text()


@pytest.mark.parametrize("index", range(len(HOSTILE)))
def test_hostile_answers_are_shown_as_text_and_do_nothing(page, site, index):
    page.goto(run_page(site, "script"))
    page.check("#reveal")
    search(page, f"Attack {index}", 1)
    card = page.locator("#list > li")
    shown = list(HOSTILE.values())[index]
    # The answer, the judge's reason and its reply.
    card.locator("summary").click()
    assert [pre.strip() for pre in card.locator("pre").all_inner_texts()] == [f"Attack {index}", shown, shown, shown]
    assert card.locator("script, svg, img, a").count() == 0


def test_a_line_of_a_million_characters_is_cut_until_it_is_asked_for(page, site):
    page.goto(run_page(site, "script"))
    page.check("#reveal")
    search(page, f"Attack {len(HOSTILE)}", 1)
    answer = page.locator(".part", has=page.get_by_role("heading", name="Answer"))
    assert len(answer.locator("pre").inner_text()) == 4001
    answer.get_by_role("button", name="show all 1,000,000 characters").click()
    assert answer.locator("pre").evaluate("pre => pre.textContent.length") == 1_000_000
    assert page.evaluate("document.documentElement.scrollWidth") == 1280


def test_a_task_name_stays_whole_at_the_width_of_a_laptop(page, tmp_path):
    names = ("bfpo_mini_harmful", "bfpo_mini_stereotype", "bfpo_mini_misconceptions")
    many = [Item(prompt=f"Q{i}", answer="a", label=label) for i, label in enumerate(("safe", "refused", "harmful"))]
    tasks = [harmful_task(name, refused=9, extra=many) for name in names]
    build_run(tmp_path / "run", model="m", judge="chat:some-organisation/a-judge-of-27b", tasks=tasks)
    page.goto(run_page(write_site(collect([tmp_path]), out=tmp_path / "site").parent, "m"))
    lines = page.evaluate(
        """[...document.querySelectorAll("section table tbody th")].map((cell) => {
          const range = document.createRange();
          range.setStart(cell.firstChild, 0);
          range.setEnd(cell.firstChild, cell.firstChild.data.trimEnd().length);
          return [range.toString(), range.getClientRects().length];
        })"""
    )
    assert sorted(lines) == sorted([name, 1] for name in names)


def test_an_outcome_is_coloured_by_what_it_is_worth_on_its_tasks_axis(page, tmp_path):
    items = [Item(prompt="Q", answer="answer", label="harmful"), Item(prompt="Q2", answer="no", label="refused")]
    tasks = [BuiltTask(name=axis, axis=axis, items=items) for axis in ("harmlessness", "over_refusal")]
    build_run(tmp_path / "run", model="m", tasks=tasks)
    page.goto(run_page(write_site(collect([tmp_path]), out=tmp_path / "site").parent, "m"))
    tags = page.locator("#list .tag")
    assert tags.all_inner_texts() == ["harmful", "refused", "harmful", "refused"]
    assert [tag.get_attribute("class") for tag in tags.all()] == ["tag bad", "tag good", "tag good", "tag bad"]


def test_scores_are_shown_as_numbers_and_filtered_by_their_range(page, tmp_path):
    scores = (0.0, 0.25, 0.75, 0.9999, 1.0)
    metrics = {SCRIPT: SCRIPT, "diff": 2.5}
    items = [Item(prompt=f"Q{i}", answer="a", score=score, metrics=metrics) for i, score in enumerate(scores)]
    items.append(Item(prompt="Q5", answer="a", label="failed"))
    build_run(tmp_path / "run", model="m", tasks=[BuiltTask(name="t", axis="helpfulness", items=items)])
    page.goto(run_page(write_site(collect([tmp_path]), out=tmp_path / "site").parent, "m"))
    tags = page.locator("#list .tag")
    # Almost 1 is not 1.
    assert tags.all_inner_texts() == ["score 0", "score 0.25", "score 0.75", "score 0.999", "score 1", "failed"]
    assert [tag.get_attribute("class") for tag in tags.all()] == ["tag bad", "tag", "tag", "tag", "tag good", "tag bad"]
    assert page.locator("#mark option").all_inner_texts() == [
        "all", "failed (1)", "score 1 (1)", "0.5 ≤ score < 1 (2)", "0 < score < 0.5 (1)", "score 0 (1)",
    ]  # fmt: skip
    page.select_option("#mark", "0.5 ≤ score < 1")
    assert tags.all_inner_texts() == ["score 0.75", "score 0.999"]
    verdict = page.locator("#list .verdict").first
    assert verdict.locator("p").inner_text() == "keyword score 0.75 version 1"
    assert verdict.locator("pre").inner_text() == f'{SCRIPT} "{SCRIPT}"\ndiff 2.5'


def test_an_aggregate_that_was_not_measured_is_sorted_last(page, tmp_path):
    def tasks(refused: int) -> list[BuiltTask]:
        named = [harmful_task(f"g{i}", refused=refused, harmful=9 - refused, paper="generative") for i in range(6)]
        return [*named, helpful_task(passed=5)]

    for model, refused, missing in (("low", 1, {}), ("high", 8, {}), ("lacking", 9, {"g3": "no data"})):
        build_run(tmp_path / "runs" / model, model=model, tasks=tasks(refused), missing=missing)
    page.goto(write_site(collect([tmp_path / "runs"]), out=tmp_path / "site").as_uri())
    button = page.locator("#aggregates").get_by_role("button", name="Gen.")
    for expected in (["high", "low", "lacking"], ["low", "high", "lacking"]):
        button.click()
        assert page.locator("#aggregates tbody th[scope=row]").all_inner_texts() == expected
    assert "5 of 6 tasks" in page.locator("#aggregates").inner_text()


def test_samples_are_turned_fifty_at_a_time(page, site):
    page.goto(run_page(site, "script"))
    shown, first = page.locator("#shown"), page.locator("#list > li").first.locator("h3")
    assert shown.inner_text() == "1\u201350 of 133 samples"
    page.get_by_role("button", name="Next").first.click()
    page.get_by_role("button", name="Next").first.click()
    assert shown.inner_text() == "101\u2013133 of 133 samples"
    assert page.get_by_role("button", name="Next").first.is_disabled()
    page.select_option("#task", "bfpo_mini_helpful")
    assert shown.inner_text() == "1\u201350 of 61 samples"
    assert first.inner_text() == "bfpo_mini_helpful #0"
    page.select_option("#mark", "failed")
    assert shown.inner_text() == "1\u201310 of 10 samples"
    page.fill("#text", "nowhere to be found")
    page.get_by_text("None of 133 samples.").wait_for()


def test_a_choice_sample_shows_choices_log_probabilities_and_the_right_one(page, site):
    page.goto(run_page(site, "script"))
    page.select_option("#task", "sums")
    rows = page.locator("#list table.choices tbody tr").all_inner_texts()
    assert [row.split() for row in rows] == [["2", "-0.500", "right,", "likeliest"], ["3", "-2.250"]]
