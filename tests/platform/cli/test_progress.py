import dataclasses
import io
import time

import pytest
from intarsia_platform.cli import progress
from intarsia_platform.cli.interruption import SignalKeeper
from intarsia_platform.cli.progress import PlainWatch, RunWatch, TerminalWatch, round_line
from intarsia_platform.planning.client_plan import ClientPlan, RankPlan
from intarsia_platform.results import Measured, RefusedClient, RoundResult, RuleDecision


def result(number: int, **changes: object) -> RoundResult:
    values: dict[str, object] = {
        "round": number,
        "test": Measured(loss=2.3, perplexity=10.0, accuracy=None),
        "bytes_up": 1,
        "bytes_down": 1,
        "seconds": 4.2,
        "accepted": 3,
        "rank": 12,
    }
    return RoundResult(**{**values, **changes})  # type: ignore[arg-type]


def play(watch: RunWatch) -> None:
    """Two rounds of three clients, the first one finished by an earlier process."""
    watch.stage("reading the records")
    watch.run_begun("run-0001", 2, 1)
    watch.stage("starting Ray")
    watch.round_begun(2, 3)
    for client in ("ann", "bob"):
        watch.replied(2, client, "accepted")
    watch.replied(2, "cem", "refused")
    watch.round_published(result(2, refused=(RefusedClient(client="cem", reason="not-finite"),)))
    watch.stage("measuring")
    watch.client_measured(1, 2)
    watch.client_measured(2, 2)
    watch.warned("something\nis odd")


def test_a_plan_is_told_before_the_rounds(capsys):
    named = {"energy": 0.5, "memory_bytes": 10**6, "flops": 1, "bytes_up": 1, "bytes_down": 1}
    plan = RankPlan(
        round=1,
        round_seconds=30.0,
        modules=4,
        clients=(
            ClientPlan(client="ann", rank=8, target_modules=("q",), seconds=20.0, **named),
            ClientPlan(client="bob", rank=0, target_modules=(), note="bob: needs 9 MB", **named),
        ),
    )
    PlainWatch(SignalKeeper()).planned(plan)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "intarsia: planned from round 1, for rounds of 30 s"
    assert lines[1].startswith("intarsia: ann: rank 8, 1 of 4 modules")
    assert lines[-1] == "intarsia: warning: bob: needs 9 MB"
    assert len(lines) == 4


def test_plain_lines_are_one_an_event(capsys):
    play(PlainWatch(SignalKeeper()))
    out, err = capsys.readouterr()
    assert out == "" and err.replace("\n", "").isprintable()
    assert err.splitlines() == [
        "intarsia: reading the records",
        "intarsia: run-0001: 2 rounds, 1 of them finished already",
        "intarsia: starting Ray",
        "intarsia: round 2 of 2: 3 clients",
        "intarsia: round 2: ann accepted, 1 of 3 clients",
        "intarsia: round 2: bob accepted, 2 of 3 clients",
        "intarsia: round 2: cem refused, 3 of 3 clients",
        "intarsia: round 2: perplexity 10.0, 3 accepted, 1 refused, rank 12, 4.2 s",
        "intarsia: measuring",
        "intarsia: measured 1 of 2 on clients' held-out records",
        "intarsia: measured 2 of 2 on clients' held-out records",
        "intarsia: warning: something is odd",
    ]


def test_nothing_is_said_before_there_is_a_run(capsys):
    PlainWatch(SignalKeeper()).stage("reading the records")
    assert capsys.readouterr() == ("", "")


def test_of_many_replies_only_some_are_said(capsys):
    watch = PlainWatch(SignalKeeper())
    watch.run_begun("run-0001", 1, 0)
    watch.round_begun(1, 1000)
    for number in range(1000):
        watch.replied(1, f"client-{number}", "failed" if number == 7 else "accepted")
    lines = capsys.readouterr().err.splitlines()
    assert 20 <= len(lines) <= 25
    assert "intarsia: round 1: client-7 failed, 8 of 1000 clients" in lines


def test_a_finished_round_says_how_long_the_others_take(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    watch = PlainWatch(SignalKeeper())
    watch.run_begun("run-0001", 4, 1)
    watch.round_begun(2, 2)
    assert watch.seconds_to_go() is None
    clock[0] += 10
    watch.replied(2, "ann", "accepted")
    assert watch.seconds_to_go() == pytest.approx(50)
    clock[0] += 6
    watch.replied(2, "bob", "accepted")
    watch.round_published(result(2))
    assert watch.seconds_to_go() == pytest.approx(32)
    assert capsys.readouterr().err.rstrip().endswith("; about 32 s to go")


@pytest.mark.parametrize(
    ("published", "line"),
    [
        (None, "interrupted before the first round; nothing is lost; start with: do"),
        (0, "interrupted in round 1; no round is finished yet; continue with: do"),
        (1, "interrupted in round 2; round 1 is kept; continue with: do"),
        (3, "interrupted in round 4; rounds 1-3 are kept; continue with: do"),
        (5, "interrupted after the last round; rounds 1-5 are kept; continue with: do"),
    ],
)
def test_an_interruption_says_what_is_kept(published, line):
    watch = RunWatch(SignalKeeper())
    if published is not None:
        watch.run_begun("run-0001", 5, published)
    assert watch.interrupted_line("do") == line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_bar_that_goes_away(monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stderr", terminal)
    with progress.watching(SignalKeeper()) as watch:
        assert isinstance(watch, TerminalWatch)
        play(watch)
        bars = [task.description for task in watch._progress.tasks]
    text = terminal.getvalue()
    assert bars == ["measuring clients"]
    assert "\x1b[" in text and "to go" in text and "round 2 of 2" in text
    assert "round 2: cem refused" in text and "warning: something is odd" in text


def test_without_a_terminal_the_lines_are_plain(monkeypatch):
    with progress.watching(SignalKeeper()) as watch:
        assert isinstance(watch, PlainWatch)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stderr", Terminal())
    with progress.watching(SignalKeeper()) as watch:
        assert isinstance(watch, PlainWatch)


def test_a_broken_standard_error_stops_nothing(monkeypatch):
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Broken())
    play(PlainWatch(SignalKeeper()))


def test_a_round_is_told_by_the_number_that_counts():
    accuracy = Measured(loss=0.5, perplexity=None, accuracy=0.875)
    assert "accuracy 87.5" in round_line(result(1, test=accuracy))
    assert round_line(result(1, test=None)).startswith("round 1: 3 accepted")


def test_a_round_says_what_was_left_out():
    decided = RuleDecision(
        client="cem", outcome="left-out", share_before=0.25, share=0.0, factor=1.0
    )
    one = dataclasses.replace(result(1), residual_energy=0.021, decisions=(decided,))
    line = round_line(one)
    assert "1 reweighed or left out, rank" in line
    assert "2.1\u202f% held back" in line and "cut" not in line
    assert "3\u202f% cut" in round_line(dataclasses.replace(one, cut_energy=0.03))
