"""A small reader of tokens, as a factory that an artifact can name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Reader(nn.Module):
    """Embedding → recurrent layers → linear, from the mean output, or from the last layer's last states (`last`)."""

    def __init__(self, kind: str = "LSTM", *, last: bool = False, batch_first: bool = True, **arguments: Any) -> None:
        super().__init__()
        self.last, self.batch_first, self.both = last, batch_first, arguments.get("bidirectional", False)
        self.lstm = kind == "LSTM"
        self.emb = nn.Embedding(30, 5, padding_idx=0)
        self.rnn = getattr(nn, kind)(5, 8, batch_first=batch_first, **arguments)
        self.fc = nn.Linear(16 if self.both else 8, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.emb(tokens)
        out, states = self.rnn(x if self.batch_first else x.transpose(0, 1))
        if not self.last:
            return self.fc(out.mean(1 if self.batch_first else 0))
        h = states[0] if self.lstm else states
        return self.fc(torch.cat([h[-2], h[-1]], -1) if self.both else h[-1])


def reader(**arguments: Any) -> nn.Module:
    """A `Reader`."""
    return Reader(**arguments)
