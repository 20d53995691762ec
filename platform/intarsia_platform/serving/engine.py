"""The engine: tickets and prompts in, streams of tokens out, many at once.

One thread runs the model. Requests join and leave between two calls; each has its own adapters,
length and settings. Access control is asked before every call of the model.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType

import numpy as np
from intarsia_client.errors import InputError
from numpy.typing import NDArray

from intarsia_platform.serving.bank import AdapterBank
from intarsia_platform.serving.capacities import PREFIX_BYTES
from intarsia_platform.serving.grants import Admission, Watch, check_grants
from intarsia_platform.serving.invariance import agreeing_shapes
from intarsia_platform.serving.mixture import mixture_of
from intarsia_platform.serving.pieces import StopTexts, TextPieces
from intarsia_platform.serving.prefix_cache import PrefixCache
from intarsia_platform.serving.requests import EngineBusy, Request, Statistics
from intarsia_platform.serving.rows import Row, end_tokens, first_tokens
from intarsia_platform.serving.runner import Runner, Shapes
from intarsia_platform.serving.sampling import Sampler
from intarsia_platform.serving.served_base import ServedBase
from intarsia_platform.serving.streams import Finish, Stream, Token

__all__ = ["Engine", "EngineBusy", "Request", "Statistics"]

_LONGEST_ROW = 2048
_PROMPT_TOKENS_A_STEP = 512
_IDLE_SECONDS = 1.0


class Engine:
    """Answers many requests at once. Safe for several threads; also a context manager.

    Formal guarantee: in strict mode a request's tokens are a function of the base, the adapters
    that it chose and their weights, its prompt, its sampling and this machine; requests beside it,
    and adapters that it did not choose, change no bit of the numbers that its tokens are chosen
    from; nor does what is kept of earlier prompts. It holds for the shapes that were measured when
    the engine was made, with the number of threads that PyTorch had then. Every stream ends.

    Args:
        served: The base model with its seams.
        bank: Its adapters; copies of those that it drops are dropped here too.
        admission: Access control.
        max_rows: Requests in the cache at once.
        row_tokens: Tokens of prompt and answer together; by default what the base takes, at most
            2,048.
        max_waiting: Requests that may wait for a slot.
        strict: Whether no product of another row's adapter is ever computed for a row.
        prefix_bytes: Most memory for keys and values of prompts' beginnings, which are kept for
            the principal that asked; 0 keeps none.
        shapes: What :func:`agreeing_shapes` measured here before; measured now where None.
        clock: Seconds since 1970.

    Raises:
        InputError: If the base is no causal language model with plain attention, or a number does
            not fit it.
    """

    def __init__(
        self,
        served: ServedBase,
        bank: AdapterBank,
        admission: Admission,
        *,
        max_rows: int = 16,
        row_tokens: int | None = None,
        max_waiting: int = 1024,
        strict: bool = True,
        prefix_bytes: int = PREFIX_BYTES,
        shapes: Shapes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Measure the shapes and begin."""
        base = served.base
        capacity = row_tokens or min(_LONGEST_ROW, base.longest_sequence)
        self._runner = Runner(served, max_rows=max_rows, capacity=capacity, strict=strict)
        self._given = shapes
        self._bank = bank
        self._admission = admission
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._clock = clock
        # A copy of its own, since others may set how theirs truncates while this one encodes.
        self._tokenizer = copy.deepcopy(base.tokenizer)
        self._first, self._ends = first_tokens(base), end_tokens(base)
        self._changed = threading.Condition()
        self._waiting: list[Row] = []
        self._running: list[Row] = []
        self._closed = False
        self._tokens = self._calls = 0
        self._prefixes = PrefixCache(base.digest, prefix_bytes)
        bank.on_drop(served.forget)
        bank.on_drop(self._prefixes.drop)
        self._begun: Future[None] = Future()
        self._thread = threading.Thread(target=self._serve, name="intarsia-engine", daemon=True)
        self._thread.start()
        self._begun.result()

    @property
    def shapes(self) -> Shapes:
        """The shapes of one-token calls in use; without rows, each row is computed by itself."""
        return self._runner.shapes

    @property
    def statistics(self) -> Statistics:
        """What it is doing now."""
        prefixes = self._prefixes.figures
        with self._changed:
            return Statistics(
                running=len(self._running),
                waiting=len(self._waiting),
                free=self._runner.cache.free,
                cache_bytes=self._runner.cache.size,
                tokens=self._tokens,
                calls=self._calls,
                prefix_hits=prefixes.hits,
                prefix_misses=prefixes.misses,
                prefix_bytes=prefixes.bytes,
            )

    @property
    def alive(self) -> bool:
        """Whether its thread runs; asks for no lock, so that a stuck engine can be told."""
        return self._thread.is_alive()

    def submit(self, request: Request) -> Stream:
        """Take a request. The caller's own thread reads adapters that are not in memory yet.

        Args:
            request: The request.

        Returns:
            Its stream.

        Raises:
            AccessError: If the ticket is not valid, was used before, or does not grant the
                choices; in the same words as for adapters that do not exist.
            EngineBusy: If too many requests wait, or the engine is closed.
            InputError: If prompt or mixture cannot be served.
            IntegrityError: If an adapter's files are damaged.
        """
        self._check_room()
        prompt = self._prompt_tokens(request.prompt)
        self._admission.admit(request.ticket)
        parts = check_grants(request.ticket, request.choices)
        digests, weights = [one for one, _ in parts], [weight for _, weight in parts]
        beginnings = self._prefixes.beginnings(request.ticket, parts, prompt, request.routing)
        lease = self._bank.lease(digests)
        try:
            row = Row(
                principal=request.ticket.principal,
                stream=Stream(self._wake),
                watch=Watch(self._admission, request.ticket, digests, self._clock),
                lease=lease,
                mixture=mixture_of(zip(lease.adapters, weights, strict=True), request.routing),
                prompt=prompt,
                beginnings=beginnings,
                most=min(request.sampling.max_tokens, self._runner.limit - len(prompt)),
                sampler=Sampler(request.sampling),
                pieces=TextPieces(self._tokenizer, prompt),
                stops=StopTexts(request.sampling.stop),
                ends=self._ends,
            )
            with self._changed:
                self._check_room()
                self._waiting.append(row)
                self._changed.notify()
        except BaseException:
            lease.close()
            raise
        return row.stream

    def close(self) -> None:
        """End every stream and the thread; again does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Engine:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _check_room(self) -> None:
        with self._changed:
            if self._closed:
                raise EngineBusy("engine", "is closed", "start it again")
            if len(self._waiting) >= self._max_waiting:
                raise EngineBusy("engine", f"{self._max_waiting} requests wait", "try again later")

    def _prompt_tokens(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            found = self._tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
            tokens = (*self._first, *found)
        else:
            tokens = tuple(prompt)
        if not tokens:
            raise InputError("prompt", "is empty", "give some text")
        if len(tokens) >= self._runner.limit:
            raise InputError(
                "prompt", f"{len(tokens)} tokens", f"use fewer than {self._runner.limit}"
            )
        if not all(0 <= token < self._runner.vocabulary for token in tokens):
            raise InputError(
                "prompt", "an unknown token", f"use tokens below {self._runner.vocabulary}"
            )
        return tokens

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _serve(self) -> None:
        """Run until closed; whatever happens, end every stream."""
        finish, failure = Finish.CANCELLED, None
        try:
            # Measured in this thread, since how many cores its products take is a thread's own.
            self._runner.shapes = self._given or agreeing_shapes(self._runner)
        except BaseException as error:
            self._closed = True
            self._begun.set_exception(error)
            return
        self._begun.set_result(None)
        try:
            while self._wait():
                self._step()
        except BaseException as error:
            finish, failure = Finish.FAILED, error
            raise
        finally:
            with self._changed:
                self._closed = True
                left = [*self._running, *self._waiting]
            for row in left:
                self._end(row, Token(token=None, text="", finish=finish), failure)
            self._prefixes.clear()

    def _wait(self) -> bool:
        """Wait for something to do; what is kept goes with its epoch meanwhile, too."""
        while True:
            with self._changed:
                if not (self._closed or self._running or self._waiting):
                    self._changed.wait(_IDLE_SECONDS if self._prefixes.figures.bytes else None)
                if self._closed or self._running or self._waiting:
                    return not self._closed
            with contextlib.suppress(Exception):
                self._prefixes.epoch(self._admission.epoch)

    def _step(self) -> None:
        """One token of every row whose prompt is done, then some prompts."""
        self._end_lost()
        self._step_tokens()
        self._start_waiting()
        spent = 0
        for row in [row for row in self._running if not row.decoding]:
            while spent < _PROMPT_TOKENS_A_STEP and not row.decoding:
                self._end_lost()
                if row.stream.finish is not None:
                    break
                spent += self._step_prompt(row)

    def _end_lost(self) -> None:
        """End rows that were cancelled or whose ticket does not cover them any more."""
        with self._changed:
            rows = [*self._running, *self._waiting]
        for row in rows:
            if row.stream.cancelled:
                self._end(row, Token(token=None, text="", finish=Finish.CANCELLED))
        try:
            epoch = self._prefixes.epoch(self._admission.epoch)
        except Exception as error:
            # Nobody knows whether anything may go on: nothing does.
            for row in rows:
                self._end(row, Token(token=None, text="", finish=Finish.FAILED), error)
            return
        for row in rows:
            try:
                stands = row.stream.finish is not None or row.watch.stands(epoch)
            except Exception as error:
                self._end(row, Token(token=None, text="", finish=Finish.FAILED), error)
                continue
            if not stands:
                self._end(row, Token(token=None, text="", finish=Finish.REVOKED))

    def _start_waiting(self) -> None:
        """Give free slots to those who wait: of the principals with the fewest rows, the first."""
        with self._changed:
            rows = Counter(row.principal for row in self._running)
            while self._waiting and len(self._running) < self._max_rows:
                row = min(self._waiting, key=lambda row: rows[row.principal])
                self._waiting.remove(row)
                row.slot = self._runner.cache.acquire()
                rows[row.principal] += 1
                self._running.append(row)

    def _step_prompt(self, row: Row) -> int:
        """Copy or compute a piece of a row's prompt; says how many tokens were computed."""
        piece, slot, cache = row.next_piece, row.slot, self._runner.cache
        if slot is None:
            return 0
        begin, end = row.done, row.done + len(piece)
        try:
            # The last piece is always computed: its logits choose the first token.
            if end < len(row.prompt) and self._prefixes.take(
                row.beginnings, end, partial(cache.copy_in, slot)
            ):
                row.done = end
                return 0
            self._calls += 1
            logits = self._runner.prompt(slot, piece, row.mixture)
            digests = [adapter.digest for adapter, _ in row.mixture]
            size, copies = cache.bytes_of(len(piece)), partial(cache.copy_out, slot, begin, end)
            self._prefixes.keep(row.beginnings, end, digests, size, copies)
        except Exception as error:
            self._end(row, Token(token=None, text="", finish=Finish.FAILED), error)
            return len(piece)
        row.done = end
        if row.decoding:
            self._take(row, logits)
        return len(piece)

    def _step_tokens(self) -> None:
        rows = {row.slot: row for row in self._running if row.decoding and row.slot is not None}
        if not rows:
            return
        try:
            self._calls += 1
            logits = self._runner.tokens(
                {slot: row.last for slot, row in rows.items()},
                {slot: row.mixture for slot, row in rows.items()},
            )
        except Exception as error:
            for row in rows.values():
                self._end(row, Token(token=None, text="", finish=Finish.FAILED), error)
            return
        for slot, row in rows.items():
            self._take(row, logits[slot])

    def _take(self, row: Row, logits: NDArray[np.float32]) -> None:
        """Choose a row's token; what is wrong with its numbers ends that row alone."""
        failed = Token(token=None, text="", finish=Finish.FAILED)
        if not np.isfinite(logits.max()):
            overflow = InputError("answer", "is not finite", "use other adapters or weights")
            self._end(row, failed, overflow)
            return
        try:
            event = row.choose(logits)
        except Exception as error:
            self._end(row, failed, error)
            return
        self._tokens += 1
        if event.finish is None:
            row.stream.put(event)
        else:
            self._end(row, event)

    def _end(self, row: Row, event: Token, error: BaseException | None = None) -> None:
        """Free what a row holds, then tell its caller."""
        if row.stream.finish is not None:
            return
        try:
            with self._changed:
                if row.slot is not None:
                    self._runner.cache.release(row.slot)
                    self._running.remove(row)
                    row.slot = None
                else:
                    self._waiting.remove(row)
            self._runner.forget_plan()
            row.let_go()
        finally:
            row.stream.put(event, error)
