"""The section of RESULTS.md on sentences, from text_minilm.json and text_lstm.json."""

from __future__ import annotations

from typing import Any

from results_common import label, theirs
from results_methods import losses

_NAMES = {"minilm": "MiniLM", "lstm": "An LSTM reader"}


def _cell(point: dict[str, Any], how: str) -> str:
    if how not in point["raw_accuracy"]:
        return f"{100 * point['accuracy'][how]:.2f}" if how in point["accuracy"] else "–"
    return f"{100 * point['raw_accuracy'][how]:.2f}" + ("°" if how in point["declined"] else "")


def _anchor(data: dict[str, Any]) -> list[str]:
    """What the best combination loses at half of the MACs; where that is a declined refit, also the best that is delivered."""
    base = data["unpruned"]["quality"]["accuracy"]
    at = [(n, p) for n, x in data["methods"].items() for p in x["points"] if p["asked"].get("macs") == 0.5]
    if not at:
        return []
    given = [(v, n, how) for n, p in at for how, v in p["accuracy"].items() if how not in p["declined"]]
    declined = [(p["raw_accuracy"][how], n, how) for n, p in at for how in p["declined"]]

    def said(found: tuple[float, str, str]) -> str:
        return f"{found[1]}, {found[2]}, {100 * found[0]:.2f} %, {100 * (base - found[0]):.2f} points lost"

    best = f"the best combination that is delivered is {said(max(given))}"
    if declined and max(declined) > max(given):
        best = f"the best figure is {said(max(declined))}: a refit that cswap itself declined, chosen here on the test data; {best}"
    mine = max(((v, n, how) for v, n, how in given if n == "cswap"), default=None)
    own = f" C-SWAP's own best there is {said(mine)}." if mine and mine != max(given) else ""
    return [f"At half of the MACs, {best} (set as a goal: under 1 %).{own}", ""]


def text(data: dict[str, Any]) -> list[str]:
    """One network's curves, a row a method and point, against MACs and parameters."""
    base, whole = data["unpruned"]["quality"]["accuracy"], data["unpruned"]["params"]
    ways, table = data["recover"], data["embedded_params"]
    lines = [
        f"## {_NAMES[data['network']]} on SST-2, one shot, no fine-tuning", "",
        f"`{data['command']}`: seed {data['seed']}; {data['machine']['cores']} cores, torch {data['versions']['torch']}, commit "
        f"`{data['commit'][:12]}{'+dirty' if data['commit'].endswith('dirty') else ''}`.",
        f"{data['held_out_samples']:,} test sentences in {data['measured_in']['precision']} (unpruned {100 * base:.2f} %); effects and scores "
        f"from {data['per_class']} sentences a class{', in bfloat16' if data['amp'] else ''}, recoveries from {data['recover_per_class']}. "
        f"{table:,} of {whole:,} parameters are embeddings. Accuracy in %; ° the recovered network where cswap declines it, "
        "because it is worse on the calibration samples that did not fit." + theirs(data), "",
    ]  # fmt: skip
    lines += [f"| {' | '.join(['method', 'MACs removed', 'params removed', *ways, 'analysis, s'])} |"]
    lines += ["|" + " --- |" * (4 + len(ways))]
    for name, x in data["methods"].items():
        for p in x["points"][1:]:
            cells = [
                label(name, data),
                f"{p['ratio']['macs']:.3f}",
                f"{p['ratio']['params']:.3f}",
                *(_cell(p, how) for how in ways),
            ]
            lines.append(f"| {' | '.join([*cells, format(x['seconds'], '.0f')])} |")
    return [*lines, "", *_anchor(data), *losses(data)]
