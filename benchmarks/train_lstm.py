"""Train the LSTM reader on SST-2: a few minutes on one core, with a log, a checkpoint an epoch and a resume.

    nice -n 10 python benchmarks/train_lstm.py --data DIR/sst2 --out F.safetensors

Adam, dropout, the epoch that is best on the development set. Beside the weights: the vocabulary (F.vocabulary.txt) and a
report (F.json) with the accuracy on the 1,821 test sentences.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from _machine import machine
from networks_text import lstm_reader, sentences, split, vocabulary_of


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Fraction of right labels."""
    model.eval()
    tokens, labels = data.tensors
    with torch.inference_mode():
        right = sum(
            int((model(t).argmax(1) == y).sum()) for t, y in zip(tokens.split(500), labels.split(500), strict=True)
        )
    return right / len(labels)


def run() -> None:
    """Train to the last epoch, or go on after an interruption; write weights, vocabulary and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    work = given.out.with_suffix(".training")
    work.mkdir(parents=True, exist_ok=True)
    vocabulary = vocabulary_of(sentences(given.data / "train.tsv")[0])
    train, dev, test = (split(given.data, name, vocabulary) for name in ("train", "dev", "test"))
    torch.manual_seed(given.seed)
    model = lstm_reader()
    optimiser = torch.optim.Adam(model.parameters(), lr=given.rate, weight_decay=1e-5)
    state: dict[str, Any] = {"epoch": 0, "seconds": 0.0, "best": 0.0, "kept": model.state_dict()}
    if (work / "last.pt").exists():
        state = torch.load(work / "last.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    tokens, labels = train.tensors
    for epoch in range(state["epoch"], given.epochs):
        begin = time.perf_counter()
        torch.manual_seed(1000 * given.seed + epoch)
        model.train()
        total = 0.0
        batches = torch.randperm(len(labels)).split(64)
        for batch in batches:
            optimiser.zero_grad()
            longest = int((tokens[batch] != 0).sum(1).max())
            loss = F.cross_entropy(model(tokens[batch][:, :longest]), labels[batch])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            total += loss.item()
        found = accuracy(model, dev)
        if found > state["best"]:
            state |= {"best": found, "kept": {k: v.clone() for k, v in model.state_dict().items()}}
        state["seconds"] += time.perf_counter() - begin
        print(f"epoch {epoch + 1}/{given.epochs}: loss {total / len(batches):.3f}, dev {found:.4f}, {state['seconds']:.0f} s", flush=True)  # fmt: skip
        state |= {"epoch": epoch + 1, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save(state, work / "next.pt")
        (work / "next.pt").replace(work / "last.pt")
    model.load_state_dict(state["kept"])
    report = {
        "command": f"python benchmarks/train_lstm.py --epochs {given.epochs} --rate {given.rate} --seed {given.seed}",
        "data": "SST-2, words", "dev_accuracy": state["best"], "test_accuracy": accuracy(model, test),
        "parameters": sum(p.numel() for p in model.parameters()), "train_seconds": round(state["seconds"]),
        "seed": given.seed, **machine(),
    }  # fmt: skip
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, given.out)
    given.out.with_suffix(".vocabulary.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    given.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    run()
