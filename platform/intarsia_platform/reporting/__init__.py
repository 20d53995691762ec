"""What a person looks at: the report page, the pictures and the terminal's tables."""

from intarsia_platform.reporting.page import write_report
from intarsia_platform.reporting.plans import plan_lines, plan_table
from intarsia_platform.reporting.plots import save_figure_png
from intarsia_platform.reporting.steps import NextStep, next_steps
from intarsia_platform.reporting.tables import clients_table, rounds_table

__all__ = [
    "NextStep",
    "clients_table",
    "next_steps",
    "plan_lines",
    "plan_table",
    "rounds_table",
    "save_figure_png",
    "write_report",
]
