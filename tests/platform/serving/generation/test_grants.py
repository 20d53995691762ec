from __future__ import annotations

import pytest
from intarsia_client.errors import AccessError, InputError
from intarsia_continual.retrieval import Choice
from intarsia_platform.access.ticket import GrantedAdapter, Ticket, TicketMint
from intarsia_platform.serving.grants import Watch, check_grants


def _ticket(**more: object) -> Ticket:
    return TicketMint(b"s" * 32).issue(
        principal="ann",
        adapters=[GrantedAdapter(digest=f"sha256:{name}", name=name) for name in "abc"],
        apart=[("sha256:c", "sha256:a")],
        policy_version="",
        issued_at=0.0,
        **{"epoch": 3, "expires_at": 100.0, **more},
    )


def _chosen(*names: str, weight: float = 1.0) -> list[Choice]:
    return [Choice(digest=f"sha256:{name}", weight=weight) for name in names]


def test_what_is_granted_comes_in_order() -> None:
    assert check_grants(_ticket(), []) == ()
    assert check_grants(_ticket(), _chosen("b", "a", weight=0.5)) == (
        ("sha256:a", 0.5),
        ("sha256:b", 0.5),
    )


def test_forbidden_unknown_and_apart_have_the_same_words() -> None:
    for chosen in (_chosen("d"), _chosen("a", "nothing"), _chosen("a", "b", "c")):
        with pytest.raises(AccessError, match="is not one that you may use"):
            check_grants(_ticket(), chosen)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 17.0])
def test_weights_are_bounded(weight: float) -> None:
    with pytest.raises(InputError, match="weight"):
        check_grants(_ticket(), _chosen("a", weight=weight))


def test_mixtures_are_bounded() -> None:
    with pytest.raises(InputError, match="comes twice"):
        check_grants(_ticket(), _chosen("a", "a"))
    with pytest.raises(InputError, match="at most 64"):
        check_grants(_ticket(), _chosen(*"a" * 65))


class _Counting:
    """Counts how often standing is asked for; answers as it is told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.answer = True

    def epoch(self) -> int:
        return 0

    def admit(self, ticket: Ticket) -> None:
        """Nothing."""

    def standing(self, ticket: Ticket, used_digests: object) -> bool:
        self.asked.append(tuple(used_digests))  # type: ignore[call-overload]
        return self.answer


def test_a_ticket_is_judged_again_only_when_the_epoch_moved() -> None:
    admission, now = _Counting(), [10.0]
    watch = Watch(admission, _ticket(), ["sha256:a"], lambda: now[0])
    assert all(watch.stands(3) for _ in range(5))
    assert admission.asked == []
    assert all(watch.stands(4) for _ in range(5))
    assert admission.asked == [("sha256:a",)]
    admission.answer = False
    assert not watch.stands(5)
    assert not watch.stands(5)
    now[0] = 100.0
    assert not watch.stands(4)
