import ast
import shlex
from collections.abc import Callable
from pathlib import Path

from intarsia_platform.reporting.steps import loading_code, next_steps, on_lines
from intarsia_platform.results import SimulationResult

Simulation = Callable[..., SimulationResult]


def test_commands_survive_the_shell(simulation: Simulation) -> None:
    home = Path("/home/a b/$HOME")
    steps = next_steps(simulation(), home=home, mlflow_database=home / "mlflow.db")
    commands = [shlex.split(step.command) for step in steps]
    assert [command[0] for command in commands] == ["intarsia", "intarsia", "intarsia", "mlflow"]
    for command in commands[:3]:
        assert command[command.index("--home") + 1] == str(home)
        assert simulation().adapter.digest in command
    assert commands[3][-1] == "sqlite:////home/a%20b/%24HOME/mlflow.db"


def test_without_a_home_or_mlflow_nothing_is_said_of_them(simulation: Simulation) -> None:
    steps = next_steps(simulation())
    assert not any("--home" in step.command or "mlflow" in step.command for step in steps)


def test_a_long_command_breaks_before_its_options_and_stays_one_command() -> None:
    command = "intarsia adapters export sha256:" + "ab" * 32 + " --out my-adapter --home /tmp/x"
    broken = on_lines(command)
    assert len(broken.splitlines()) == 3
    assert shlex.split(broken.replace("\\\n", "")) == shlex.split(command)
    assert on_lines("intarsia demo --home x") == "intarsia demo --home x"
    quoted = f"intarsia demo --home '{'x' * 90} --y'"
    assert on_lines(quoted) == quoted


def test_the_python_to_paste_is_python(simulation: Simulation) -> None:
    code = loading_code(simulation())
    ast.parse(code)
    assert "AutoModelForCausalLM" in code
    assert '"/home/a b/adapter"' in code
