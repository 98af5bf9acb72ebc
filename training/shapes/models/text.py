"""The shapes text encoder: a CLIP tokenizer of the world's words and a two-layer CLIP text model.

The encoder is trained before the teacher, to classify every attribute of a caption from the state
of its last token, and then frozen. A teacher learns much faster from embeddings that already
separate the words.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.loop import FitConfig, Slot, StepStats, fit
from training.shapes.world.scenes import SCENES, TEMPLATES, TRAIN_SCENES, WORDS
from turbo.networks.text import tokenize

LENGTH, WIDTH = 16, 96  # tokens, features
CONFIG = FitConfig(steps=400, learning_rate=2e-3, warmup=50, ema=0.99, checkpoint_every=200, seed=2)
BATCH = 128


def build_tokenizer() -> CLIPTokenizer:
    """Learn a byte-pair encoding in which every word of the world is one token.

    Unknown words are split into letters, as in CLIP. Id 0 is "!", the padding of OpenCLIP.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    captions = [scene.caption(t).replace(",", " ,") for scene in SCENES for t in TEMPLATES]
    learner.train_from_iterator(
        captions,
        trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", initial_alphabet=letters),
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    vocab = [*letters, *(letter + "</w>" for letter in letters)]
    vocab += [left + right for left, right in merges if left + right not in vocab]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocab))}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=LENGTH)


def build_text_model(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained text model."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            hidden_act="gelu",
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=0,
        )
    )


class AttributeClassifier(nn.Module):
    """The text model with one linear head per attribute on the state of the last token."""

    def __init__(self, text_model: CLIPTextModel) -> None:
        super().__init__()
        self.text_model = text_model
        self.heads = nn.ModuleDict(
            {name: nn.Linear(WIDTH, len(words)) for name, words in WORDS.items()}
        )

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        pooled = self.text_model(ids).pooler_output
        return {name: head(pooled) for name, head in self.heads.items()}


def train_text(
    text_model: CLIPTextModel, tokenizer: CLIPTokenizer, folder: Path
) -> Iterator[StepStats]:
    """Train in place on captions of the training scenes; yield statistics after every step."""
    classifier = AttributeClassifier(text_model)

    def draw_loss(slot: Slot) -> Tensor:
        rng = np.random.default_rng(slot.generator.initial_seed())
        scenes = [TRAIN_SCENES[i] for i in rng.integers(len(TRAIN_SCENES), size=BATCH)]
        captions = [scene.caption(TEMPLATES[rng.integers(len(TEMPLATES))]) for scene in scenes]
        device = text_model.device
        logits = classifier(tokenize(tokenizer, captions).to(device))
        losses = [
            cross_entropy(
                logits[name],
                torch.tensor([words.index(getattr(s, name)) for s in scenes], device=device),
            )
            for name, words in WORDS.items()
        ]
        return torch.stack(losses).sum()

    yield from fit(classifier, draw_loss, CONFIG, folder)
