"""What a person sees while a simulation runs: a bar on a terminal, one line an event elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from intarsia_platform.cli.interruption import SignalKeeper
from intarsia_platform.cli.lines import one_line, say
from intarsia_platform.cli.output import console_for, is_terminal
from intarsia_platform.reporting.measures import ACCURACY, PERPLEXITY, duration_text, share_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from intarsia_platform.planning.client_plan import RankPlan
    from intarsia_platform.results import RoundResult

# Beyond so many clients a round, plain lines about replies come only every so often.
_SHOWN_REPLIES = 20
# Rich forgets its samples after that many seconds; a client's training may take many minutes.
_LONGEST_SAMPLE = 86_400.0


class RunWatch:
    """Knows how far a run is; what the ways of showing it have in common.

    Args:
        signals: Taken back at each stage: Ray puts its own handler in their place when it starts.
    """

    def __init__(self, signals: SignalKeeper) -> None:
        """Begin before the run."""
        self._signals = signals
        self._cohort = 0
        self._begun_at = time.monotonic()
        self._begun_from = 0
        self.run: str | None = None
        self.rounds = 0
        self.published = 0
        self.round = 0
        self.replies = 0

    def stage(self, text: str) -> None:
        """A stage of the work begins."""
        self._signals.take()

    def run_begun(self, run_id: str, rounds: int, published: int) -> None:
        """The run is in the database."""
        self.run, self.rounds, self.published = run_id, rounds, published

    def planned(self, plan: RankPlan) -> None:
        """Clients train what this plan says; what does not fit is a warning."""
        for line in plan.notes[:_SHOWN_REPLIES]:
            self.warned(line)
        if len(plan.notes) > _SHOWN_REPLIES:
            self.warned(f"{len(plan.notes) - _SHOWN_REPLIES} more clients do not fit their plan")

    def round_begun(self, number: int, cohort: int) -> None:
        """A round begins or goes on."""
        self._signals.take()
        if not self.round:
            self._begun_at, self._begun_from = time.monotonic(), self.published * cohort
        self.round, self._cohort, self.replies = number, cohort, 0

    def replied(self, number: int, client: str, status: str) -> None:
        """One client's reply was dealt with."""
        self.replies += 1

    def round_published(self, result: RoundResult) -> None:
        """A round's result is in the registry."""
        self.published, self.replies = result.round, 0

    def client_measured(self, done: int, total: int) -> None:
        """Measurements on clients' records have arrived."""

    def warned(self, line: str) -> None:
        """Something that a person should know and that stops nothing."""
        say(f"warning: {line}")

    @property
    def steps_done(self) -> int:
        """Rounds times clients, as far as they are done."""
        return self.published * self._cohort + min(self.replies, self._cohort)

    @property
    def steps(self) -> int:
        """Rounds times clients in all."""
        return self.rounds * self._cohort

    def seconds_to_go(self) -> float | None:
        """How long the remaining rounds take at the pace so far, None before there is one."""
        done = self.steps_done - self._begun_from
        if done <= 0:
            return None
        pace = (time.monotonic() - self._begun_at) / done
        return pace * (self.steps - self.steps_done)

    def interrupted_line(self, command: str) -> str:
        """What an interruption leaves and how to go on.

        Args:
            command: What to type to continue.

        Returns:
            One line.
        """
        if self.run is None:
            return f"interrupted before the first round; nothing is lost; start with: {command}"
        if self.published >= self.rounds:
            where = "after the last round"
        else:
            where = f"in round {self.published + 1}"
        kept = {0: "no round is finished yet", 1: "round 1 is kept"}.get(
            self.published, f"rounds 1-{self.published} are kept"
        )
        return f"interrupted {where}; {kept}; continue with: {command}"


class PlainWatch(RunWatch):
    """One line an event on standard error, without control characters.

    What happens before the run is in the database is told when it is: an input that is refused
    until then leaves nothing but its one line.

    Args:
        signals: As :class:`RunWatch`.
    """

    def __init__(self, signals: SignalKeeper) -> None:
        """Begin with nothing said."""
        super().__init__(signals)
        self._held: list[str] = []

    def stage(self, text: str) -> None:
        """Say which stage begins."""
        super().stage(text)
        if self.run is None:
            self._held.append(text)
        else:
            say(text)

    def run_begun(self, run_id: str, rounds: int, published: int) -> None:
        """Say which run it is, and where it goes on."""
        super().run_begun(run_id, rounds, published)
        for text in self._held:
            say(text)
        say(f"{run_id}: {rounds} rounds{_already(published)}")

    def planned(self, plan: RankPlan) -> None:
        """Say what clients train; of many only some."""
        from intarsia_platform.reporting.plans import plan_lines

        for line in plan_lines(plan, _SHOWN_REPLIES):
            say(line)
        super().planned(plan)

    def round_begun(self, number: int, cohort: int) -> None:
        """Say which round begins."""
        super().round_begun(number, cohort)
        say(f"round {number} of {self.rounds}: {cohort} clients")

    def replied(self, number: int, client: str, status: str) -> None:
        """Say who replied; of many clients only some, but everyone who was not accepted."""
        super().replied(number, client, status)
        every = max(1, self._cohort // _SHOWN_REPLIES)
        if status != "accepted" or self.replies % every == 0:
            say(f"round {number}: {client} {status}, {self.replies} of {self._cohort} clients")

    def round_published(self, result: RoundResult) -> None:
        """Say what the round gave and how long the others will take."""
        super().round_published(result)
        to_go = self.seconds_to_go()
        left = "" if not to_go else f"; about {duration_text(to_go)} to go"
        say(f"{round_line(result)}{left}")

    def client_measured(self, done: int, total: int) -> None:
        """Say how many measurements have arrived; of many only some."""
        super().client_measured(done, total)
        if done == total or done % max(1, total // _SHOWN_REPLIES) == 0:
            say(f"measured {done} of {total} on clients' held-out records")


class TerminalWatch(RunWatch):
    """A bar with a time to go, the finished rounds in lines above it.

    Args:
        signals: As :class:`RunWatch`.
        progress: Rich's display, started.
    """

    def __init__(self, signals: SignalKeeper, progress: Progress) -> None:
        """Begin without a bar."""
        super().__init__(signals)
        self._progress = progress
        self._stage: TaskID | None = None
        self._rounds: TaskID | None = None
        self._measured: TaskID | None = None

    def stage(self, text: str) -> None:
        """Show which stage it is by a bar of unknown length."""
        super().stage(text)
        self._end_stage()
        if self.published >= self.rounds:
            self._remove(self._rounds)
            self._rounds = None
        self._remove(self._measured)
        self._measured = None
        self._stage = self._progress.add_task(one_line(text), total=None)

    def run_begun(self, run_id: str, rounds: int, published: int) -> None:
        """Name the run."""
        super().run_begun(run_id, rounds, published)
        self._progress.console.print(f"{run_id}: {rounds} rounds{_already(published)}")

    def planned(self, plan: RankPlan) -> None:
        """Leave the plan above the bar."""
        from intarsia_platform.reporting.plans import plan_table

        self._progress.console.print(plan_table(plan))
        super().planned(plan)

    def round_begun(self, number: int, cohort: int) -> None:
        """Begin the bar of all rounds, or say on it which round it is."""
        super().round_begun(number, cohort)
        self._end_stage()
        name = f"round {number} of {self.rounds}"
        if self._rounds is None:
            # A bar that begins where a resumed run does keeps the time to go honest.
            self._rounds = self._progress.add_task(
                name, total=self.steps, completed=self.steps_done
            )
        self._progress.update(self._rounds, description=name, total=self.steps)

    def replied(self, number: int, client: str, status: str) -> None:
        """Move the bar on by one client."""
        super().replied(number, client, status)
        if status != "accepted":
            self._progress.console.print(one_line(f"round {number}: {client} {status}"))
        self._move()

    def round_published(self, result: RoundResult) -> None:
        """Leave a line above the bar."""
        super().round_published(result)
        self._progress.console.print(round_line(result))
        self._move()

    def client_measured(self, done: int, total: int) -> None:
        """Move the bar of the measurements on."""
        super().client_measured(done, total)
        self._end_stage()
        if self._measured is None:
            self._measured = self._progress.add_task("measuring clients", total=total)
        self._progress.update(self._measured, completed=done, total=total)

    def warned(self, line: str) -> None:
        """Leave the warning above the bar."""
        self._progress.console.print(f"warning: {one_line(line)}", style="yellow")

    def _move(self) -> None:
        if self._rounds is not None:
            self._progress.update(self._rounds, completed=self.steps_done)

    def _end_stage(self) -> None:
        self._remove(self._stage)
        self._stage = None

    def _remove(self, bar: TaskID | None) -> None:
        if bar is not None:
            self._progress.remove_task(bar)


@contextlib.contextmanager
def watching(signals: SignalKeeper) -> Iterator[RunWatch]:
    """Watch a simulation in the way that fits standard error.

    Args:
        signals: The signals to keep.

    Yields:
        The observer to hand to the simulation.
    """
    if not is_terminal(sys.stderr):
        yield PlainWatch(signals)
        return
    with display_with_time_to_go() as display:
        yield TerminalWatch(signals, display)


def display_with_time_to_go() -> Progress:
    """Bars on standard error that say how long each still takes, and leave nothing behind.

    Returns:
        Rich's display, not started.
    """
    from rich import progress
    from rich.text import Text

    class TimeToGo(progress.TimeRemainingColumn):
        """Says what its number is, and nothing where there is none."""

        def render(self, task: progress.Task) -> Text:
            shown = super().render(task)
            return shown.append(" to go") if shown else shown

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        TimeToGo(),
        console=console_for(sys.stderr),
        transient=True,
        speed_estimate_period=_LONGEST_SAMPLE,
    )


def round_line(result: RoundResult) -> str:
    """What a finished round gave, in one line.

    Args:
        result: The round.

    Returns:
        Such as ``"round 2: perplexity 10.31, 8 accepted, rank 60, 4.2 s"``.
    """
    parts = [f"{result.accepted} accepted"]
    if result.refused:
        parts.append(f"{len(result.refused)} refused")
    if result.sat_out:
        parts.append(f"{len(result.sat_out)} sat out")
    if result.decisions:
        parts.append(f"{len(result.decisions)} reweighed or left out")
    parts.append(f"rank {result.rank}")
    for share, words in ((result.residual_energy, "held back"), (result.cut_energy, "cut")):
        if share:
            parts.append(f"{share_text(share)} {words}")
    parts.append(duration_text(result.seconds))
    for measure in (ACCURACY, PERPLEXITY):
        value = measure.of(result.test)
        if value is not None:
            parts.insert(0, f"{measure.key} {measure.text(value)}")
    return f"round {result.round}: {', '.join(parts)}"


def _already(published: int) -> str:
    return f", {published} of them finished already" if published else ""
