"""``intarsia adapters``: what is registered, where it comes from, in and out as PEFT folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intarsia_platform.cli.lines import one_line
from intarsia_platform.cli.output import facts, present, short_digest, table
from intarsia_platform.cli.policy import judge
from intarsia_platform.cli.registry import open_registry
from intarsia_platform.cli.settings import IntarsiaCommand, command_group, settings_of

if TYPE_CHECKING:
    from intarsia_platform.registry.lineage import LineageNode
    from intarsia_platform.registry.rows import AdapterVersion

app = command_group()

Reference = Annotated[str, typer.Argument(metavar="REF")]

_REFERENCE = "REF is its name, its digest, or the first 6 or more digits of the digest."


@app.command("list", cls=IntarsiaCommand, help="List all adapters, the oldest first.")
def list_command(
    context: typer.Context,
    principal: Annotated[
        str | None,
        typer.Option("--as", metavar="PRINCIPAL", help="Only those that this principal may use."),
    ] = None,
) -> None:
    """List the adapters.

    Args:
        context: The command's context.
        principal: Who may use what is listed; None lists all.
    """
    from intarsia_platform.reporting.measures import bytes_text

    settings = settings_of(context)
    with open_registry(settings.open_home()) as registry:
        versions = registry.adapters.list()
        if principal is not None:
            granted = {one.digest for one in judge(registry, principal).granted}
            versions = tuple(version for version in versions if version.digest in granted)
    rows = [
        (
            version.name,
            short_digest(version.digest),
            version.rank,
            version.task,
            version.base,
            bytes_text(version.size),
            ", ".join(version.labels) or None,
        )
        for version in versions
    ]
    headings = ["name", "digest", "rank", "task", "base", "size", "labels"]
    mapping = {"adapters": [_version_mapping(version) for version in versions]}
    present(settings, mapping, table(headings, rows, right="rank size"))


@app.command("show", cls=IntarsiaCommand, help=f"Show one adapter in full. {_REFERENCE}")
def show_command(context: typer.Context, reference: Reference) -> None:
    """Show one adapter.

    Args:
        context: The command's context.
        reference: Which one.
    """
    settings = settings_of(context)
    with open_registry(settings.open_home()) as registry:
        version = registry.adapters.get(reference)
        adapter = registry.adapters.load(version.digest)
    ranks = {name: factors.rank for name, factors in sorted(adapter.modules.items())}
    mapping = {
        **_version_mapping(version),
        "parameters": adapter.number_of_parameters,
        "modules": ranks,
        "head": sorted(adapter.dense),
    }
    head = ", ".join(sorted(adapter.dense)) or None
    shown = {**_version_facts(version), "parameters": f"{adapter.number_of_parameters:,}"}
    modules = table(["module", "rank"], ranks.items(), right="rank")
    present(settings, mapping, facts({**shown, "head": head}), "", modules)


@app.command(
    "import", cls=IntarsiaCommand, help="Take in a PEFT folder. DIR may come from elsewhere."
)
def import_command(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR")],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What to call it; the folder's name by default."),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="LABEL", help="A word that policies speak of; repeatable."),
    ] = None,
) -> None:
    """Register a PEFT folder.

    Args:
        context: The command's context.
        directory: The folder.
        name: What to call it.
        labels: Its labels.
    """
    settings = settings_of(context)
    with open_registry(settings.open_home(create=True)) as registry:
        version = registry.adapters.import_directory(directory, name=name, labels=labels or ())
    present(settings, _version_mapping(version), facts(_version_facts(version)))


@app.command("export", cls=IntarsiaCommand, help=f"Write a folder that PEFT loads. {_REFERENCE}")
def export_command(
    context: typer.Context,
    reference: Reference,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to make.")],
) -> None:
    """Write an adapter as a PEFT folder.

    Args:
        context: The command's context.
        reference: Which one.
        out: The folder to make.
    """
    settings = settings_of(context)
    with open_registry(settings.open_home()) as registry:
        version = registry.adapters.export(reference, out)
    place = str(out.absolute())
    shown = {"name": version.name, "digest": version.digest, "path": place}
    present(settings, {**_version_mapping(version), "path": place}, facts(shown))


@app.command(
    "remove", cls=IntarsiaCommand, help=f"Take an adapter out; its lineage stays. {_REFERENCE}"
)
def remove_command(context: typer.Context, reference: Reference) -> None:
    """Remove an adapter.

    Args:
        context: The command's context.
        reference: Which one.
    """
    settings = settings_of(context)
    with open_registry(settings.open_home()) as registry:
        version = registry.adapters.remove(reference)
    shown = {"removed": version.name, "digest": version.digest}
    present(settings, _version_mapping(version), facts(shown))


@app.command("lineage", cls=IntarsiaCommand, help=f"Show what an adapter was made of. {_REFERENCE}")
def lineage_command(context: typer.Context, reference: Reference) -> None:
    """Show what an adapter was made of.

    Args:
        context: The command's context.
        reference: Which one.
    """
    from intarsia_platform.registry.lineage import Lineage

    settings = settings_of(context)
    with open_registry(settings.open_home()) as registry:
        version = registry.adapters.get(reference)
        lineage = Lineage(registry.database)
        nodes = list(lineage.tree(version.digest).walk())
        edges = lineage.edges(version.digest)
    artefacts = [node.artefact for _, node in nodes if not node.repeated]
    mapping = {
        "adapter": version.digest,
        "artefacts": [
            {
                "digest": artefact.digest,
                "kind": artefact.kind,
                "size": artefact.size,
                "created_at": artefact.created_at.isoformat(),
                "details": dict(artefact.details),
            }
            for artefact in artefacts
        ],
        "edges": [dataclasses.asdict(edge) for edge in edges],
    }
    present(settings, mapping, *(_branch(depth, node) for depth, node in nodes))


def _branch(depth: int, node: LineageNode) -> str:
    details = node.artefact.details
    words = [
        f"{node.relation}:" if node.relation else "",
        str(details.get("name") or ""),
        node.artefact.kind,
        f"of round {details['round']}" if details.get("round") else "",
        f"of {details['client']}" if details.get("client") else "",
        short_digest(node.artefact.digest) or "",
        "(shown elsewhere)" if node.repeated else "",
    ]
    return "  " * depth + one_line(" ".join(word for word in words if word))


def _version_mapping(version: AdapterVersion) -> dict[str, Any]:
    return {
        "name": version.name,
        "digest": version.digest,
        "base": version.base,
        "base_digest": version.base_digest,
        "task": version.task,
        "rank": version.rank,
        "size": version.size,
        "run": version.run_id,
        "round": version.round,
        "created_at": version.created_at.isoformat(),
        "labels": list(version.labels),
    }


def _version_facts(version: AdapterVersion) -> dict[str, object]:
    from intarsia_platform.reporting.measures import bytes_text

    mapping = _version_mapping(version)
    return {
        **{name.replace("_", " "): value for name, value in mapping.items()},
        "size": bytes_text(version.size),
        "labels": ", ".join(version.labels) or None,
    }
