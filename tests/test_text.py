"""Text: tokens as one tensor, TSV data, Hugging Face models, heads of a BERT, gated MLPs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import cswap
from cswap.causal.compensation import CompensatedPlainEngine
from cswap.causal.cut import PlainEngine
from cswap.causal.replay import ReplayEngine
from cswap.data.models import ModelSpec
from cswap.data.text import open_text, trimmed
from cswap.errors import DataError, ModelError
from cswap.structure.check import VISIBLE, agreement, random_half, randomise_
from cswap.structure.discover import count_params, discover, macs_of
from cswap.structure.surgery import prepared_copy, pruned_copy
from cswap.tasks import Text
from tests.attention_nets import crossed, ledger_of, loaded_elsewhere, saved
from tests.recoveries import pruned_to

SMALL = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
         "max_position_embeddings": 32, "num_labels": 2, "pad_token_id": 0}  # fmt: skip


def _bert(kind: str = "BertForSequenceClassification") -> nn.Module:
    pytest.importorskip("transformers", reason="transformers is not installed")
    return randomise_(ModelSpec.parse(f"hf:{kind}", SMALL).build(), 1).eval()


def _tokens(n: int = 6, length: int = 9) -> torch.Tensor:
    g = torch.Generator().manual_seed(2)
    tokens = torch.randint(4, 40, (n, 2, length), generator=g)
    tokens[:, 1] = (torch.arange(length) < torch.randint(3, length + 1, (n, 1), generator=g)).long()
    tokens[:, 0] *= tokens[:, 1]
    return tokens


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "RobertaForSequenceClassification", "DistilBertForSequenceClassification"])  # fmt: skip
def test_packed_tokens_give_the_model_s_own_logits(kind):
    model, tokens = _bert(kind), _tokens()
    own = type(model).__mro__[2]
    fresh = own(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = fresh(input_ids=tokens[:, 0], attention_mask=tokens[:, 1]).logits
        torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5)
        padded = F.pad(tokens, (0, 3))
        torch.testing.assert_close(model(padded), expected, atol=1e-5, rtol=1e-5)
        hidden = tokens.clone()
        hidden[:, 0][tokens[:, 1] == 0] = 7  # a masked token is not read
        torch.testing.assert_close(model(hidden), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "DistilBertForSequenceClassification"])
def test_masked_equals_pruned_in_a_text_encoder(kind):
    model, tokens = _bert(kind), _tokens()
    structure = discover(model, tokens)
    assert len(structure.replaced) == 2
    assert sum("#heads" in g.name for g in structure) == 2
    assert not any("attention" in o.reason for o in structure.left_out)
    removed = random_half(structure, 3)
    result = agreement(model, structure, removed, tokens)
    assert result.ok, str(result)
    assert result.moved >= VISIBLE * result.allowed
    small, ledger = pruned_copy(model, structure, removed), ledger_of(structure, removed)
    assert (ledger.params, round(ledger.macs)) == (count_params(small), macs_of(small, tokens)[0])
    assert not crossed(model, structure, removed, tokens) <= result.allowed


class _Placed(nn.Module):
    """What many write themselves: positions are made in the pass, as long as the sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(64, 16), nn.Embedding(32, 16)
        self.hidden, self.head = nn.Linear(16, 24), nn.Linear(24, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens, at = x[:, 0], torch.arange(x.shape[2], device=x.device)
        seen = torch.ones((x.shape[0], x.shape[2], 1), dtype=self.word.weight.dtype, device=x.device)
        return self.head((self.hidden(self.word(tokens) + self.place(at)).relu() * seen).mean(1))


@pytest.mark.parametrize("make", [_bert, _Placed])
def test_both_engines_agree_on_text(make):
    model, tokens = make().double(), _tokens(24)
    calibration = cswap.calibration_set(TensorDataset(tokens, torch.arange(24) % 2), 12)
    structure = discover(model, tokens)
    fast = ReplayEngine(model, structure, calibration, Text())
    plain = PlainEngine(model, structure, calibration, Text())
    for group in structure:
        fast.enter(group)
        cuts = [[0], [1], [0, 1]]
        for a, b in zip(fast.cut(group, cuts), plain.cut(group, cuts), strict=True):
            np.testing.assert_allclose(a.sigma, b.sigma, atol=1e-9)
        for engine in (fast, plain):
            engine.remove(group.name, [0])
    np.testing.assert_allclose(fast.scores().sigma, plain.scores().sigma, atol=1e-9)
    assert not fast.notes


def test_a_text_model_loads_in_a_new_process_to_the_same_logits(tmp_path):
    model, tokens = _bert(), _tokens()
    small = saved(tmp_path, model, discover(model, tokens), "hf:BertForSequenceClassification", SMALL)
    with torch.no_grad():
        assert torch.equal(loaded_elsewhere(tmp_path, tokens), small(tokens))
        assert (small(tokens) - model(tokens)).abs().max() > 1e-2


# Hugging Face folders


def _folder(tmp_path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    folder = tmp_path / "model"
    _bert().save_pretrained(folder)
    words = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "good", "bad", "very", "film", "a", "not"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_a_folder_with_weights_is_read_and_what_is_missing_is_said(tmp_path):
    folder = _folder(tmp_path)
    spec = ModelSpec.parse(f"hf:{folder}")
    assert spec.trusted
    tokens = _tokens()
    with torch.no_grad():
        torch.testing.assert_close(spec.build()(tokens), _bert()(tokens))
    with pytest.warns(cswap.errors.CswapWarning, match="no weights for 2 .* random"):
        ModelSpec.parse(f"hf:{folder}", {"architecture": "BertForQuestionAnswering"}).build()
    with pytest.raises(ModelError, match="of the shapes its configuration says"):
        ModelSpec.parse(f"hf:{folder}", {"num_labels": 3}).build()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights"):
        spec.build()
    (folder / "pytorch_model.bin").unlink()
    assert isinstance(spec.build(), nn.Module)  # the architecture alone
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Nosuch"]}))
    with pytest.raises(ModelError, match="'Nosuch' is none of"):
        spec.build()


@pytest.mark.parametrize(("name", "arguments", "match"), [
    ("./nosuch", {}, "found none there"), ("BertForSequenceClassification", {"trust_remote_code": True}, "could bring code"),
    ("WhisperForAudioClassification", {}, "expected a model of images or text"),
])  # fmt: skip
def test_a_hugging_face_model_that_cannot_be_had(name, arguments, match):
    pytest.importorskip("transformers", reason="transformers is not installed")
    with pytest.raises(ModelError, match=match):
        ModelSpec.parse(f"hf:{name}", arguments).build()


# data


def test_tsv_data_becomes_tokens_with_classes(tmp_path):
    folder = _folder(tmp_path)
    (tmp_path / "train.tsv").write_text("a good film\t1\nbad\t0\nnot a very good film\t1\n")
    (tmp_path / "dev.tsv").write_text("very bad\t0\n")
    train, held_out = open_text(tmp_path, folder)
    assert train.classes == held_out.classes == ["0", "1"]
    assert train.targets == [1, 0, 1]
    assert train.tokens.shape == (3, 2, 5)
    assert train.tokens[1].tolist() == [[3, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert held_out.tokens.tolist() == [[[4, 3], [1, 1]]]
    short, _ = open_text(tmp_path, folder / "tokenizer.json", max_length=2)
    assert short.tokens[2].tolist() == [[7, 6], [1, 1]]


def test_text_data_that_is_wrong_says_how(tmp_path):
    folder = _folder(tmp_path)
    (tmp_path / "train.tsv").write_text("good\t1\nno label\n")
    (tmp_path / "test.tsv").write_text("\n")
    for tokenizer, match in (
        (None, "needs a tokenizer"),
        (tmp_path, "found none"),
        (folder / "config.json", "tokenizer"),
    ):
        with pytest.raises(DataError, match=match):
            open_text(tmp_path, tokenizer)
    with pytest.raises(DataError, match=r"line 2: expected `sentence TAB label`, got 'no label'"):
        open_text(tmp_path, folder)
    (tmp_path / "train.tsv").write_text("good\t1\n")
    with pytest.raises(DataError, match="got none"):
        open_text(tmp_path, folder)
    with pytest.raises(DataError, match=r"no dev2\.tsv"):
        open_text(tmp_path, folder, eval_split="dev2")


def test_padding_that_every_sentence_has_is_trimmed():
    tokens = F.pad(_tokens(), (0, 5))
    used = int(tokens[:, 1].sum(1).max())
    assert torch.equal(trimmed(tokens), tokens[..., :used])
    image = torch.zeros(3, 2, 8)
    assert trimmed(image) is image
    calibration = cswap.calibration_set(TensorDataset(tokens, torch.arange(6) % 2), 3)
    assert calibration.inputs(0, 2).shape == (2, 2, used)


def test_prune_a_text_model_from_the_command_s_pipeline(tmp_path):
    """Train, prune, apply and evaluate: the class is whether 'good' is in the sentence."""
    from cswap.pipeline import DataChoice, Machine, PruneJob, Source, apply, evaluate, prune
    from cswap.types import Target

    folder, g = _folder(tmp_path), torch.Generator().manual_seed(0)
    words = ["very", "film", "a", "not", "bad"]
    for name, count in (("train", 200), ("test", 60)):
        lines = []
        for i in range(count):
            picked = [words[int(j)] for j in torch.randint(0, 5, (4,), generator=g)]
            if i % 2:
                picked[int(torch.randint(0, 4, (), generator=g))] = "good"
            lines.append(f"{' '.join(picked)}\t{i % 2}\n")
        (tmp_path / f"{name}.tsv").write_text("".join(lines))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ModelSpec.parse("hf:BertForSequenceClassification", SMALL).build()
        train, _ = open_text(tmp_path, folder)
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(60):
            optimiser.zero_grad()
            F.cross_entropy(model(train.tokens), torch.tensor(train.targets)).backward()
            optimiser.step()
    model.save_pretrained(folder)
    source, data = Source(ModelSpec.parse(f"hf:{folder}")), DataChoice(str(tmp_path), per_class=16)
    job = PruneJob(source, data, tmp_path / "out", Target.parse("units=0.4"), task="text", exclude=("*#v*", "*#qk*"),
                   machine=Machine("cpu"))  # fmt: skip
    summary = prune(job)
    assert summary["baseline"]["quality"]["accuracy"] > 0.95
    assert summary["ratio"]["units"] >= 0.4
    assert summary["engine"].startswith("replay")
    assert apply(tmp_path / "out", Target.parse("units=0.2"), tmp_path / "less")["ratio"]["units"] >= 0.2
    measured = evaluate(tmp_path / "out")
    assert measured["pruned"]["quality"] == summary["pruned"]["quality"]
    assert measured["pruned"]["macs"] < measured["baseline"]["macs"]


# gated MLPs


class _Gated(nn.Module):
    """SwiGLU, with gate and up apart or in one layer."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.stem = fused, nn.Linear(6, 8)
        if fused:
            self.gate_up = nn.Linear(8, 24)
        else:
            self.gate, self.up = nn.Linear(8, 12), nn.Linear(8, 12)
        self.norm, self.down, self.fc = nn.LayerNorm(8), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        n = self.norm(h)
        gate, up = self.gate_up(n).chunk(2, -1) if self.fused else (self.gate(n), self.up(n))
        return self.fc((h + self.down(F.silu(gate) * up)).mean(1))


@pytest.mark.parametrize("fused", [False, True])
def test_gate_and_up_of_a_gated_mlp_are_one_unit(fused):
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    model = randomise_(_Gated(fused), 3).eval()
    structure = discover(model, x)
    group = next(g for g in structure if {s.module for s in g.consumers} == {"down"})
    assert group.size == 12
    assert {s.module for s in group.producers} == ({"gate_up"} if fused else {"gate", "up"})
    removed = {group.name: np.array([0, 3, 7])}
    result = agreement(model, structure, removed, x)
    assert result.ok
    assert result.moved >= VISIBLE * result.allowed
    rows = pruned_copy(model, structure, removed)
    left = [n for n in range(12) if n not in (0, 3, 7)]
    kept = rows.gate_up.weight if fused else torch.cat([rows.gate.weight, rows.up.weight])
    whole = model.gate_up.weight if fused else torch.cat([model.gate.weight, model.up.weight])
    assert torch.equal(kept, whole[[*left, *(n + 12 for n in left)]])


def test_the_mlp_of_a_llama_block():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = transformers.LlamaConfig(hidden_size=8, intermediate_size=12, num_attention_heads=2)
            self.stem, self.norm, self.mlp, self.fc = (
                nn.Linear(6, 8),
                LlamaRMSNorm(8),
                LlamaMLP(config),
                nn.Linear(8, 3),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.stem(x)
            return self.fc((h + self.mlp(self.norm(h))).mean(1))

    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    model = randomise_(Block(), 3).eval()
    structure = discover(model, x)
    group = next(g for g in structure if {s.module for s in g.consumers} == {"mlp.down_proj"})
    assert {s.module for s in group.producers} == {"mlp.gate_proj", "mlp.up_proj"}
    assert agreement(model, structure, random_half(structure, 1), x).ok
    assert prepared_copy(model, structure) is not model


def test_the_support_report_of_a_text_model_names_its_heads():
    pytest.importorskip("transformers", reason="transformers is not installed")
    from cswap.pipeline import Source
    from cswap.report.support import support_report

    report = support_report(Source(ModelSpec.parse("hf:BertForSequenceClassification", SMALL)))
    assert report["input"] == [2, 16]
    heads = [g for g in report["groups"] if g["group"].endswith("#heads")]
    assert [g["consumers"] for g in heads] == [[f"bert.encoder.layer.{i}.attention.output.dense"] for i in (1, 0)]


def test_a_part_of_the_text_keeps_the_width_of_the_whole():
    tokens = _tokens()
    calibration = cswap.calibration_set(TensorDataset(tokens, torch.arange(6) % 2), 3)
    whole, lengths = calibration.inputs(0, 6), calibration.inputs(0, 6)[:, 1].sum(1)
    shortest = np.array([int(lengths.argmin())])
    assert lengths.min() < whole.shape[2]
    assert torch.equal(calibration.part(shortest).inputs(0, 1), whole[shortest])


@pytest.mark.parametrize("how", ["bias", "merge", "lstsq"])
def test_what_lies_under_the_padding_changes_no_recovery(how):
    """Tokens behind a sentence's end are read by nothing, so they are no rows to fit."""
    from cswap.recovery import recovered

    model, tokens = _bert(), _tokens(24)
    structure = discover(model, tokens)
    removed = {name: units.tolist() for name, units in random_half(structure, 3).items()}
    small, _ = pruned_to(
        model, structure, cswap.calibration_set(TensorDataset(tokens, torch.arange(24) % 2), 12), removed
    )
    hidden = tokens.clone()
    hidden[:, 0][tokens[:, 1] == 0] = 7
    found = []
    for inputs in (tokens, hidden):
        calibration = cswap.calibration_set(TensorDataset(inputs, torch.arange(24) % 2), 12)
        made = recovered(small, model, calibration, how, task=Text(), structure=structure)
        found.append(made.raw.state_dict())
        assert any(not torch.equal(v, small.state_dict()[k]) for k, v in found[-1].items())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-4, rtol=1e-3, msg=name)


def test_a_pruned_module_whose_heads_cannot_be_matched_is_refused():
    from cswap.recovery import recovered

    model, tokens = _bert(), _tokens(24)
    structure = discover(model, tokens).select(("*#heads",))
    small = pruned_copy(model, structure, random_half(structure, 3))
    calibration = cswap.calibration_set(TensorDataset(tokens, torch.arange(24) % 2), 12)
    with pytest.raises(
        cswap.errors.InputError, match=r"#heads shrank and no bias or norm tells its units apart; .*path.apply"
    ):
        recovered(small, model, calibration, "lstsq", task=Text(), structure=structure)


class _Convolved(nn.Module):
    """Tokens (N, 2, L) → logits, by convolutions along the sentence of as many channels as it has places."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.e, self.a = nn.Embedding(40, 6), nn.Conv1d(6, places + 3, 3, padding=1)
        self.b, self.c, self.fc = nn.Conv1d(places + 3, places, 1), nn.Conv1d(places, 5, 3, padding=1), nn.Linear(5, 2)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(self.e(t[:, 0]).transpose(1, 2)))
        return self.fc(torch.relu(self.c(torch.relu(self.b(x)))).mean(2))


def test_channels_as_many_as_places_are_no_places():
    from cswap.recovery import recovered

    tokens = _tokens(24)
    calibration = cswap.calibration_set(TensorDataset(tokens, torch.arange(24) % 2), 12)
    x = calibration.inputs(0, 24)
    assert not x[:, 1].all()
    net = randomise_(_Convolved(x.shape[2]), 1).eval()
    structure = discover(net, x[:2])
    small, _ = pruned_to(net, structure, calibration, {"b": [0, 2]})
    with torch.no_grad():
        read = torch.relu(net.b(torch.relu(net.a(net.e(x[:, 0]).transpose(1, 2)))))
        only = torch.zeros_like(net.c.weight)
        only[:, [0, 2]] = net.c.weight[:, [0, 2]]
        expected = net.c.bias + F.conv1d(read, only, padding=1).mean((0, 2))
    torch.testing.assert_close(recovered(small, net, calibration, "bias").raw.c.bias, expected)
    for how in ("merge", "lstsq"):
        assert not torch.equal(recovered(small, net, calibration, how).raw.c.weight, small.c.weight)
    engine = CompensatedPlainEngine(net, structure, calibration, Text())
    engine.enter(structure["b"])
    assert ("b", "c") in engine.compensation.inverses
