"""The study's tables: one line a figure as CSV, everything as JSON, pages' tables as Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from study import CENTRAL, LOCAL
from summary import Entry, Setting

_MISSING = "missing"


def as_csv(settings: Sequence[Setting]) -> str:
    """One line for each row in each setting.

    Args:
        settings: The settings.

    Returns:
        The file's text.
    """
    text = io.StringIO()
    lines = [line for setting in settings for line in _lines(setting)]
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_json(settings: Sequence[Setting]) -> str:
    """The same with the values of every seed, the curves, and how the ledger does.

    Args:
        settings: The settings.

    Returns:
        The file's text.
    """
    told = [
        {
            "setting": setting.title,
            "dataset": setting.dataset.name,
            "measure": setting.dataset.measure,
            "verdict": _verdict(setting),
            "rows": [
                {
                    **line,
                    "seeds": list(entry.seeds),
                    "values": list(entry.values),
                    "curve": [list(point) for point in entry.curve],
                    "down": list(entry.down),
                    "up": list(entry.up),
                }
                for line, entry in zip(_lines(setting), setting.entries, strict=True)
            ],
        }
        for setting in settings
    ]
    return json.dumps(told, indent=1) + "\n"


def as_markdown(settings: Sequence[Setting]) -> str:
    """The tables for people, a section for each data set.

    Args:
        settings: The settings.

    Returns:
        The file's text.
    """
    parts = []
    for name in dict.fromkeys(setting.dataset.name for setting in settings):
        here = [setting for setting in settings if setting.dataset.name == name]
        parts += [
            f"### {name}: test {_unit(here[0])}\n",
            _figures(here),
            f"\n### {name}: the ledger beside the best method\n",
            _verdicts(here),
            f"\n### {name}: learning rates\n",
            _rates(here),
            f"\n### {name}: kilobytes of a client's round, down / up\n",
            _traffic(here),
            "",
        ]
    return "\n".join(parts)


def value_text(setting: Setting, entry: Entry) -> str:
    """A mean with its standard error as the tables write it, or why there is none."""
    if entry.refused:
        return "n/a"
    if not entry.values:
        return _MISSING
    scale, digits = (100.0, 1) if setting.dataset.measure == "accuracy" else (1.0, 2)
    text = f"{scale * entry.mean:.{digits}f}"
    if entry.error is not None:
        text += f" ± {scale * entry.error:.{digits}f}"
    if not entry.complete:
        text += f" ({len(entry.values)} of {entry.expected} seeds)"
    return text


def _unit(setting: Setting) -> str:
    return {"accuracy": "accuracy in %, more is better"}.get(
        setting.dataset.measure, f"{setting.dataset.measure}, less is better"
    )


def _lines(setting: Setting) -> list[dict[str, Any]]:
    return [
        {
            "dataset": setting.dataset.name,
            "clients": setting.federation.clients,
            "fraction": setting.federation.fraction,
            "partition": setting.partition,
            "row": entry.row.name,
            "learning_rate": entry.rate,
            "measure": setting.dataset.measure,
            "mean": entry.mean if entry.values else None,
            "standard_error": entry.error,
            "finished_seeds": len(entry.values),
            "expected_seeds": entry.expected,
            "down_bytes_first_round": entry.down[0] if entry.down else None,
            "down_bytes_last_round": entry.down[-1] if entry.down else None,
            "up_bytes_last_round": entry.up[-1] if entry.up else None,
            "held_back": entry.held_back,
            "refused": entry.refused,
        }
        for entry in setting.entries
    ]


def _verdict(setting: Setting) -> dict[str, Any] | None:
    verdict = setting.verdict
    if verdict is None:
        return None
    return {
        "best": verdict.best.row.name,
        "gap": verdict.gap,
        "in_standard_errors_of_the_best": verdict.in_errors,
        "paired_standard_error": verdict.paired[1],
        "within_one": verdict.within_one,
    }


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _figures(settings: Sequence[Setting]) -> str:
    best = {
        setting.title: setting.verdict.best.row if setting.verdict else None for setting in settings
    }
    rows = []
    for index, entry in enumerate(settings[0].entries):
        cells = []
        for setting in settings:
            text = value_text(setting, setting.entries[index])
            cells.append(f"**{text}**" if best[setting.title] == entry.row else text)
        rows.append([entry.row.name, *cells])
    return _table(["", *(setting.title for setting in settings)], rows)


def _rates(settings: Sequence[Setting]) -> str:
    rows = [
        [setting.entries[index].row.name for setting in settings[:1]]
        + [_rate(setting.entries[index]) for setting in settings]
        for index in range(len(settings[0].entries))
    ]
    return _table(["", *(setting.title for setting in settings)], rows)


def _rate(entry: Entry) -> str:
    if entry.refused or entry.row.head_alone:
        return "n/a"
    return _MISSING if entry.rate is None else f"{entry.rate:g}"


def _verdicts(settings: Sequence[Setting]) -> str:
    rows = []
    for setting in settings:
        verdict = setting.verdict
        if verdict is None:
            rows.append([setting.title, _MISSING, _MISSING, "", "", ""])
            continue
        scale, digits = (100.0, 1) if setting.dataset.measure == "accuracy" else (1.0, 2)
        errors = "" if verdict.in_errors is None else f"{verdict.in_errors:.1f}"
        paired = f"{scale * verdict.gap:.{digits}f}"
        if verdict.paired[1] is not None:
            paired += f" ± {scale * verdict.paired[1]:.{digits}f}"
        says = {True: "yes", False: "**no**", None: ""}[verdict.within_one]
        rows.append(
            [
                setting.title,
                verdict.best.row.name,
                value_text(setting, verdict.best),
                value_text(setting, setting.entry("ledger")),
                paired,
                errors,
                says,
            ]
        )
    header = [
        "",
        "best",
        "it has",
        "ledger has",
        "best is better by, seed by seed",
        "in its standard errors",
        "within one",
    ]
    return _table(header, rows)


def _traffic(settings: Sequence[Setting]) -> str:
    rows = []
    for index, entry in enumerate(settings[0].entries):
        if entry.row in (CENTRAL, LOCAL):
            continue
        cells = []
        for setting in settings:
            here = setting.entries[index]
            text = "n/a" if here.refused else _MISSING
            if here.down:
                text = f"{here.down[-1] / 1e3:.0f} / {here.up[-1] / 1e3:.0f}"
            cells.append(text)
        rows.append([entry.row.name, *cells])
    return "Of the last round.\n\n" + _table(["", *(one.title for one in settings)], rows)
