"""The GPU suite's result as Markdown: what docs/performance.md shows."""

from collections.abc import Iterator
from typing import Any

from benchmarks.harness import table

HEADS = ("model", "contender", "tokens/s", "step, ms", "peak GiB", "of the plan's", "attention", "loss head")


def markdown(result: dict[str, Any]) -> str:
    """A paragraph or a table for each part that was run; of a toy run, with the warning that it is one."""
    parts = [machine(result)]
    for key, show in PARTS.items():
        if key in result:
            found = result[key]
            parts.append(f"{key}: {found}" if isinstance(found, str) else show(found))
    return "\n\n".join(parts)


def machine(result: dict[str, Any]) -> str:
    environment = result["environment"]
    versions = {"python": environment["python"], **environment["versions"], **result["software"]}
    return f"{result['device']} x {result['num_cards']}. " + ", ".join(
        f"{name} {one}" for name, one in versions.items()
    )


def sizes(found: dict[str, Any]) -> str:
    lines = [
        f"{label}: {one['times_best_trl']:.2f} times the best of TRL; gate {one['gate']}; "
        f"target {one['target']} tokens per second"
        for label, one in found.items()
        if "gate" in one
    ]
    return "\n\n".join([table(HEADS, size_rows(found)), *lines])


def size_rows(found: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for label, one in found.items():
        for name, figures in one["contenders"].items():
            yield (label, name, *cells(figures))


def cells(figures: dict[str, Any] | str) -> tuple[Any, ...]:
    """What HEADS wants of a contender; words where it has no figures."""
    if isinstance(figures, str):
        return (figures, *[""] * 5)
    rate = figures["tokens_per_second"]
    return (
        *(round(rate) if rate else "", figures["step_ms"] or "", figures["peak_gib"] or ""),
        *(figures.get(name) or "" for name in ("peak_to_plan", "attention", "loss_head")),
    )


def grid(found: dict[str, Any]) -> str:
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in found["wall_seconds"].items())
    return f"{found['cells']} cells: {seconds}, {found['times']:.2f} times; losses within " + (
        f"{found['largest_loss_difference']:.1g} nats at every step."
    )


def model(found: dict[str, Any]) -> str:
    return table(HEADS, (row for name, swept in found.items() for row in sweep_rows(name, swept)))


def sweep_rows(name: str, swept: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for cell in swept["cells"]:
        axes = ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in cell["axes"].items())
        yield (name, axes, *cells(cell))


def cards(found: dict[str, Any]) -> str:
    swept = {name: one for name, one in found.items() if isinstance(one, dict) and "cells" in one}
    seconds = ", ".join(f"{name} {one['wall_seconds']:.1f} s" for name, one in swept.items())
    rows = [row for name, one in swept.items() for row in sweep_rows(name, one)]
    both = ("one trial", "on two", *cells(found["one trial on two"]))
    return f"{found['cards']} cells: {seconds}.\n\n{table(HEADS, [*rows, both])}"


def idle(found: dict[str, Any]) -> str:
    rows = [
        (name, sum(one["waits_per_step"].values()), "" if one["idle_share"] is None else one["idle_share"])
        for name, one in found.items()
    ]
    return table(("contender", "waits per step", "idle share of the device, at most"), rows)


def kernels(found: dict[str, Any]) -> str:
    rows = [
        (case, name, one["wall_ms"])
        for case, ways in found.items()
        for name, one in ways.items()
        if isinstance(one, dict)
    ]
    return table(("kernel", "way", "ms"), rows)


PARTS = {"sizes": sizes, "grid": grid, "model": model, "cards": cards, "idle": idle, "kernels": kernels}
