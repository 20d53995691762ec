"""The process in which a Ray grid's clients run.

A worker lives as long as its grid, so what the client app keeps for the whole process, the base
model above all, is loaded once and serves every client that the worker plays.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.app.user_config import UserConfigValue
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from intarsia_client.errors import InputError, IntarsiaError

from intarsia_platform.federation.client_calls import (
    Answer,
    Assignment,
    answer,
    load_client_app,
    one_line,
)
from intarsia_platform.federation.ray_broadcast import PackedContent, ReceivedBroadcasts


@dataclass(frozen=True)
class PackedAssignment:
    """An assignment as it travels to a worker.

    Attributes:
        metadata: The message's metadata.
        content: The message's content.
        node_config: The client's settings.
        state: The client's state, or None for none yet.
    """

    metadata: Metadata
    content: PackedContent
    node_config: Mapping[str, UserConfigValue]
    state: bytes | None


@dataclass(frozen=True)
class PackedAnswers:
    """A worker's answers as they travel back.

    Attributes:
        answers: One for each assignment, in their order.
        seconds: How long the worker took over them.
    """

    answers: Sequence[Answer]
    seconds: float


class ClientWorker:
    """Answers assignments; a Ray actor.

    Args:
        environment: Environment variables to set before the client app is imported.
        import_paths: Where else to look for it, after this process's own places: those of the
            grid's process, of which Ray hands on only the script's folder and the current one.
    """

    def __init__(self, environment: Mapping[str, str], import_paths: Sequence[str]) -> None:
        """Set the environment, which libraries read when they are imported."""
        os.environ.update(environment)
        sys.path.extend(path for path in import_paths if path not in sys.path)
        self._received = ReceivedBroadcasts()
        self._client_app: ClientApp | None = None
        self._run_config: Mapping[str, UserConfigValue] = {}

    def prepare(
        self, client_app: bytes, run_config: Mapping[str, UserConfigValue], run_id: int
    ) -> IntarsiaError | None:
        """Load the client app.

        Args:
            client_app: Its source, see ``ClientAppSource``, as cloudpickle wrote it.
            run_config: What clients see as ``Context.run_config``.
            run_id: Flower's run id.

        Returns:
            None, or the error that says why the app cannot be used.
        """
        TaskIdentity.run_id = run_id
        TaskIdentity.task_id = 0
        self._run_config = run_config
        try:
            self._client_app = load_client_app(ray.cloudpickle.loads(client_app))
        except IntarsiaError as error:
            return error
        except Exception as error:
            return InputError(
                "client app", one_line(error), "name it as module:attribute, importable anywhere"
            )
        return None

    def answer(self, assignments: bytes, references: Mapping[int, ray.ObjectRef]) -> bytes:
        """Answer some assignments, one after another.

        Args:
            assignments: A pickled list of :class:`PackedAssignment`.
            references: Where the broadcasts that they refer to lie.

        Returns:
            Pickled :class:`PackedAnswers`.
        """
        started = time.perf_counter()
        # Pickles between processes of one simulation, which run the same code on one's own behalf.
        packed: list[PackedAssignment] = pickle.loads(assignments)  # noqa: S301
        answers = [self._answer(assignment, references) for assignment in packed]
        seconds = time.perf_counter() - started
        return pickle.dumps(PackedAnswers(answers, seconds), protocol=5)

    def _answer(self, packed: PackedAssignment, references: Mapping[int, ray.ObjectRef]) -> Answer:
        if self._client_app is None:
            raise RuntimeError("a worker answers only after it was prepared")
        TaskIdentity.node_id = packed.metadata.dst_node_id
        message = make_message(packed.metadata, self._received.unpack(packed.content, references))
        assignment = Assignment(message=message, node_config=packed.node_config, state=packed.state)
        return answer(self._client_app, assignment, self._run_config)
