import json
import math

from hypothesis import given
from hypothesis import strategies as st
from intarsia_client.files import canonical_json
from intarsia_platform.results import (
    AdapterResult,
    ClientEvaluation,
    ClientRound,
    Measured,
    RefusedClient,
    RoundResult,
    RuleDecision,
    SimulationResult,
)

numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
measured = st.builds(Measured, loss=numbers, perplexity=numbers, accuracy=numbers)
refused = st.lists(st.builds(RefusedClient, client=st.text(), reason=st.text()), max_size=2)
client_rounds = st.builds(
    ClientRound,
    client=st.text(),
    rank=st.integers(0, 64),
    number_of_examples=st.integers(0),
    status=st.sampled_from(["accepted", "refused"]),
    train_loss=numbers,
    epsilon=numbers,
)
shares = st.floats(0, 1)
decisions = st.lists(
    st.builds(
        RuleDecision,
        client=st.text(),
        outcome=st.sampled_from(["left-out", "bounded", "reweighed"]),
        share_before=shares,
        share=shares,
        factor=shares,
    ),
    max_size=2,
)
rounds = st.builds(
    RoundResult,
    round=st.integers(1),
    test=st.none() | measured,
    bytes_up=st.integers(0),
    bytes_down=st.integers(0),
    seconds=st.floats(0, 1e6),
    accepted=st.integers(0),
    refused=refused.map(tuple),
    sat_out=refused.map(tuple),
    epsilon_max=numbers,
    clients=st.lists(client_rounds, max_size=2).map(tuple),
    rank=st.integers(0, 64),
    cut_energy=shares,
    residual_energy=shares,
    decisions=decisions.map(tuple),
)
evaluations = st.builds(
    ClientEvaluation,
    client=st.text(),
    base=st.none() | measured,
    own=st.none() | measured,
    federated=st.none() | measured,
    rank=st.integers(0, 64),
    train_examples=st.integers(0),
    test_examples=st.integers(0),
)
simulations = st.builds(
    SimulationResult,
    run=st.text(),
    base=measured,
    rounds=st.lists(rounds, max_size=2).map(tuple),
    adapter=st.builds(AdapterResult, digest=st.text(), path=st.text(), rank=st.integers(0, 64)),
    clients=st.lists(evaluations, max_size=2).map(tuple),
    configuration=st.dictionaries(st.text(), st.integers() | st.text(), max_size=2),
    seconds=st.floats(0, 1e6),
    report=st.none() | st.text(),
)


@given(simulations)
def test_a_result_survives_json(result: SimulationResult) -> None:
    text = json.dumps(result.as_mapping(), allow_nan=False)
    assert SimulationResult.from_mapping(json.loads(text)) == result


def test_a_round_has_exactly_the_documented_keys_and_a_few_beside_them() -> None:
    result = RoundResult(
        round=1,
        test=Measured(loss=2.0, perplexity=math.exp(2.0)),
        bytes_up=10,
        bytes_down=20,
        seconds=1.5,
        accepted=7,
        refused=(RefusedClient(client="Ahorn", reason="not-finite"),),
        epsilon_max=None,
        rank=32,
    )
    mapping = result.as_mapping()
    documented = {
        "round": 1,
        "test": {"loss": 2.0, "perplexity": math.exp(2.0), "accuracy": None},
        "bytes_up": 10,
        "bytes_down": 20,
        "seconds": 1.5,
        "accepted": 7,
        "refused": [{"client": "Ahorn", "reason": "not-finite"}],
        "epsilon": {"max": None},
    }
    assert {key: mapping[key] for key in documented} == documented
    assert set(mapping) - set(documented) == {
        "sat_out", "clients", "rank", "cut_energy", "residual_energy", "decisions",
    }  # fmt: skip


def test_rounds_of_a_version_without_energies_and_rules_are_read() -> None:
    result = RoundResult(round=1, bytes_up=0, bytes_down=0, seconds=0.0, accepted=1, rank=4)
    mapping = result.as_mapping()
    for key in ("cut_energy", "residual_energy", "decisions"):
        del mapping[key]
    assert RoundResult.from_mapping(mapping) == result


def test_influence_is_what_weight_and_factor_leave() -> None:
    halved = {"client": "a", "outcome": "bounded", "share_before": 0.25}
    assert RuleDecision(**halved, share=0.25, factor=0.5).influence == 0.5
    assert RuleDecision(**halved, share=0.125, factor=0.5).influence == 0.25
    assert RuleDecision(**halved, share=0.0, factor=1.0).influence == 0.0


def test_numbers_that_json_cannot_hold_become_null() -> None:
    measurement = Measured(loss=math.nan, perplexity=math.inf)
    assert measurement.as_mapping() == {"loss": None, "perplexity": None, "accuracy": None}
    canonical_json(measurement.as_mapping())


def test_the_final_measurement_is_the_last_round_that_was_measured() -> None:
    def of(number: int, test: Measured | None) -> RoundResult:
        return RoundResult(
            round=number, test=test, bytes_up=0, bytes_down=0, seconds=0.0, accepted=1, rank=4
        )

    adapter = AdapterResult(digest="sha256:0", path="adapter", rank=4)
    first = Measured(loss=1.0)
    result = SimulationResult(
        run="r", base=Measured(), rounds=(of(1, first), of(2, None)), adapter=adapter, seconds=1.0
    )
    assert result.final is first
