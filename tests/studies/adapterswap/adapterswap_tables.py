"""The study's tables: one line a figure as CSV, everything as JSON, pages' tables as Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence

from adapterswap_parts import (
    BASE,
    CHOSEN,
    CHRONOLOGICAL,
    ONE_FOR_ALL,
    OWN,
    RETRIEVED,
    ROUTED,
    TOLD,
    UNIFORM,
    WITHOUT,
)
from adapterswap_study import ACCESS, CONTINUAL, DELETION, RETRIEVAL, Dataset, Study
from adapterswap_summary import Figure, Results, finished, is_had

MISSING = "missing"

WAYS = {
    BASE: "base alone: no access at all",
    WITHOUT: "access to every group but the record's: retrieved, up to 3",
    OWN: "full access, told the group: its own adapter",
    RETRIEVED[1]: "full access, retrieved: 1 adapter",
    RETRIEVED[2]: "full access, retrieved: up to 2",
    RETRIEVED[3]: "full access, retrieved: up to 3 (the default)",
    ROUTED["arrow"]: "full access, all adapters, Arrow token by token and layer by layer",
    ROUTED["lag"]: "full access, all adapters, LAG likewise",
    UNIFORM: "full access, all adapters with equal weights",
    ONE_FOR_ALL: "no access control: one adapter trained on everything",
}
LEARNERS = {
    TOLD: "AdapterSwap, told the group",
    CHOSEN: "AdapterSwap, retrieved among those that have come",
    CHRONOLOGICAL: "one adapter, trained on",
}
DELETED = {OWN: "the group's own adapter", ONE_FOR_ALL: "one adapter for all", BASE: "base alone"}

Found = Mapping[tuple[str, str, str, str], Figure]


def as_csv(figures: Sequence[Figure]) -> str:
    """One line for each figure.

    Args:
        figures: The figures.

    Returns:
        The file's text.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["part", "data", "row", "figure", "unit", "mean", "standard error", "seeds", "of"]
    )
    for one in figures:
        error = "" if one.error is None else repr(one.error)
        head = [one.part, one.data, one.row, one.name, one.unit]
        writer.writerow([*head, repr(one.mean), error, len(one.values), one.expected])
    return text.getvalue()


def as_json(study: Study, results: Results, figures: Sequence[Figure]) -> str:
    """The figures with every seed's value, and what each cell found, group by group.

    Args:
        study: The study.
        results: From cells' keys to their results.
        figures: The figures.

    Returns:
        The file's text.
    """
    told = {
        "encoder": study.encoder,
        "seeds": list(study.seeds),
        "figures": [
            {
                "part": one.part,
                "data": one.data,
                "row": one.row,
                "figure": one.name,
                "unit": one.unit,
                "mean": one.mean,
                "standard error": one.error,
                "values": list(one.values),
            }
            for one in figures
        ],
        "cells": [
            {"data": dataset.name, "part": part, "results": finished(study, results, dataset, part)}
            for part in study.parts
            for dataset in study.datasets
        ],
    }
    return json.dumps(told, indent=1, sort_keys=True) + "\n"


def as_markdown(study: Study, figures: Sequence[Figure], absent: Sequence[str] = ()) -> str:
    """The tables for people, a section for each part.

    Args:
        study: The study.
        figures: The figures.
        absent: What to say of data sets that were left out.

    Returns:
        The file's text.
    """
    found = {(one.part, one.data, one.row, one.name): one for one in figures}
    parts: dict[str, Callable[[Study, Found], str]] = {
        ACCESS: _access,
        RETRIEVAL: _retrieval,
        CONTINUAL: _continual,
        DELETION: _deletion,
    }
    seeds = len(study.seeds)
    kept = [len(one.values) for one in figures]
    note = f"Mean and standard error over {seeds} seeds; retrieval reads with {study.encoder}."
    if kept and min(kept) < seeds:
        note += " An asterisk marks figures that lack seeds."
    return "\n\n".join([note, *absent, *(parts[part](study, found) for part in study.parts)]) + "\n"


def value_text(figure: Figure | None) -> str:
    """A mean with its standard error as the tables write it, or that it is missing."""
    if figure is None:
        return MISSING
    scale, digits = _scale(figure)
    text = f"{scale * figure.mean:.{digits}f}"
    if figure.error is not None:
        text += f" ± {scale * figure.error:.{digits}f}"
    return text + ("*" if len(figure.values) < figure.expected else "")


def _scale(figure: Figure) -> tuple[float, int]:
    if figure.unit in ("share", "accuracy"):
        return 100.0, 1
    if figure.unit in ("steps", "records"):
        return 1.0, 0
    size = abs(figure.mean)
    return 1.0, (3 if figure.unit == "nats" else 0 if size >= 1000 else 1 if size >= 10 else 2)


def _unit(dataset: Dataset) -> str:
    return "accuracy, %" if dataset.measure == "accuracy" else "perplexity"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _access(study: Study, found: Found) -> str:
    header = ["held-out text", *(f"{one.name}, {_unit(one)}" for one in study.datasets)]
    rows = [
        [
            text,
            *(
                "n/a"
                if not is_had(way, one)
                else value_text(found.get((ACCESS, one.name, way, one.measure)))
                for one in study.datasets
            ),
        ]
        for way, text in WAYS.items()
    ]
    alone = [
        [
            WAYS[way],
            *(
                value_text(found.get((ACCESS, one.name, way, "base alone")))
                for one in study.datasets
            ),
        ]
        for way in (RETRIEVED[3], WITHOUT)
    ]
    names = [one.name for one in study.datasets]
    return "\n\n".join(
        [
            "### Who gets what",
            _table(header, rows),
            "Records that the base answered alone, because nothing allowed was like them, %:",
            _table(["", *names], alone),
        ]
    )


def _retrieval(study: Study, found: Found) -> str:
    names = ("top-1", "top-2", "top-3", "changed")
    rows = []
    for dataset in study.datasets:
        retrievers = dict.fromkeys(
            row for part, data, row, _ in found if part == RETRIEVAL and data == dataset.name
        )
        for retriever in retrievers or [MISSING]:
            figures = [found.get((RETRIEVAL, dataset.name, retriever, name)) for name in names]
            there = figures[0] is not None
            cells = ["" if one is None and there else value_text(one) for one in figures]
            rows.append([dataset.name, retriever, *cells])
    return "\n\n".join(
        [
            "### Whether the record's own group is found",
            _table(["data", "retriever", "top-1, %", "top-2", "top-3", "hiding changes, %"], rows),
        ]
    )


def _continual(study: Study, found: Found) -> str:
    names = ("when it came", "at end", "backward transfer", "forgetting", "forward transfer")
    rows = []
    for dataset in study.datasets:
        for learner, text in LEARNERS.items():
            figures = [found.get((CONTINUAL, dataset.name, learner, name)) for name in names]
            there = any(one is not None for one in figures)
            cells = ["" if one is None and there else value_text(one) for one in figures]
            rows.append([f"{dataset.name}, {_unit(dataset)}", text, *cells])
    return "\n\n".join(
        [
            "### Groups one after the other",
            _table(["data", "learner", *names], rows),
            "Transfers are nats of a token's log-likelihood, or points of accuracy; less than 0 "
            "in backward transfer is what was forgotten.",
        ]
    )


def _deletion(study: Study, found: Found) -> str:
    costs, checks = [], []
    for dataset in study.datasets:

        def cell(row: str, name: str, data: str = dataset.name) -> str:
            return value_text(found.get((DELETION, data, row, name)))

        costs.append(
            [
                dataset.name,
                cell(OWN, "removed"),
                *(cell(row, "steps") for row in (OWN, ONE_FOR_ALL, "ratio")),
                *(cell(row, "seconds") for row in (OWN, ONE_FOR_ALL, "ratio")),
                cell(OWN, "describing"),
            ]
        )
        for row, text in DELETED.items():
            after = "" if row == BASE else " → {}"
            checks.append(
                [
                    f"{dataset.name}, {_unit(dataset)}",
                    text,
                    *(
                        cell(row, f"{asked}, before")
                        + after.format(cell(row, f"{asked}, after") if after else "")
                        for asked in ("held out", "removed")
                    ),
                ]
            )
    cost = ["data", "records removed", "steps: own", "one for all", "ratio"]
    cost += ["CPU s: own", "one for all", "ratio", "describing the group again, CPU s"]
    return "\n\n".join(
        [
            "### Deletion",
            _table(cost, costs),
            "The group's held-out records and the removed ones, before → after:",
            _table(["data", "adapter", "held out", "removed"], checks),
        ]
    )
