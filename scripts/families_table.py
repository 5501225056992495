"""The table of families in docs/diffusers.md, made anew:  python scripts/families_table.py

Tiny pipelines with random weights, one for each family of `tests/zoo`, are run by the claims of `tests/families.py`.
What works and what is refused is what the test of the families checks; here the round trip is measured.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import families  # noqa: E402  # of the tests
import zoo  # noqa: E402

PAGE = ROOT / "docs" / "diffusers.md"
BEGIN, END = "<!-- families:begin -->", "<!-- families:end -->"
HEADS = (
    "family", "pipeline", "scheduler", "path", "our scheduler", "model", "from noise", "from a picture", "inversion",
    "edit", "diagnosis", "why not",
)  # fmt: skip


def path_of(name: str) -> str:
    """The path along which a member is served, in words."""
    if not families.works("round_trip", name):
        return "flow" if families.is_flow(families.pipeline(name).scheduler) else "table of betas"
    model = families.model_of(name)
    return {
        "RectifiedFlow": "flow", "Tabulated": "table of betas", "TrigFlow": "trigonometric", "VE": "VE",
        "ContinuousVP": "continuous VP", "ArctangentVP": "continuous VP",
    }.get(type(model.schedule).__name__, type(model.schedule).__name__)  # fmt: skip


def row(name: str, *, measured: bool = True) -> tuple[str, ...]:
    """What is known of one family, in the order of the heads.

    Args:
        name: The member of the zoo.
        measured: Whether to measure the round trip; else it is "yes".
    """
    member, pipe = zoo.MEMBERS[name], families.pipeline(name)

    def yes(claim: str) -> str:
        return "yes" if families.works(claim, name) else "no"

    model = families.works("decode", name)
    inversion = yes("round_trip")
    if inversion == "yes" and measured:
        inversion = f"{families.CLAIMS['round_trip'](name):.0e}"
    whole = families.works("strength", name) if families.applies("strength", name) else families.works("codec", name)
    return (
        member.family, type(pipe).__name__, type(pipe.scheduler).__name__, path_of(name), yes("scheduler"),
        "no" if not model else "own adapter" if name in families.ADAPTED else "served",
        "yes" if model else "no", "yes" if whole else "no", inversion, yes("edit"),
        yes("diagnosis") if families.applies("diagnosis", name) else "not run", families.reason(name),
    )  # fmt: skip


def table(rows: list[tuple[str, ...]]) -> str:
    """The table, as Markdown."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)])


def summary() -> str:
    """How many families work, in one line."""
    scheduled, models, back = (len(families.working(claim)) for claim in ("scheduler", "decode", "round_trip"))
    return (
        f"Of {len(zoo.MEMBERS)} pipelines, {scheduled} run with our schedulers in their own loop, {models} are models, "
        f"and {back} of those return from an inversion."
    )


def committed() -> list[tuple[str, ...]]:
    """The rows of the table on the page."""
    found = re.search(re.escape(BEGIN) + "(.*)" + re.escape(END), PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [] if found is None else [line for line in found[1].splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def main() -> None:
    """Make the table, and put it on the page."""
    warnings.simplefilter("ignore")
    page = PAGE.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        sys.exit(f"{PAGE.name}: no place for the table, which is between {BEGIN} and {END}")
    made = table([row(name) for name in zoo.MEMBERS])
    families.forget()
    text = f"{BEGIN}\n\n{summary()}\n\n{made}\n\n{END}"
    pattern = re.escape(BEGIN) + ".*" + re.escape(END)
    PAGE.write_text(re.sub(pattern, lambda _: text, page, flags=re.DOTALL), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
