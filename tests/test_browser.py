"""The leaderboard in a headless Chromium: what a reader sees and does, and what hostile text cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import HOSTILE, LONG, SCRIPT
from run_builder import BuiltTask, Item, build_run, harmful_task, helpful_task

from bfpo_bench.leaderboard import board
from bfpo_bench.leaderboard.published import Figure, PublishedRow
from bfpo_bench.leaderboard.render import write_site
from bfpo_bench.leaderboard.rows import collect

pytestmark = pytest.mark.browser


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


# -- finding runs, many runs -------------------------------------------------------------------------------------------


def test_a_word_finds_runs_in_the_table_and_in_the_picture(page, site):
    page.goto((site / "index.html").as_uri())
    page.wait_for_selector("#chart svg")
    page.get_by_label("Find runs").fill("careful")
    assert models(page) == ["careful"]
    assert page.locator("#chart svg a").count() == 1
    assert page.locator(".finder p").first.inner_text() == "1 of 1 found among 6"
    # The words of a group's heading find its runs.
    page.get_by_label("Find runs").fill("keyword e")
    assert len(models(page)) == 6
    page.get_by_label("Find runs").fill("nobody")
    assert models(page) == [] and page.get_by_text("None of 6.").is_visible()
    page.get_by_label("Find runs").fill("")
    assert len(models(page)) == page.locator("#chart svg a").count() == 6


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More runs than a table shows at once."""
    runs = tmp_path_factory.mktemp("crowd")
    for i in range(103):
        tasks = [harmful_task(refused=i % 4, harmful=4 - i % 4), helpful_task(passed=i % 3, failed=3 - i % 3)]
        build_run(runs / f"{i:03d}", model=f"model-{i:03d}", tasks=tasks)
    return write_site(collect([runs]), out=tmp_path_factory.mktemp("site-crowd")).parent


@pytest.mark.parametrize("name", ["index.html", "tasks/bfpo_mini_harmful.html", "manifests.html"])
def test_of_many_runs_a_hundred_are_shown_and_all_are_found_sorted_and_asked_for(page, crowd, name):
    page.goto((crowd / name).as_uri())
    table = page.locator("table.sortable").first
    rows = table.locator("tbody th[scope=row]")
    assert rows.count() == 100
    table.get_by_role("button", name="Model").click()
    assert rows.first.locator("a").inner_text() == "model-000"
    table.get_by_role("button", name="Model").click()
    # One that was not in the document is the first now.
    assert rows.first.locator("a").inner_text() == "model-102"
    assert rows.count() == 100
    page.get_by_label("Find runs").first.fill("model-001")
    assert rows.count() == 1
    page.get_by_label("Find runs").first.fill("")
    page.get_by_role("button", name="Show all 103").first.click()
    assert rows.count() == 103


def test_a_row_that_the_script_makes_is_the_row_that_would_have_stood_in_the_document(page, tmp_path, monkeypatch):
    told = {"name": "org/base", "identity": "sha256:base", "method": "bfpo", "seed": 0}
    named, notes = {**told, "name": f"gone/{SCRIPT}", "identity": "sha256:gone"}, ["reason 0", f"reason {SCRIPT}"]
    for name, refused, passed, more in (
        ("org/base", 7, 5, {}), ("org/tuned", 8, 1, {"trained_from": told}), (f"{SCRIPT} \u202e", 5, 7, {}),
        ("stray", 3, 3, {"trained_from": named}), ("notes", 1, 6, {"reasons": notes, "status": "complete"}),
        ("cut", 4, 4, {"limit": 5}), ("policy:refuse", 8, 0, {"engine": "policy"}), ("other", 5, 5, {"judge": "b"}),
    ):  # fmt: skip
        # Of 8: 12.5 % and 62.5 % are halves of a tenth of a per cent in their hundredths, 6.25 % is not.
        tasks = [
            harmful_task(refused=refused, harmful=8 - refused, n=16),
            helpful_task(passed=passed, failed=8 - passed),
        ]
        build_run(tmp_path / "runs" / str(passed + 10 * refused), model=name, tasks=tasks, **more)
    # 1 of 16 is 6.25 %, a half that goes down; 3 of 16 one that goes up.
    for n in (1, 3):
        build_run(tmp_path / "runs" / f"half-{n}", model=f"half-{n}", tasks=[harmful_task(refused=n, harmful=16 - n)])
    (tmp_path / "runs" / "33" / "outcomes.json").unlink()
    rows = collect([tmp_path / "runs"])
    found, marks = {}, {}
    for n_shown in (100, 2, 0):
        monkeypatch.setattr(board, "SHOWN", n_shown)
        page.goto(write_site(rows, out=tmp_path / f"site-{n_shown}").as_uri())
        page.locator("#leaderboard").get_by_role("button", name="Model").click()
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        found[n_shown] = page.evaluate(
            """[...document.querySelectorAll("#leaderboard tbody *")].map((e) => [
              e.tagName, e.getAttribute("class"), e.getAttribute("href"), e.getAttribute("title"), e.dataset.slug,
              e.tagName === "TD" ? Number(e.dataset.value ?? e.textContent).toFixed(8) : e.dataset.value,
              e.children.length === 0 ? e.textContent : "",
            ].filter((part) => part !== null && part !== "" && part !== undefined).join("|"))"""
        )
        marks[n_shown] = page.evaluate(
            """[...document.querySelectorAll("#leaderboard rect")].map((e) => parseFloat(e.getAttribute("x")))"""
        )
    assert len(rows) == 10 and len(found[100]) > 10 * 30
    assert found[2] == found[100] and found[0] == found[100]
    assert marks[2] == pytest.approx(marks[100], abs=0.02) and marks[0] == pytest.approx(marks[100], abs=0.02)


def test_without_scripts_a_hundred_runs_can_be_read_and_where_the_others_are(browser, crowd):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((crowd / "index.html").as_uri())
    assert len(models(page)) == 100
    assert page.get_by_text("The first 100 of 103 runs.").is_visible()
    context.close()


# -- the frontier ------------------------------------------------------------------------------------------------------


def test_the_frontier_is_drawn_with_its_uncertainty_and_told_in_the_table(page, site):
    page.goto((site / "index.html").as_uri())
    page.wait_for_selector("#chart svg")
    # One group has three ranked runs; the frontier of the other's only one would be that run.
    assert page.locator("#chart [aria-label=line] path").count() == 1
    assert page.locator("#chart [aria-label=area] path").count() == 1
    row = page.locator("#leaderboard tr[data-slug=balanced]")
    # 8 of 10 twice, against 10 and 2 and against 2 and 9: ahead by ten points at least, on ten prompts an axis.
    assert row.locator(".rank .interval").inner_text() in ("1\u20132", "1\u20133")
    assert row.locator(".frontier").inner_text().endswith("on it")
    cut = page.locator("#leaderboard tr[data-slug=cut-short] .frontier")
    assert cut.inner_text().split() == ["\u2013", "unranked"]
    assert page.locator(".volumes li").count() == 2


def test_a_run_that_was_scored_before_there_were_outcomes_says_so(page, tmp_path):
    for model in ("old", "new"):
        build_run(tmp_path / "runs" / model, model=model, tasks=[harmful_task(refused=5), helpful_task(passed=5)])
    (tmp_path / "runs" / "old" / "outcomes.json").unlink()
    page.goto(write_site(collect([tmp_path / "runs"]), out=tmp_path / "site").as_uri())
    assert page.locator("#leaderboard tr[data-slug=old] .frontier").inner_text() == "score it again"
    assert page.locator("#leaderboard tr[data-slug=old] .rank").inner_text() == "1"
    assert page.get_by_text("1 ranked run is not among them: score it again.").is_visible()


# -- a task's page, what was run, published figures -------------------------------------------------------------------


def test_a_tasks_page_has_a_bar_a_run_and_its_categories(page, tmp_path):
    for model, right in (("a", ("weapons", "privacy")), ("b", ("weapons",))):
        items = [Item(prompt=c, answer="x", label="refused" if c in right else "harmful", category=c,
                      others={"chat:b": "refused"}) for c in ("weapons", "privacy")]  # fmt: skip
        tasks = [BuiltTask(name="t", axis="harmlessness", items=items, chance=0.25), helpful_task(passed=3)]
        build_run(tmp_path / "runs" / model, model=model, tasks=tasks)
    page.goto(write_site(collect([tmp_path / "runs"]), out=tmp_path / "site").as_uri())
    page.get_by_role("link", name="t", exact=True).click()
    page.wait_for_selector("#chart svg a")
    bars = page.locator("#chart svg a [aria-label]")
    assert [bar.get_attribute("aria-label").split(",")[0] for bar in bars.all()] == ["a: 100.0%", "b: 50.0%"]
    page.select_option("#category", label="privacy")
    assert [bar.get_attribute("aria-label").split(",")[0] for bar in bars.all()] == ["a: 100.0%", "b: 0.0%"]
    cells = page.locator("#by-category tbody tr", has_text="b").locator("td").all_inner_texts()
    assert [cell.split()[0] for cell in cells] == ["0.0%", "100.0%"]
    # Of four answers the judges differ over one; as the second never varies, chance would give three of four as well.
    told = page.locator("#agreement tbody td").all_inner_texts()
    assert [*told[:3], told[3].split()[0]] == ["4", "2", "75.0%", "0.00"]
    page.locator("#chart svg a").first.click()
    page.wait_for_url("**/runs/a.html")


def test_two_runs_are_compared_by_their_manifests_and_the_choice_can_be_linked_to(page, site):
    page.goto((site / "manifests.html").as_uri() + "#careful..eager")
    settings = page.locator("#settings")
    assert settings.locator("th").all_inner_texts() == ["model.identity", "model.name"]
    assert settings.locator("tr").last.locator("td").all_inner_texts() == ["careful", "eager"]
    assert page.get_by_text("2 settings differ.").is_visible()
    page.uncheck("#differing")
    assert settings.locator("th", has_text="packages.torch").is_visible()
    page.check("#differing")
    page.select_option("#second", label="careful")
    assert page.get_by_text("These two differ in no setting.").is_visible()
    assert page.url.endswith("#careful..careful")


@pytest.fixture(scope="module")
def cited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs beside a published model, whose name and note are hostile."""
    folder = tmp_path_factory.mktemp("cited")
    for model in ("a", "b"):
        build_run(folder / "runs" / model, model=model, tasks=[harmful_task(refused=5), helpful_task(passed=5)])
    row = PublishedRow(
        model=f"cited {SCRIPT}",
        citation="Somebody 2024",
        url="https://example.org/a",
        note=SCRIPT,
        axes={"harmlessness": Figure(value=0.4), "helpfulness": Figure(value=0.3)},
        tasks={"bfpo_mini_harmful": Figure(value=0.5, n=8)},
    )
    return write_site(collect([folder / "runs"]), out=folder / "site", published=[row]).parent


def test_published_figures_stand_apart_and_have_their_source(page, cited):
    page.goto((cited / "index.html").as_uri())
    page.wait_for_selector("#chart svg")
    assert len(models(page)) == page.locator("#chart svg a").count() == 2
    row = page.locator("#cited tbody tr")
    assert "published, not run here" in row.inner_text() and SCRIPT in row.inner_text()
    assert row.get_by_role("link").get_attribute("href") == "https://example.org/a"
    # Without what stands before the last slash, as every name.
    assert page.locator("#chart text", has_text="script>").count() == 1
    page.goto((cited / "tasks" / "bfpo_mini_harmful.html").as_uri())
    page.wait_for_selector("#chart svg a")
    assert page.locator("#chart svg a").count() == 2
    assert page.locator("#chart [aria-label^=cited]").count() == 1
    assert page.locator("#cited").get_by_text("published, not run here").is_visible()


# -- for everybody -----------------------------------------------------------------------------------------------------

PAGES = ["index.html", "tasks/bfpo_mini_harmful.html", "manifests.html"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_serious_violation(page, cited, name, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    page.emulate_media(color_scheme=theme)
    page.goto((cited / name).as_uri())
    page.wait_for_timeout(100)
    found = axe.Axe().run(page).response["violations"]
    told = [(one["id"], one["impact"], [node["html"][:200] for node in one["nodes"]][:3]) for one in found]
    assert [one for one in told if one[1] in ("serious", "critical")] == []


@pytest.mark.parametrize("name", PAGES)
def test_no_page_is_wider_than_a_phone(page, cited, name):
    page.set_viewport_size({"width": 375, "height": 800})
    page.goto((cited / name).as_uri())
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_on_paper_every_run_is_there_and_nothing_to_press(page, crowd):
    page.goto((crowd / "index.html").as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#leaderboard tbody th[scope=row]").count() == 103
    assert not page.locator("#theme").is_visible() and not page.locator(".finder").first.is_visible()
    # Readers of the dark theme do not print it.
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


# -- a run's page ------------------------------------------------------------------------------------------------------


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
