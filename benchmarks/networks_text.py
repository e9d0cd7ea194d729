"""A recurrent reader of sentences, its vocabulary and its data, as factories for `--model` and `--data`.

Inputs: int64 (N, L) word numbers, 0 where a sentence has ended, 1 for a word that is not in the vocabulary. The folder with
train.tsv, dev.tsv and test.tsv (sentence TAB label) is named by the environment variable CSWAP_SST2, and the vocabulary
(one word a line, from number 2) by CSWAP_VOCABULARY.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

LENGTH = 48
WORDS = 7000


class LstmReader(nn.Module):
    """Embedding → two layers of LSTM in both directions → mean over the sentence's words → linear."""

    def __init__(
        self, words: int = WORDS, width: int = 64, hidden: int = 64, layers: int = 2, classes: int = 2
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=0)
        self.dropout = nn.Dropout(0.5)
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True, bidirectional=True, dropout=0.3)
        self.fc = nn.Linear(2 * hidden, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        there = (tokens != 0).unsqueeze(-1).to(self.fc.weight.dtype)
        read, _ = self.lstm(self.dropout(self.embedding(tokens)))
        mean = (read * there).sum(1) / there.sum(1).clamp(min=1.0)
        logits: torch.Tensor = self.fc(self.dropout(mean))
        return logits


def lstm_reader() -> nn.Module:
    """581,506 … parameters, most of them the embedding's; see the report beside the weights."""
    return LstmReader()


def sentences(file: Path) -> tuple[list[list[str]], list[int]]:
    """Words and label of every line."""
    pairs = [line.rsplit("\t", 1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [words.split() for words, _ in pairs], [int(label) for _, label in pairs]


def vocabulary_of(texts: list[list[str]]) -> list[str]:
    """The commonest words, ties in alphabetical order."""
    counts = Counter(word for words in texts for word in words)
    return sorted(counts, key=lambda w: (-counts[w], w))[: WORDS - 2]


def numbers(texts: list[list[str]], vocabulary: list[str]) -> torch.Tensor:
    """(N, L) int64."""
    number = {word: i + 2 for i, word in enumerate(vocabulary)}
    table = torch.zeros(len(texts), LENGTH, dtype=torch.int64)
    for row, words in zip(table, texts, strict=True):
        found = [number.get(w, 1) for w in words[:LENGTH]]
        row[: len(found)] = torch.tensor(found)
    return table


def split(folder: Path, name: str, vocabulary: list[str]) -> TensorDataset:
    """One split as (tokens, label)."""
    texts, labels = sentences(folder / f"{name}.tsv")
    return TensorDataset(numbers(texts, vocabulary), torch.tensor(labels))


def sst2() -> tuple[TensorDataset, TensorDataset]:
    """The train and test splits."""
    folder = Path(os.environ["CSWAP_SST2"])
    vocabulary = Path(os.environ["CSWAP_VOCABULARY"]).read_text(encoding="utf-8").split("\n")
    return split(folder, "train", vocabulary), split(folder, "test", vocabulary)
