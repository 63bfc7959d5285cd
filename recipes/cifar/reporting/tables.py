"""Tables of rows: Table I and II, what the switches do, accuracy by step, spikes, energy, and where the numbers come from."""

from statistics import mean
from typing import Any

from cifar.reporting.paper import CEILING, ENERGY, NETWORK, PEERS, TABLE1, VARIANTS
from cifar.reporting.rows import DATA, ENCODERS, Row, Runs
from cifar.reporting.table import Cell, Seeds, Table
from onespike.metrics.baseline import PUBLISHED_LIMIT
from onespike.metrics.energy import ACCOUNTINGS, TECHNOLOGIES

ABSENT = "not run"
PAPERS_T = 5
EVERY, TENTH = 5, 10
"""A table has a column for each of so many first steps, then for each so-manyth."""


def accuracy_table(rows: list[Row]) -> Table:
    """Table I, with the paper's numbers beside those of the same network."""
    header = [
        "run",
        "seeds",
        "ANN, %",
        "converted, %",
        "trained, %: potential",
        "combined",
        "time",
        "spikes per neuron",
        "paper, %",
    ]
    table = Table("table1", "Table I: from the ANN to the spiking network", header)
    for row in rows:
        plain = [result["plain"]["accuracy"] for result in row.results if "plain" in result and row.ann()]
        how = f" at T = {row.config['conversion_T']}, {row.config['conversion_images']} images" if plain else ""
        paper = TABLE1.get((row.config["dataset"], row.config["model"])) if row.config.items() >= NETWORK.items() else None
        table.rows.append(
            [
                row.name,
                len(row.results),
                Seeds(row.ann()) if row.ann() else "not trained",
                Seeds(plain, unit=how) if plain else "",
                *(Seeds(row.trained(lambda t, rule=rule: t["accuracy"][rule])) for rule in ("potential", "combined", "time")),
                Seeds(row.trained(lambda t: t["spikes_per_neuron"]), 3),
                " / ".join(f"{value:.2f}" for value in paper) if paper else "",
            ]
        )
    table.note = (
        "Test accuracy. Converted: direct input, any number of spikes, untrained. Trained, by the decision rule: "
        "potential argmax U, combined argmax U - T, time argmin T. Spikes of one image over all steps. Paper: ANN / "
        "converted / trained, where the network and the settings are the paper's. Several seeds: mean ± 95 % confidence "
        "interval (range)."
    )
    return table


def peer_table(rows: list[Row]) -> Table:
    """Table II: what the paper reports of its peers and of itself, and what was measured here."""
    told = ["reported by the paper: network", "accuracy, %", "T"]
    header = ["method", "training", "input", *told, "measured here", "accuracy, %", "T", "spikes per neuron"]
    note = "Reported numbers are the paper's, mostly of much larger networks and many more epochs than those measured here."
    table = Table("table2", "Table II: peers", header, note=note)
    for name, peer in PEERS.items():
        reported = [[f"{network}, {data}", f"{accuracy:.2f}", T] for data, network, accuracy, T in peer.results]
        measured: list[list[Cell]] = []
        for row in rows:
            if row.peer == name and (name or row.letter == "f"):
                accuracy = Seeds(row.trained(accuracy_of))
                measured.append([row.name, accuracy, row.T, Seeds(row.trained(spikes_of), 3)])
        measured = measured or [[ABSENT, None, None, None]]
        for i in range(max(len(reported), len(measured))):
            whose = [peer.authors, peer.training, peer.encoding] if i == 0 else [None] * 3
            of_paper = reported[i] if i < len(reported) else [None] * 3
            table.rows.append([*whose, *of_paper, *(measured[i] if i < len(measured) else [None] * 4)])
    return table


def spikes_of(trained: dict[str, Any]) -> float:
    """Return the spikes per neuron and image."""
    return trained["spikes_per_neuron"]


def variant_table(rows: list[Row]) -> Table:
    """Fig. 4 in numbers: the six networks of one setting."""
    header = ["network of Fig. 4", "T", "accuracy, %", "spikes per neuron", "times the spikes of (f)", "paper"]
    table = Table(f"variants-{rows[0].slug}", "The six networks of Fig. 4", header)
    least = [mean(row.trained(spikes_of)) for row in rows if row.letter == "f" and row.T == PAPERS_T]
    for letter, (encoder, single_spike, times) in VARIANTS.items():
        of_paper = f"{times:g}" if times else None
        found = [row for row in rows if row.letter == letter]
        if not found:
            spikes = "one spike" if single_spike else "any number of spikes"
            table.rows.append([f"({letter}) {ENCODERS[encoder]}, {spikes}", ABSENT, None, None, None, of_paper])
        for row in sorted(found, key=lambda row: row.T):
            spikes = row.trained(spikes_of)
            ratio = f"{mean(spikes) / least[0]:.2f}" if least and least[0] else None
            accuracy = Seeds(row.trained(accuracy_of))
            table.rows.append([f"({letter}) {row.kind}", row.T, accuracy, Seeds(spikes, 3), ratio, of_paper])
    table.note = (
        "Paper: how many times as many spikes as (f), of VGG-16 on CIFAR-10, at time steps that the text does not give."
    )
    return table


def switch_table(rows: list[Row]) -> Table:
    """What each switch does: the differences to (f) at the same seeds, of rows of one setting."""
    header = ["run", "seeds", "accuracy less that of (f), points", "spikes per neuron less those of (f)"]
    table = Table(f"switches-{rows[0].slug}", f"Differences to (f) at T = {PAPERS_T}, seed by seed", header)
    base = next((row for row in rows if row.letter == "f" and row.T == PAPERS_T), None)
    for row in rows:
        if base is None or row is base or row.T != PAPERS_T or row.how:
            continue
        pairs = [(row.seeds.index(seed), base.seeds.index(seed)) for seed in row.seeds if seed in base.seeds]
        differences = []
        for look, digits in ((accuracy_of, 2), (spikes_of, 3)):
            own, of_base = row.trained(look), base.trained(look)
            differences.append(Seeds([own[i] - of_base[j] for i, j in pairs], digits))
        if pairs:
            table.rows.append([row.kind, len(pairs), *differences])
    told = "Accuracy by potential. What a seed brings to both networks of a pair is not in their difference."
    table.note = told if table.rows else f"No run has a seed of (f) at T = {PAPERS_T} beside it."
    return table


def accuracy_of(trained: dict[str, Any]) -> float:
    """Return the accuracy by potential."""
    return trained["accuracy"]["potential"]


def step_table(rows: list[Row]) -> Table:
    """Accuracy of the trained networks when they are read before the last step."""
    steps = max(row.T for row in rows)
    told = [t for t in range(1, steps + 1) if t <= EVERY or t % TENTH == 0]
    table = Table("steps", "Accuracy, %, read at each step", ["run", *(f"t = {t}" for t in told)])
    for row in rows:
        by_step = [Seeds(row.trained(lambda trained, t=t: trained["accuracy_at_step"][t - 1])) for t in told if t <= row.T]
        table.rows.append([row.name, *by_step, *[None] * (len(told) - len(by_step))])
    if steps > EVERY:
        table.note = f"Each of the first {EVERY} steps, then every {TENTH}th; all are in the CSVs of the figures."
    return table


def layer_table(rows: list[Row]) -> Table:
    """Spikes per neuron of each layer, of rows of one setting."""
    layers = list(dict.fromkeys(name for row in rows for name in row.layers().values()))
    title = "Fig. 3: spikes per neuron and image, by layer"
    table = Table(f"activity-{rows[0].slug}", title, ["run", *layers])
    for row in rows:
        paths = {name: path for path, name in row.layers().items()}
        found = [row.recorded(lambda t, path=paths[one]: t["activity"].get(path)) if one in paths else [] for one in layers]
        table.rows.append([row.variant, *(Seeds(values, 3) if values else None for values in found)])
    return table


def energy_table(rows: list[Row]) -> Table:
    """How many times less compute energy than the ANN the trained networks take."""
    kinds = [(technology, accounting) for technology in TECHNOLOGIES for accounting in ACCOUNTINGS]
    names = [f"{technology}, {accounting}" for technology, accounting in kinds]
    table = Table("energy", "Fig. 5: energy of the ANN / of the SNN", ["run", *names, "at no spike"])
    for data, times in ENERGY.items():
        paper = f"reported by the paper: VGG-16, {DATA[data]}, hybrid input, one spike, T = 5"
        table.rows.append([paper, times, *[None] * (len(kinds) - 1), CEILING if data == "cifar10" else None])
    for row in rows:
        cells = [Seeds(row.trained(lambda trained, kind=kind: ratio(trained, *kind)), 1) for kind in kinds]
        ceilings = [value for result in row.results if (value := ceiling(result)) is not None]
        table.rows.append([row.name, *cells, Seeds(ceilings, 1) if len(ceilings) == len(row.results) else "no limit"])
    table.note = (
        "Computing alone, 45 nm. int32: MAC 3.2 pJ, accumulate 0.1 pJ, the paper's; fp32: 4.6 and 0.9. Accountings: paper (eq. "
        "25), input (spikes that arrive), events (each synapse that a spike reaches). At no spike: what the first layer's MACs "
        "leave of the ratio, int32, paper."
    )
    return table


def ceiling(result: dict[str, Any]) -> float | None:
    """Return the ratio at no spike, None where nothing bounds it, which earlier versions of the recipe wrote as infinite."""
    value = result["trained"]["energy"]["int32_45nm"]["paper"]["ceiling"]
    return None if value == float("inf") else value


def ratio(trained: dict[str, Any], technology: str, accounting: str) -> float:
    """Return how many times less energy than its ANN a trained network takes."""
    report = trained["energy"][technology][accounting]
    return report["ann_pj"] / report["snn_pj"]


def data_movement_table(rows: list[Row]) -> Table:
    """On which side of the quantised ANN's line each network falls."""
    line = f"below {100 * PUBLISHED_LIMIT:.1f} %"
    ours = ["limit by its own counts, %", "energy of the quantised ANN / of the SNN"]
    header = ["run", "spikes per neuron and step, %", line, *ours]
    table = Table("data-movement", "With data movement counted, against the quantised ANN", header)
    for row in rows:
        rates = [spikes / row.T for spikes in row.trained(spikes_of)]
        limits = row.recorded(lambda t: t.get("quantised_baseline", {}).get("limit"))
        ratios = Seeds(row.recorded(lambda t: quantised_ratio(t.get("quantised_baseline"))))
        table.rows.append([row.name, percent(rates), side(rates, row.T), percent(limits), ratios])
    table.note = (
        f"{100 * PUBLISHED_LIMIT:.1f} %: below this rate a spiking network wins at T = 5 against the quantised ANN that "
        "says as much (arXiv:2409.08290). By its own counts: as onespike.metrics.quantised_baseline finds it, with 8-bit "
        "weights in 32 KB of SRAM, no data used again, and each spike of an average pool fetched by itself."
    )
    return table


def percent(shares: list[float]) -> Seeds:
    """Return shares in percent."""
    return Seeds([100 * share for share in shares], 1)


def side(rates: list[float], T: int) -> str:
    """Say whether spike rates are below the published limit, which holds for about as many steps."""
    if not 5 <= T <= 10:
        return "set for T = 5"
    below = [rate < PUBLISHED_LIMIT for rate in rates]
    return "yes" if all(below) else "for some seeds" if any(below) else "no"


def quantised_ratio(baseline: dict[str, Any] | None) -> float | None:
    """Return how many times less energy than the quantised ANN a network takes, where that was recorded."""
    return baseline["ann_pj"] / baseline["snn_pj"] if baseline else None


def neurobench_table(rows: list[Row]) -> Table:
    """The counts under NeuroBench's names."""
    names = ["Footprint", "ConnectionSparsity", "ActivationSparsity", "Effective_MACs", "Effective_ACs", "Dense"]
    table = Table("neurobench", "Under NeuroBench's names", ["run", *names])
    for row in rows:
        digits = {name: 4 if "Sparsity" in name else 0 for name in names}
        cells = [Seeds(row.recorded(lambda t, n=name: t.get("neurobench", {}).get(n)), digits[name]) for name in names]
        if any(cell.values for cell in cells):
            table.rows.append([row.name, *cells])
    table.note = (
        "Footprint in bytes; operations per image, all steps together. Rows that did not record them are left out."
        if table.rows
        else "No run recorded them."
    )
    return table


def tables_of(runs: Runs) -> list[Table]:
    """Return the tables over all rows."""
    makers = (accuracy_table, peer_table, step_table, energy_table, data_movement_table, neurobench_table)
    return [maker(runs.rows) for maker in makers] if runs.rows else []


def provenance_lines(rows: list[Row]) -> list[str]:
    """Where the numbers come from, a line for each row."""
    lines = []
    for row in rows:
        machine = row.provenance[0]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        commits = ", ".join(
            sorted({f"{one['commit'] or 'unknown'}"[:7] + ("+" if one["changed"] else "") for one in row.provenance})
        )
        minutes = Seeds([seconds / 60 for seconds in row.seconds], 1)
        lines.append(
            f"{row.name} ({row.run}): {machine['device']}, {machine['processes']} x {machine['threads']} threads, "
            f"{machine['precision']}, {minutes} minutes a seed; {versions}; commit {commits}."
        )
    return lines
