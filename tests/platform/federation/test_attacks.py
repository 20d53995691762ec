"""The attack matrix: each attack through real admission, rule and sum, with what is expected.

Refused: nothing of the update counts, and the round ends as if the client had not been asked.
Bounded: the update counts, and moves the sum by at most so much. What the rules cannot do is here
too, with its number. Poisoned records are in test_poisoning.py, the tables in docs/robustness.md.
"""

from __future__ import annotations

import json
import pickle
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from intarsia_aggregators.robust.norm_bound import bound_norms
from intarsia_client.errors import RefusedUpdate
from intarsia_client.messages import ADAPTER, adapter_record, update_content
from intarsia_client.peft_files import TENSORS_FILE, EncodedAdapter, encode_adapter
from intarsia_client.wire import Adapter
from intarsia_platform.federation.strategy import LoraStrategy
from safetensors.numpy import load, save

sys.path.insert(0, str(Path(__file__).parent))
from hostile_cohort import (
    EMPTY,
    EXAMPLES,
    HOSTILE,
    NAMES,
    PLAN,
    RULES,
    SETTINGS,
    SPREAD,
    Root,
    Sent,
    answer,
    asked,
    goal,
    guard_of,
    honest,
    manifest_of,
    moved,
    published,
    reply_to,
    vector,
)

ARRAYS = adapter_record(encode_adapter(EMPTY))
ROOT = Root(lambda assignment, start: honest("server", assignment, start))
Case = tuple[Message, Any, Adapter]


def truthful(client: str, case: Case) -> Message:
    message, assignment, start = case
    return answer(message, assignment, start, Sent(
        trained=honest(client, assignment, start), claims={}
    ))  # fmt: skip


# What is refused --------------------------------------------------------------------------------


def with_files(case: Case, change: Callable[[EncodedAdapter], EncodedAdapter]) -> Message:
    """An honest client's reply with other files, of which the manifest tells the truth."""
    message, assignment, start = case
    encoded = change(encode_adapter(honest("g", assignment, start)))
    return reply_to(message, update_content(manifest_of(assignment, encoded), encoded, {}))


def with_claims(**claims: Any) -> Callable[[Case], Message]:
    def attack(case: Case) -> Message:
        message, assignment, start = case
        return answer(
            message, assignment, start, Sent(trained=honest("g", assignment, start), claims=claims)
        )

    return attack


def with_tensors(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]):
    """Other tensors under a true header."""
    return lambda case: with_files(
        case, lambda files: replace(files, tensors=save(change(load(files.tensors))))
    )


def with_bytes(change: Callable[[bytes], bytes]):
    return lambda case: with_files(
        case, lambda files: replace(files, tensors=change(files.tensors))
    )


def with_settings(**settings: Any):
    def change(files: EncodedAdapter) -> EncodedAdapter:
        said = json.loads(files.configuration) | settings
        return replace(files, configuration=json.dumps(said).encode())

    return lambda case: with_files(case, change)


def one_number(value: float, side: str = "lora_B"):
    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        key = next(key for key in sorted(tensors) if side in key)
        tensors[key].flat[3] = value
        return tensors

    return with_tensors(change)


def every_factor(change: Callable[[np.ndarray], np.ndarray]):
    return with_tensors(lambda tensors: {
        key: change(values) if "lora" in key else values for key, values in tensors.items()
    })  # fmt: skip


def renamed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    key = min(tensors)
    return {name.replace("lora_A", "lora_C") if name == key else name: value
            for name, value in tensors.items()}  # fmt: skip


def at_rank(rank: int):
    def change(values: np.ndarray) -> np.ndarray:
        d_out, d_in = values.shape
        return np.ones((rank, d_in) if d_in == 24 else (d_out, rank), np.float32)

    def attack(case: Case) -> Message:
        message, assignment, start = case
        files = encode_adapter(honest("g", assignment, start))
        tensors = {key: change(values) if "lora" in key else values
                   for key, values in load(files.tensors).items()}  # fmt: skip
        said = json.loads(files.configuration) | {"r": rank, "lora_alpha": 2.0 * rank}
        encoded = EncodedAdapter(configuration=json.dumps(said).encode(), tensors=save(tensors))
        manifest = manifest_of(assignment, encoded, rank=rank, lora_alpha=2.0 * rank)
        return reply_to(message, update_content(manifest, encoded, {}))

    return attack


def claiming(change: Callable[[dict[str, Any]], None]):
    """A header that is not true of the bytes behind it."""

    def lie(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return with_bytes(lie)


def first_tensor(header: dict[str, Any]) -> dict[str, Any]:
    return header[min(key for key in header if key != "__metadata__")]


class Exploit:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


BOMB = zlib.compress(b"\0" * (1 << 25), 9)
REFUSED: dict[str, tuple[str, Callable[[Case], Message]]] = {
    "not a number": ("not-finite", one_number(float("nan"))),
    "infinite": ("not-finite", one_number(float("-inf"), "lora_A")),
    "infinite in the head": ("not-finite", one_number(float("inf"), "score")),
    "product overflows": ("not-finite", every_factor(lambda v: np.float32(1e25) * (v + 1))),
    "float64 beyond float32": (
        "not-finite", every_factor(lambda v: 1e300 * (v.astype(np.float64) + 1)),
    ),
    "wrong shape": ("wrong-shape", with_tensors(lambda tensors: {
        key: values[:, :8] if values.shape[1] == 24 and "lora" in key else values
        for key, values in tensors.items()
    })),
    "head of another shape": ("wrong-shape", with_tensors(lambda tensors: {
        key: values if "lora" in key else values[:1] for key, values in tensors.items()
    })),
    "factors that do not fit": ("malformed", with_tensors(lambda tensors: {
        key: values.T.copy() for key, values in tensors.items()
    })),
    "integers": ("malformed", every_factor(lambda v: v.astype(np.int32))),
    "truth values": ("malformed", every_factor(lambda v: v > 0)),
    "unknown key": ("malformed", with_tensors(renamed)),
    "one tensor more": ("malformed", with_tensors(
        lambda tensors: {**tensors, "optimizer.state": np.zeros(3, np.float32)}
    )),
    "one factor missing": ("malformed", with_tensors(
        lambda tensors: {key: tensors[key] for key in sorted(tensors)[1:]}
    )),
    "rank over the assigned": ("wrong-shape", at_rank(8)),
    "rank beyond any size": ("too-large", at_rank(4000)),
    "not bilinear": ("malformed", with_settings(use_dora=True)),
    "another scaling": ("wrong-scaling", with_settings(lora_alpha=800.0)),
    "oversized": ("too-large", with_bytes(lambda data: data + b"\0" * (1 << 20))),
    "compressed bomb": ("damaged", with_bytes(lambda data: BOMB)),
    "truncated": ("damaged", with_bytes(lambda data: data[:-8])),
    "cut in the header": ("damaged", with_bytes(lambda data: data[:40])),
    "nothing": ("damaged", with_bytes(lambda data: b"")),
    "header longer than the file": (
        "damaged", with_bytes(lambda data: (1 << 62).to_bytes(8, "little") + data[8:]),
    ),
    "offsets beyond the file": ("damaged", claiming(
        lambda header: first_tensor(header).update(data_offsets=[0, 1 << 40])
    )),
    "shape beyond the bytes": ("damaged", claiming(
        lambda header: first_tensor(header).update(shape=[1 << 31, 1 << 31])
    )),
    "overlapping tensors": ("damaged", claiming(lambda header: [
        value.update(data_offsets=first_tensor(header)["data_offsets"])
        for key, value in header.items() if key != "__metadata__"
    ])),
    "nested without end": ("malformed", lambda case: with_files(
        case, lambda files: replace(files, configuration=b"[" * 60_000)
    )),
    "stale round": ("stale-round", with_claims(round=0)),
    "another run": ("wrong-run", with_claims(run="run-0")),
    "another base": ("wrong-base", with_claims(base_digest="sha256:other")),
    "another start": ("wrong-start", with_claims(start_digest="sha256:other")),
    "in another's name": ("wrong-client", with_claims(client="a")),
    "a nonce of its own": ("wrong-nonce", with_claims(nonce="n" * 32)),
    "other bytes than named": ("damaged", with_claims(tensors_digest="sha256:" + "0" * 64)),
    "no records": ("no-examples", with_claims(number_of_examples=0)),
    "negative records": ("no-examples", with_claims(number_of_examples=-(10**6))),
    "records beyond 64 bits": ("malformed", with_claims(number_of_examples=10**30)),
}  # fmt: skip


@pytest.fixture(scope="module")
def without_the_hostile() -> bytes:
    """How a round ends in which the hostile client is not there."""
    strategy = LoraStrategy(PLAN)
    cases = asked(strategy, ARRAYS)
    arrays, _ = strategy.aggregate_train(1, [truthful(c, cases[c]) for c in "abcdef"])
    return arrays[TENSORS_FILE].data


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_and_nothing_of_it_counts(name, without_the_hostile):
    reason, attack = REFUSED[name]
    strategy = LoraStrategy(PLAN)
    cases = asked(strategy, ARRAYS)
    hostile = attack(cases["g"])
    tracemalloc.start()
    with pytest.raises(RefusedUpdate) as caught:
        strategy.admit_reply(strategy._open, hostile)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    # Ten times what an honest update of this size takes; the bomb would be 32 MiB.
    assert peak < 4 << 20
    replies = [truthful(c, cases[c]) for c in "abcdef"]
    arrays, metrics = strategy.aggregate_train(1, [hostile, *replies])
    assert (metrics["accepted"], metrics["refused"]) == (6, 1)
    assert arrays[TENSORS_FILE].data == without_the_hostile


@pytest.mark.parametrize("where", ["file", "array"])
def test_pickles_are_refused_and_never_opened(where, tmp_path, without_the_hostile):
    strategy = LoraStrategy(PLAN)
    cases = asked(strategy, ARRAYS)
    bomb = pickle.dumps(Exploit(tmp_path / "trace"))
    hostile = with_bytes(lambda data: bomb)(cases["g"])
    if where == "array":
        # Flower's own serialisation of arrays, which a careless receiver hands to numpy.
        hostile = truthful("g", cases["g"])
        array = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=bomb)
        files = dict(hostile.content.array_records[ADAPTER].items())
        hostile.content.array_records[ADAPTER] = ArrayRecord({**files, TENSORS_FILE: array})
    with pytest.raises(RefusedUpdate) as caught:
        strategy.admit_reply(strategy._open, hostile)
    assert caught.value.reason == {"file": "damaged", "array": "malformed"}[where]
    replies = [truthful(c, cases[c]) for c in "abcdef"]
    arrays, _ = strategy.aggregate_train(1, [*replies, hostile])
    assert arrays[TENSORS_FILE].data == without_the_hostile
    assert not (tmp_path / "trace").exists()
    pickle.loads(bomb)  # noqa: S301 - the control: opened, it would have left its trace
    assert (tmp_path / "trace").exists()


def test_replies_of_an_earlier_round_are_refused():
    strategy = LoraStrategy(PLAN)
    cases = asked(strategy, ARRAYS)
    old = {client: truthful(client, case) for client, case in cases.items()}
    arrays, _ = strategy.aggregate_train(1, list(old.values()))
    cases = asked(strategy, arrays, 2)
    for client in HOSTILE:
        with pytest.raises(RefusedUpdate) as caught:
            strategy.admit_reply(strategy._open, old[client])
        assert caught.value.reason == "stale-round"
        # With the round's number put right, it still is the old nonce and the old start.
        said = json.loads(str(old[client].content.config_records["manifest"]["json"]))
        fresh = {"round": 2, "nonce": cases[client][1].nonce}
        for repaired, reason in (({"round": 2}, "wrong-nonce"), (fresh, "wrong-start")):
            old[client].content.config_records["manifest"] = ConfigRecord(
                {"json": json.dumps(said | repaired)}
            )
            with pytest.raises(RefusedUpdate) as caught:
                strategy.admit_reply(strategy._open, old[client])
            assert caught.value.reason == reason


def test_a_second_answer_and_an_uninvited_one_do_not_count(without_the_hostile):
    strategy = LoraStrategy(PLAN)
    cases = asked(strategy, ARRAYS)
    replies = [truthful(c, cases[c]) for c in "abcdef"]
    again = answer(*cases["f"], Sent(trained=cases["f"][2], claims={"number_of_examples": 10**6}))
    message, assignment, start = cases["g"]
    encoded = encode_adapter(honest("g", assignment, start))
    content = update_content(manifest_of(assignment, encoded), encoded, {})
    stranger = reply_to(message, content, node=max(NAMES) + 1)
    arrays, metrics = strategy.aggregate_train(1, [*replies, again, stranger])
    assert (metrics["accepted"], metrics["refused"]) == (6, 2)
    assert arrays[TENSORS_FILE].data == without_the_hostile


# What is bounded --------------------------------------------------------------------------------

Attack = Callable[[str, Any, Adapter], Sent]


def scaled(factor: float, **claims: Any) -> Attack:
    return lambda client, assignment, start: Sent(
        trained=moved(start, honest(client, assignment, start), factor), claims=claims
    )


def elsewhere(client: str, assignment: Any, start: Adapter) -> Sent:
    """Both go the same other way, a little less far than the honest."""
    modules = {}
    for name in start.modules:
        other = np.random.default_rng(len(name)).standard_normal((start.modules[name].shape[0], 6))
        b = (0.9 * other[:, : assignment.rank]).astype(np.float32)
        modules[name] = replace(start.modules[name], b=b)
    return Sent(trained=replace(start, modules=modules), claims={})


def inside(client: str, assignment: Any, start: Adapter) -> Sent:
    """Both stay within the honest clients' spread, on one side (Baruch et al., 1902.06156)."""
    modules = {
        name: replace(start.modules[name], b=goal(name, assignment.rank) - np.float32(SPREAD))
        for name in start.modules
    }
    dense = {name: head + np.float32(0.2) for name, head in start.dense.items()}
    return Sent(trained=replace(start, modules=modules, dense=dense), claims={})


def gauged(client: str, assignment: Any, start: Adapter) -> Sent:
    """The honest update as (c B, A / c)."""
    scale = np.float32(2.0**40)
    trained = honest(client, assignment, start)
    modules = {
        name: replace(one, a=one.a / scale, b=one.b * scale)
        for name, one in trained.modules.items()
    }
    return Sent(trained=replace(trained, modules=modules), claims={})


def gauged_flip(client: str, assignment: Any, start: Adapter) -> Sent:
    """The flipped update as (c B, A / c)."""
    scale = np.float32(2.0**40)
    modules = {
        name: replace(one, a=one.a * scale, b=-one.b / scale)
        for name, one in honest(client, assignment, start).modules.items()
    }
    return Sent(trained=replace(start, modules=modules), claims={})


def idle(client: str, assignment: Any, start: Adapter) -> Sent:
    """Nothing at all, for the weight of the records."""
    return Sent(trained=start, claims={})


def after_a_round(rule: str, attack: Attack | None, cap: int = 0) -> np.ndarray:
    """What a round with two hostile clients of seven adds, dense."""
    strategy = LoraStrategy(replace(PLAN, max_examples=cap), guard=guard_of(rule, ROOT))
    replies = []
    for client, case in asked(strategy, ARRAYS).items():
        message, assignment, start = case
        if client not in HOSTILE:
            replies.append(truthful(client, case))
        elif attack is not None:
            replies.append(answer(message, assignment, start, attack(client, assignment, start)))
    arrays, metrics = strategy.aggregate_train(1, replies)
    assert metrics["accepted"] == len(replies)
    whole = strategy._exact or published(strategy, arrays)
    return vector(whole) - vector(EMPTY)


@pytest.fixture(scope="module")
def alone() -> np.ndarray:
    """What the honest alone add, without a rule."""
    return after_a_round("none", None)


def away(found: np.ndarray, alone: np.ndarray) -> float:
    return float(np.linalg.norm(found - alone) / np.linalg.norm(alone))


EXACT = 1e-6
# From each attack to how far each rule may be carried from what the honest alone add, in its norm:
# (no rule: at least), then at most: norm bound, Multi-Krum, geometric median, FLTrust.
BOUNDED: dict[str, tuple[Attack, float, dict[str, float]]] = {
    "nobody attacks": (scaled(1.0), 0.0, {
        "norm-bound": 0.2, "multi-krum": 0.3, "geometric-median": 0.15, "fltrust": 0.4}),
    "sign flip": (scaled(-1.0), 0.5, {
        "norm-bound": 0.7, "multi-krum": EXACT, "geometric-median": 0.3, "fltrust": 0.4}),
    "x 100": (scaled(100.0), 25.0, {
        "norm-bound": 0.2, "multi-krum": EXACT, "geometric-median": 0.3, "fltrust": 0.4}),
    "x -100": (scaled(-100.0), 25.0, {
        "norm-bound": 0.7, "multi-krum": EXACT, "geometric-median": 0.3, "fltrust": 0.4}),
    "x 1e30": (scaled(1e30), 1e29, {
        "norm-bound": 0.2, "multi-krum": EXACT, "geometric-median": 0.3, "fltrust": 0.4}),
    "colluding, small": (elsewhere, 0.35, {
        "norm-bound": 0.5, "multi-krum": 0.4, "geometric-median": 0.3, "fltrust": 0.4}),
    "colluding, inside the spread": (inside, 0.1, {
        "norm-bound": 0.2, "multi-krum": 0.3, "geometric-median": 0.2, "fltrust": 0.4}),
    "many records declared": (scaled(-1.0, number_of_examples=10**9), 1.9, {
        "norm-bound": 2.0, "multi-krum": EXACT, "geometric-median": 2.1, "fltrust": 0.4}),
    "gauge of the sign flip": (gauged_flip, 0.5, {
        "norm-bound": 0.7, "multi-krum": EXACT, "geometric-median": 0.3, "fltrust": 0.4}),
    "nothing sent": (idle, 0.25, {
        "norm-bound": 0.4, "multi-krum": 0.3, "geometric-median": 0.3, "fltrust": 0.4}),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", BOUNDED)
def test_it_moves_the_sum_by_at_most_so_much(name, rule, alone):
    attack, without, most = BOUNDED[name]
    found = away(after_a_round(rule, attack), alone)
    if rule == "none":
        assert found >= without
    else:
        assert found <= most[rule]


@pytest.mark.parametrize("rule", RULES)
def test_a_cap_on_declared_records_takes_their_weight(rule, alone):
    attack, _, _ = BOUNDED["many records declared"]
    _, _, most = BOUNDED["sign flip"]
    found = away(after_a_round(rule, attack, cap=EXAMPLES), alone)
    assert found <= most.get(rule, 0.6)


def test_the_median_falls_where_declared_records_are_half_of_the_weight(alone):
    """Its assumption is on the weight, not on the number of clients: hence the cap."""
    attack, _, _ = BOUNDED["many records declared"]
    assert away(after_a_round("geometric-median", attack), alone) > 1.5


def test_a_norm_bound_does_not_see_a_small_collusion(alone):
    """Its limit: what is within the bound counts in full."""
    bounded, plain = (after_a_round(rule, elsewhere) for rule in ("norm-bound", "none"))
    assert away(bounded, alone) > 0.9 * away(plain, alone)


@pytest.mark.parametrize("rule", RULES)
def test_the_gauge_gains_nothing(rule):
    turned, plain = after_a_round(rule, gauged), after_a_round(rule, scaled(1.0))
    assert away(turned, plain) < EXACT


@pytest.mark.parametrize("name", ["sign flip", "x 100", "x 1e30", "many records declared"])
def test_under_a_norm_bound_the_sum_is_no_longer_than_it(name):
    strategy = LoraStrategy(PLAN)
    cases = asked(strategy, ARRAYS)
    updates = [
        strategy.weighted(
            strategy._open,
            strategy.admit_reply(
                strategy._open,
                answer(*case, BOUNDED[name][0](client, *case[1:]))
                if client in HOSTILE
                else truthful(client, case),
            ),
        )
        for client, case in cases.items()
    ]
    bound = bound_norms(updates, SETTINGS).measures["bound"]
    found = after_a_round("norm-bound", BOUNDED[name][0])
    assert np.linalg.norm(found) <= bound * (1 + 1e-5)


def test_too_few_for_multi_krum_publish_nothing():
    strategy = LoraStrategy(PLAN, guard=guard_of("multi-krum", ROOT))
    cases = asked(strategy, ARRAYS)
    replies = [truthful(c, cases[c]) for c in "abcdef"]
    assert strategy.aggregate_train(1, replies)[0] is None
