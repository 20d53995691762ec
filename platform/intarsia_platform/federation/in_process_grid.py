"""Virtual clients answered in the caller's own process, one after another.

For tests, debugging and small runs: a breakpoint in a client stops where one expects it, and two
runs do the same things in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from flwr.app import Message
from flwr.app.user_config import UserConfigValue

from intarsia_platform.federation.client_calls import ClientAppSource, answer, load_client_app
from intarsia_platform.federation.client_contexts import (
    StateStore,
    VirtualClient,
    VirtualClients,
)
from intarsia_platform.federation.local_grid import DEADLINE_SECONDS, LocalGrid

_PULL_SECONDS = 0.02


class InProcessGrid(LocalGrid):
    """A grid whose clients run when their replies are pulled.

    A pull answers messages in the order sent, for about 20 ms or at least one message. So between
    two pulls the caller can save replies, show progress, or be interrupted; a message that an
    interruption hits stays to be answered. A client cannot be stopped while it works: a reply
    that takes past the deadline is dropped when it comes, and the messages behind it are not
    begun, but what that client's training left in its state is kept, since it did happen.

    Args:
        client_app: The app, a function that makes it, or ``"module:attribute"``.
        clients: The virtual clients.
        run_id: Flower's run id, which clients see in their context.
        run_config: What clients see as ``Context.run_config``.
        states: Where client states are kept; in this process, bounded, where None.
        deadline_seconds: How long ``send_and_receive`` waits where it is given no timeout.

    Raises:
        InputError: If an argument is not usable, or the app cannot be loaded.
    """

    def __init__(
        self,
        client_app: ClientAppSource,
        clients: VirtualClients | Sequence[VirtualClient],
        *,
        run_id: int = 0,
        run_config: Mapping[str, UserConfigValue] | None = None,
        states: StateStore | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        """Load the app; nothing is started."""
        super().__init__(
            clients=clients,
            run_id=run_id,
            run_config=run_config,
            states=states,
            deadline_seconds=deadline_seconds,
        )
        self._client_app = load_client_app(client_app)

    def _accept(self, messages: Mapping[str, Message]) -> None:
        """Nothing to do before they are pulled."""

    def _work_on(self, wanted: set[str]) -> None:
        started = time.monotonic()
        for message_id in [pending for pending in self._pending if pending in wanted]:
            assignment = self._assignment(self._pending[message_id])
            self._finish(message_id, answer(self._client_app, assignment, self._run_config))
            if time.monotonic() - started > _PULL_SECONDS:
                return

    def _abandon(self, cancelled: set[str]) -> None:
        """Nothing to do: what is not pending is not begun."""
