"""The study's adapters: trained by the platform, kept, and timed where time is the point."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from intarsia_client.base_model import BaseModel
from intarsia_client.errors import InputError
from intarsia_client.files import bytes_digest, canonical_json
from intarsia_client.peft_files import (
    EncodedAdapter,
    adapter_digest,
    encode_adapter,
    read_adapter,
    write_encoded,
)
from intarsia_client.records import Record, records_digest
from intarsia_client.shards import DataShard
from intarsia_client.training import LocalTrainer
from intarsia_client.wire import Adapter
from intarsia_platform.groups.rows import GroupSettings
from intarsia_platform.groups.training import group_assignment, settled, train_group


@dataclass(frozen=True, kw_only=True)
class Trained:
    """An adapter and what it cost.

    Args:
        adapter: The adapter.
        steps: Optimiser steps.
        seconds: Of processor time, when it was trained.
    """

    adapter: Adapter
    steps: int
    seconds: float

    @property
    def digest(self) -> str:
        """The adapter's name."""
        return adapter_digest(self.adapter)

    @property
    def encoded(self) -> EncodedAdapter:
        """Its two files, as the bank of the serving engine reads them."""
        return encode_adapter(self.adapter)


class Workshop:
    """Trains adapters of one base with one set of settings.

    Args:
        base: The base model.
        settings: How to train.
        folder: Where trained adapters are kept.
    """

    def __init__(self, base: BaseModel, settings: GroupSettings, folder: Path) -> None:
        self.base = base
        self.settings = settled(settings, base)
        self.folder = folder

    def kept(self, records: Sequence[Record]) -> Trained:
        """An adapter of some records, read where it was trained before.

        Args:
            records: The records.

        Returns:
            The adapter; ``seconds`` are those of the time when it was trained.
        """
        settings = {
            **self.settings.as_mapping(),
            "base": self.base.digest,
            "records": records_digest(records),
        }
        key = bytes_digest(canonical_json(settings)).removeprefix("sha256:")[:20]
        folder = self.folder / key
        if not folder.is_dir():
            trained = self.trained(records)
            cost = {"steps": trained.steps, "seconds": trained.seconds}
            try:
                write_encoded(folder, trained.encoded, manifest=cost)
            except InputError:
                # Another process trained the same one meanwhile.
                if not folder.is_dir():
                    raise
        # Read even by who has just trained it, so that a run that goes on sees the same bits.
        told = json.loads((folder / "intarsia.json").read_text())
        return Trained(adapter=read_adapter(folder), steps=told["steps"], seconds=told["seconds"])

    def trained(self, records: Sequence[Record]) -> Trained:
        """An adapter of some records, trained now, as ``intarsia groups add`` trains it.

        Args:
            records: The records.

        Returns:
            The adapter.
        """
        steps = 0

        def tell(done: int, total: int) -> None:
            del total
            nonlocal steps
            steps = done

        begun = time.process_time()
        adapter = train_group(self.base, records, self.settings, tell=tell)
        return Trained(adapter=adapter, steps=steps, seconds=time.process_time() - begun)

    def continued(self, before: Adapter, records: Sequence[Record]) -> Trained:
        """The same adapter trained on, on other records: chronological fine-tuning.

        Epochs, batches, rates and schedule are those of :meth:`trained`; the only difference is
        where it starts.

        Args:
            before: The adapter so far, of the settings' rank.
            records: The records that have come.

        Returns:
            The adapter after them.
        """
        assignment = group_assignment(self.base, self.settings, before, how="residual")
        shard = DataShard(client=assignment.client, records=records, digest=records_digest(records))
        begun = time.process_time()
        done = LocalTrainer(self.base).train(shard, assignment, before)
        return Trained(
            adapter=done.trained,
            steps=int(done.update.manifest.metrics["steps"]),
            seconds=time.process_time() - begun,
        )
