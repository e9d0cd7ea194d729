"""An option that cannot be: one line that says what was expected and what came."""

from __future__ import annotations

import pytest

from tests.end_to_end.bad_input.conftest import refused

OPTIONS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "target-word": (["--target", "half"], ("target", "expected", "half")),
    "target-kind": (["--target", "flops=0.5"], ("target", "flops")),
    "target-empty": (["--target", ""], ("target",)),
    "target-no-number": (["--target", "params=lots"], ("lots",)),
    "target-one": (["--target", "params=1"], ("params=1",)),
    "target-above": (["--target", "macs=1.5"], ("1.5",)),
    "target-below": (["--target", "units=-0.1"], ("-0.1",)),
    "target-nan": (["--target", "params=nan"], ("nan",)),
    "target-inf": (["--target", "params=inf"], ("inf",)),
    "target-percent": (["--target", "params=50%"], ("50%",)),
    "target-out-of-reach": (["--target", "params=0.999"], ("out of reach",)),
    "alpha-zero": (["--alpha", "0"], ("alpha", "0")),
    "alpha-one": (["--alpha", "1"], ("alpha", "1")),
    "alpha-negative": (["--alpha", "-0.05"], ("alpha", "-0.05")),
    "alpha-nan": (["--alpha", "nan"], ("alpha", "nan")),
    "alpha-text": (["--alpha", "five"], ("alpha", "five")),
    "vote": (["--vote", "majority"], ("vote", "majority")),
    "vote-score": (["--vote-score", "pixel"], ("vote-score", "pixel")),
    "correction": (["--correction", "bonferroni"], ("correction", "bonferroni")),
    "min-effect": (["--min-effect", "-1"], ("min-effect", "-1")),
    "min-effect-nan": (["--min-effect", "nan"], ("min-effect", "nan")),
    "xi-floor-zero": (["--xi-floor", "0"], ("xi-floor", "0")),
    "xi-floor-negative": (["--xi-floor", "-1"], ("xi-floor", "-1")),
    "min-effect-inf": (["--min-effect", "1e999"], ("min-effect", "inf")),
    "xi-floor-inf": (["--xi-floor", "inf"], ("xi-floor", "inf")),
    "model-arg-nan": (["--model-arg", "x=NaN"], ("model-arg x", "NaN")),
    "model-arg-too-large": (["--model-arg", 'x={"a": 1e999}'], ("model-arg x", "finite")),
    "model-arg-digits": (["--model-arg", f"x={'9' * 5000}"], ("model-arg x", "finite")),
    "cut-of-a-ranking": (["--method", "magnitude", "--cut", "compensated"], ("cut", "magnitude")),
    "effects-of-a-ranking": (["--method", "taylor", "--effects", "verdict"], ("effects", "taylor")),
    "correction-of-a-ranking": (["--method", "random", "--correction", "holm"], ("correction", "random")),
    "buffer-order-of-a-ranking": (["--method", "lamp", "--buffer-order", "abs"], ("buffer-order", "lamp")),
    "scope-of-a-test": (["--scope", "global"], ("scope", "cswap")),
    "xi-floor-nan": (["--xi-floor", "nan"], ("xi-floor", "nan")),
    "effects": (["--effects", "some"], ("effects", "some")),
    "effects-pooled": (["--effects", "verdict", "--vote", "pooled"], ("verdict", "pooled")),
    "effects-holm": (["--effects", "verdict", "--correction", "holm"], ("verdict", "holm")),
    "reference": (["--reference", "first"], ("reference", "first")),
    "granularity": (["--granularity", "layer"], ("granularity", "layer")),
    "granularity-zero": (["--granularity", "block:0"], ("granularity", "block:0")),
    "granularity-text": (["--granularity", "block:four"], ("granularity", "block:four")),
    "order": (["--order", "sorted"], ("order", "sorted")),
    "buffer-order": (["--buffer-order", "up"], ("buffer-order", "up")),
    "cut": (["--cut", "deep"], ("cut", "deep")),
    "scope": (["--scope", "stage"], ("scope", "stage")),
    "per": (["--per", "flop"], ("per", "flop")),
    "per-layer": (["--method", "magnitude", "--per", "params"], ("per", "global")),
    "norm": (["--norm", "l3"], ("norm", "l3")),
    "max-drop": (["--max-drop", "2"], ("max-drop", "2")),
    "max-drop-nan": (["--max-drop", "nan"], ("max-drop", "nan")),
    "method": (["--method", "magic"], ("method", "magic", "cswap")),
    "method-empty": (["--method", ""], ("method",)),
    "task": (["--task", "regression"], ("task", "regression")),
    "recover": (["--recover", "prayer"], ("recover", "prayer")),
    "recover-twice": (["--recover", "bn+bn"], ("recover", "bn")),
    "recover-none-and": (["--recover", "none+bn"], ("recover", "none")),
    "recover-per-class-alone": (["--recover-per-class", "8"], ("recover-per-class", "--recover")),
    "recover-per-class-one": (["--recover", "bn", "--recover-per-class", "1"], ("recover-per-class", "1")),
    "recover-per-class-many": (
        ["--recover", "bn", "--recover-per-class", "1000"],
        ("recover-per-class: class", "--recover-per-class asks for fewer", "1000", "10"),
    ),
    "per-class-zero": (["--per-class", "0"], ("per-class", "0")),
    "per-class-one": (["--per-class", "1"], ("1",)),
    "per-class-many": (["--per-class", "1000"], ("1000", "10")),
    "per-class-text": (["--per-class", "few"], ("per-class", "few")),
    "seed": (["--seed", "-1"], ("seed", "-1")),
    "seed-text": (["--seed", "x"], ("seed", "x")),
    "seed-huge": (["--seed", str(10**20), "--eval-samples", "5"], ("seed",)),
    "device": (["--device", "tpu"], ("device", "tpu")),
    "device-cuda": (["--device", "cuda:99"], ("device", "cuda:99")),
    "memory": (["--memory", "lots"], ("memory", "lots")),
    "memory-zero": (["--memory", "0"], ("memory", "0")),
    "memory-little": (["--memory", "1"], ("memory",)),
    "image-size-zero": (["--image-size", "0"], ("image-size", "0")),
    "image-size-huge": (["--image-size", "100000"], ("image-size", "100000")),
    "mean-text": (["--mean", "a,b,c"], ("mean", "a,b,c")),
    "mean-two": (["--mean", "0.5,0.5"], ("mean", "0.5,0.5")),
    "std-zero": (["--std", "0,0.5,0.5"], ("std", "0")),
    "std-nan": (["--std", "nan,1,1"], ("std", "finite", "nan")),
    "mean-inf": (["--mean", "inf,0,0"], ("mean", "inf")),
    "eval-samples": (["--eval-samples", "0"], ("eval-samples", "0")),
    "only": (["--only", "nosuch*"], ("nosuch*", "groups are")),
    "exclude-all": (["--exclude", "*"], ("exclude",)),
    "unknown-option": (["--prune-harder"], ("--prune-harder",)),
    "model-arg": (["--model-arg", "classes"], ("model-arg", "classes")),
    "model-arg-unknown": (["--model-arg", "depth=3"], ("depth",)),
    "model-arg-type": (["--model-arg", "classes=many"], ("factory",)),
    "calibration-split": (["--calibration-split", "nowhere"], ("nowhere",)),
    "eval-split": (["--eval-split", "nowhere"], ("nowhere",)),
    "norm-of-another-method": (["--norm", "l2"], ("norm", "magnitude", "cswap")),
    "swaps-of-another-method": (["--swaps"], ("swaps", "obs", "cswap")),
    "margins-of-another-method": (["--method", "obs", "--margins", "0.1"], ("margins", "joint", "obs")),
    "folds": (["--method", "joint", "--folds", "11"], ("folds", "from 1 to 10", "11")),
    "folds-of-too-few": (["--method", "joint", "--folds", "7"], ("folds", "at least 7 samples of class", "got 6")),
    "folds-of-another-method": (["--method", "obs", "--folds", "2"], ("folds", "joint", "obs")),
    "stages": (["--method", "joint", "--stages", "0.5,0.3"], ("stages", "ascending fractions", "0.5,0.3")),
    "stages-of-another-method": (["--method", "obs", "--stages", "0.3"], ("stages", "joint", "obs")),
    "price": (["--method", "joint", "--per", "macs", "--price", "cheap"], ("price", "change, outputs, loss", "cheap")),
    "price-of-another-method": (["--method", "obs", "--price", "loss"], ("price", "joint", "obs")),
    "price-of-no-cost": (
        ["--method", "joint", "--price", "loss"],
        ("price", "per params, macs or latency", "per unit"),
    ),
    "surrogate": (["--method", "joint", "--surrogate", "hessian"], ("surrogate", "obs, taylor, fisher", "hessian")),
    "surrogate-of-another-method": (["--method", "obs", "--surrogate", "fisher"], ("surrogate", "joint", "obs")),
    "swaps-of-another-surrogate": (
        ["--method", "joint", "--surrogate", "fisher", "--swaps"],
        ("swaps", "surrogate obs", "fisher"),
    ),
    "granularity-of-another-method": (["--method", "cbp", "--granularity", "block:4"], ("granularity", "cswap", "cbp")),
    "margin-alone": (["--margin", "0.1"], ("margin", "--certify")),
    "bound-alone": (["--bound", "t"], ("bound", "--certify")),
    "latency-batch-alone": (["--latency-batch", "4"], ("latency-batch", "latency=F", "per latency", "params=0.3")),
    "round-to-coarse": (["--round-to", "100"], ("out of reach", "multiple of 100")),
    "ignore-index": (["--ignore-index", "3"], ("ignore-index", "masks")),
    "tokenizer": (["--task", "text", "--tokenizer", "/nowhere"], ("tokenizer", "train.tsv")),
}


@pytest.mark.parametrize("case", list(OPTIONS))
def test_an_option(place, capsys, case):
    more, words = OPTIONS[case]
    refused(capsys, place, place.prune("out", *more), *words)


@pytest.mark.parametrize(("option", "value"), [("channels", "-3"), ("channels", "9999999999")])
def test_inputs_that_cannot_be(place, capsys, option, value):
    refused(capsys, place, ["support", "--model", f"{place.factory}:colours", f"--{option}", value], option)


@pytest.mark.parametrize("seeds", ["nan", "inf", "0,-1", "0.5"])
def test_seeds_of_a_comparison(place, capsys, seeds):
    arguments = place.prune("out")[1:]
    at = arguments.index("--target")
    del arguments[at : at + 2]
    refused(capsys, place, ["compare", *arguments, "--methods", "magnitude", "--seeds", seeds], "seeds")


@pytest.mark.parametrize("most", ["0", "-1"])
def test_rows_and_samples_that_are_none(place, capsys, most):
    art = str(place.root / "art")
    refused(capsys, place, ["explain", art, "--most", most], "most", "at least 1")
    refused(capsys, place, ["export", art, "--format", "pt2", "--samples", most, "--trust"], "samples", "at least 1")


@pytest.mark.parametrize("name", ["²", "٣", "-1", "99"])
def test_no_such_class(place, capsys, name):
    refused(capsys, place, ["explain", str(place.root / "art"), "--class", name], "class")
