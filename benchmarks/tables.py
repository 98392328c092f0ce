"""The tables of `attacks.py`."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table


def mark(value: float, limit: float | None, at_most: bool = False) -> str:
    """What a bar says of a value."""
    if limit is None:
        return ""
    return f"{'<=' if at_most else '>='} {limit:g}{'' if (value <= limit) == at_most else ' MISSED'}"


def show(found: dict) -> None:
    """Print the tables."""
    facts = found["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
    out = Console(width=None if sys.stdout.isatty() else 160)
    out.print(f"{facts['cpus']} CPUs ({facts['processor']}), device {facts['device']}, load {facts['load_before']:.1f}")
    out.print(f"Python {facts['python']}, {versions}")
    for victim in found["models"]:
        title = (
            f"{victim['kind']} model on {victim['dataset']} (clean {victim['clean_accuracy_of_1000']:.1%} of 1,000), "
            f"eps {victim['eps']:.4g}; one gradient of {victim['n']}: {1e3 * victim['gradient_seconds']:.1f} ms"
        )
        table = Table(title=title, title_justify="left")
        for head in ("attack", "n", "seconds", "over gradients", "left", "loss", "change", "peer", "times as fast",
                     "their left", "their loss", "change ratio"):  # fmt: skip
            table.add_column(head, justify="left" if head in ("attack", "peer") else "right")
        for row in victim["rows"]:
            mine = row["kerasdef"]
            over = row.get("overhead")
            first = [
                row["name"],
                str(row["n"]),
                f"{mine['seconds']:.2f}",
                "" if over is None else f"{over:.2f} {mark(over, row['overhead_to_reach'], True)}",
                f"{mine['accuracy_left']:.1%}",
                f"{mine['mean_loss']:.2f}",
                f"{mine['median_change']:.3f}",
            ]
            if not row["peers"]:
                table.add_row(*first, "", "", "", "", "")
            for name, theirs in row["peers"].items():
                fast = theirs["times_as_fast"]
                table.add_row(
                    *first,
                    name,
                    f"{fast:.2f} {mark(fast, theirs['to_reach'])}",
                    f"{theirs['accuracy_left']:.1%}",
                    f"{theirs['mean_loss']:.2f}",
                    f"{theirs['median_change_ratio']:.3f}",
                )
                first = [""] * len(first)
        out.print(table)
    for part in found["memory"]:
        out.print(
            f"memory of FGSM on {part['n']:,} images beyond the arrays: {part['constant_bytes'] / 2**20:.1f} MiB "
            f"(arrays in and out {part['array_bytes'] / 2**20:.0f} MiB each)"
        )
    out.print(f"{found['seconds_in_all']:.0f} s in all")
