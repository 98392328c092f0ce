"""Multi-stage training next to PGD-10 and TRADES: AutoAttack accuracy, gradients, time; the same images and seeds.

python benchmarks/multistage.py --out FOLDER [--dataset NAME] [--n-train N] [--epochs N] [--seeds N ...] [--only ...]

Every training is a run of its own in FOLDER, which holds the results as they come: a killed study goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from itertools import product
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import attacks as bench
import numpy as np
import tables
from rich.console import Console
from rich.table import Table

from kerasdef.evaluation import mcnemar, wilson
from kerasdef.recipes.robust import training as robust

REFERENCES = ("PGD-10", "TRADES-10")
TO_REACH = 0.6  # of the gradients and of the time of both
QUICK = {"attack": "pgd", "objective": "madry", "shares": (0.1, 0.1, 0.8), "steps": (1, 2, 4)}
VARIANTS = {  # name: method, settings, share of the epochs
    "PGD-10": ("pgd", {"steps": 10}, 1.0),
    "TRADES-10": ("trades", {"steps": 10}, 1.0),
    "multistage": ("multistage", {}, 1.0),
    "PGD 1, 2, 4": ("multistage", {"attack": "pgd", "steps": (1, 2, 4)}, 1.0),
    "PGD 1, 2, 4, weight 3, more epochs": ("multistage", {"attack": "pgd", "steps": (1, 2, 4), "beta": 3.0}, 1.3),
    "short stages": ("multistage", QUICK, 1.1),
    "short stages, 1.3": ("multistage", QUICK, 1.3),
    "short stages, 1.4": ("multistage", QUICK, 1.4),
    "PGD-4, more epochs": ("pgd", {"steps": 4}, 1.1),  # what few steps and more epochs do without stages
}


def run(name: str, seed: int, options: argparse.Namespace) -> dict:
    """Train and judge a variant, or find it finished."""
    method, settings, share = VARIANTS[name]
    shared = {"network": options.network, "n_train": options.n_train, "n_test": options.n_test}
    epochs = round(share * options.epochs)
    folder = options.out / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{seed}"
    found = robust.train(method, options.dataset, epochs=epochs, seed=seed, out=folder, **shared, **settings)
    clean, attacked = (found.report.outcome(method, what, "adaptive") for what in ("clean", "autoattack"))
    return {
        "name": name,
        "seed": seed,
        "index": clean.index,
        "clean": clean.predicted == clean.y,
        "robust": attacked.predicted == attacked.y,
        "gradients": found.cost["gradients"],
        "seconds": found.cost["seconds"],
    }


def summary(runs: list[dict]) -> list[dict]:
    """One row for each variant: its means over its seeds, and what it saves and loses next to the references."""
    rows = []
    by = {name: {r["seed"]: r for r in runs if r["name"] == name} for name in VARIANTS}
    for name, own in by.items():
        if not own:
            continue
        row = {"name": name, "seeds": sorted(own)}
        for what in ("clean", "robust"):
            right = np.concatenate([own[s][what] for s in row["seeds"]])
            row |= {
                what: float(right.mean()),
                f"{what}_interval": wilson(int(right.sum()), len(right)),
                "n": len(right),
            }
        row |= {what: float(np.mean([own[s][what] for s in row["seeds"]])) for what in ("gradients", "seconds")}
        row["robust_by_seed"] = [float(own[s]["robust"].mean()) for s in row["seeds"]]
        row["against"] = {other: against(own, by[other]) for other in REFERENCES if other != name and by[other]}
        rows.append(row)
    return rows


def against(own: dict[int, dict], other: dict[int, dict]) -> dict:
    """A variant next to a reference over the seeds that both have; images are paired within a seed."""
    seeds = sorted(own.keys() & other.keys())
    for seed in seeds:
        assert np.array_equal(own[seed]["index"], other[seed]["index"])
    a, b = (np.concatenate([found[s]["robust"] for s in seeds]) for found in (own, other))
    shares = {
        f"{w}_ratio": sum(own[s][w] for s in seeds) / sum(other[s][w] for s in seeds) for w in ("gradients", "seconds")
    }
    return {**mcnemar(a, b), **shares}


def show(rows: list[dict], console: Console) -> None:
    """Print the table."""
    table = Table("training", "seeds", "clean %", "AutoAttack % [95 % CI]", "million gradients", "minutes")
    for other in REFERENCES:
        table.add_column(f"gradients, time / {other}")
        table.add_column("difference in points (p)")
    for row in rows:
        limit = None if row["name"] in REFERENCES else TO_REACH
        low, high = row["robust_interval"]
        cells = [row["name"], str(len(row["seeds"])), f"{100 * row['clean']:.1f}"]
        cells += [f"{100 * row['robust']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"]
        cells += [f"{row['gradients'] / 1e6:.2f}", f"{row['seconds'] / 60:.1f}"]
        for other in REFERENCES:
            found = row["against"].get(other)
            cells += ["", ""] if found is None else [ratios(found, limit), difference(found)]
        table.add_row(*cells)
    console.print(table)


def ratios(found: dict, limit: float | None) -> str:
    """Shares of the gradients and of the time of a reference, and what the bar says of the larger one."""
    shares = found["gradients_ratio"], found["seconds_ratio"]
    return f"{shares[0]:.2f}, {shares[1]:.2f} {tables.mark(max(shares), limit, at_most=True)}".rstrip()


def difference(found: dict) -> str:
    """Points gained or lost under AutoAttack, with the p-value."""
    return f"{100 * found['difference']:+.1f} ({found['p_value']:.2g})"


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--network", help="default: the method's")
    parser.add_argument("--n-train", type=int, help="training images; default: all")
    parser.add_argument("--n-test", type=int, default=500, help="test images under AutoAttack, for each seed")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    usual = [*REFERENCES, "multistage", "short stages"]
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=usual, metavar="NAME")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    console, runs = Console(width=180), []
    facts = {"machine": bench.machine(), **{k: str(v) for k, v in vars(options).items()}}
    for seed, name in product(options.seeds, options.only):
        runs.append(run(name, seed, options))
        rows = summary(runs)
        (options.out / "study.json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        show(rows, console)


if __name__ == "__main__":
    main()
