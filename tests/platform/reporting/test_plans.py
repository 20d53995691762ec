from intarsia_platform.planning.client_plan import ClientPlan, RankPlan
from intarsia_platform.reporting import plan_lines, plan_table
from intarsia_platform.reporting.measures import MISSING
from intarsia_platform.reporting.page import write_report
from intarsia_platform.reporting.plans import plan_rows, plan_title
from rich.console import Console


def client(name: str, rank: int, **changes: object) -> ClientPlan:
    values: dict[str, object] = {
        "client": name,
        "rank": rank,
        "target_modules": tuple(f"module-{number}" for number in range(rank)),
        "energy": rank / 100,
        "memory_bytes": 1_500_000,
        "flops": 10**9,
        "bytes_up": 20_000,
        "bytes_down": 3_000,
        "seconds": 0.034,
    }
    return ClientPlan(**{**values, **changes})  # type: ignore[arg-type]


def nothing(name: str) -> ClientPlan:
    return client(
        name, 0, target_modules=(), energy=0.0, seconds=None, note=f"{name}: trains nothing: why"
    )


PLAN = RankPlan(
    round=3,
    round_seconds=12.0,
    modules=28,
    clients=(nothing("ann"), client("[b]bob", 4), client("cem", 16, seconds=75.0)),
)


def plain(text: str) -> str:
    return text.replace("\u2009", " ").replace("\u202f", " ")


def rendered(plan: RankPlan) -> str:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(plan_table(plan))
    return plain(capture.get())


def test_title_says_from_when_on_and_for_how_long() -> None:
    assert plain(plan_title(PLAN)) == "Planned from round 3, for rounds of 12 s"
    free = RankPlan(round=1, round_seconds=None, modules=1, clients=(client("ann", 1),))
    assert plan_title(free) == "Planned from round 1"


def test_the_largest_come_first_and_who_fits_nothing_last() -> None:
    rows = plan_rows(PLAN)
    assert [row.client for row in rows] == ["cem", "[b]bob", "ann"]
    assert [plain(cell) for cell in rows[0].cells] == [
        "16", "16 of 28", "16 %", "1.5 MB", "20 kB", "3 kB", "1 min 15 s",
    ]  # fmt: skip
    assert plain(rows[1].cells[-1]) == "0.034 s"
    assert set(rows[2].cells) == {MISSING}


def test_the_table_fits_and_shows_foreign_names_as_they_are() -> None:
    text = rendered(PLAN)
    assert "…" not in text and "[b]bob" in text and "16 of 28" in text
    many = RankPlan(
        round=1,
        round_seconds=None,
        modules=28,
        clients=tuple(client(f"site-{number}", 4) for number in range(90)),
    )
    assert plan_table(many).row_count == 40
    assert "40 of 90 clients" in rendered(many)


def test_lines_for_where_there_is_no_table() -> None:
    lines = [plain(line) for line in plan_lines(PLAN, 2)]
    assert len(lines) == 3
    assert lines[0] == "planned from round 3, for rounds of 12 s"
    assert (
        lines[1] == "cem: rank 16, 16 of 28 modules, 16 % of the energy, 1.5 MB, 1 min 15 s a round"
    )


def test_the_page_shows_every_plan_and_what_does_not_fit(simulation, tmp_path) -> None:
    import dataclasses

    result = dataclasses.replace(simulation(), plan=(PLAN,))
    path = write_report(tmp_path / "report.html", result, title="t", introduction="i")
    page = plain(path.read_text())
    assert "Planned from round 3" in page and "[b]bob" in page and "16 of 28" in page
    assert "ann: trains nothing: why" in page
    without = write_report(tmp_path / "other.html", simulation(), title="t", introduction="i")
    assert "Planned from" not in without.read_text()
