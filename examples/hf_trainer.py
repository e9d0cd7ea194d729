"""A Hugging Face model trained by `Trainer`: prune it as it is, evaluate the smaller one with the same Trainer.

Needs: pip install 'cswap[demo,hf]' accelerate. Nothing is downloaded: the model is built from its config.
"""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import cswap
from cswap.demo import digits


def collate(batch):
    """(image, label) pairs as the model's arguments."""
    return {"pixel_values": torch.stack([x for x, _ in batch]), "labels": torch.stack([y for _, y in batch])}


def accuracy(predictions):
    """Fraction that is right."""
    return {"accuracy": float((np.argmax(predictions.predictions, 1) == predictions.label_ids).mean())}


def main() -> tuple[float, float]:
    """Accuracy of the whole and of the pruned network."""
    train, held_out = digits()
    config = ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=96, num_labels=10, hidden_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch, num_train_epochs=30, per_device_train_batch_size=64, learning_rate=1e-3, lr_scheduler_type="cosine", warmup_steps=50, report_to=[], use_cpu=True,
            save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=0, remove_unused_columns=False,
        )  # fmt: skip

        def trainer(net):
            return Trainer(
                net,
                arguments,
                data_collator=collate,
                train_dataset=train,
                eval_dataset=held_out,
                compute_metrics=accuracy,
            )

        whole = trainer(model)
        whole.train()
        before = whole.evaluate()["eval_accuracy"]
        model.eval().cpu()
        calibration = cswap.calibration_set(train, per_class=16)
        path = cswap.prune_path(model, calibration, target="params=0.1", effects="verdict")
        small = cswap.recover(path.apply(model, "params=0.1"), model, calibration, how="lstsq")
        assert isinstance(small, ViTForImageClassification)
        after = trainer(small).evaluate()["eval_accuracy"]
    print(f"accuracy {before:.3f} -> {after:.3f} with {path.ratio.params:.0%} of the parameters gone")
    return before, after


if __name__ == "__main__":
    main()
