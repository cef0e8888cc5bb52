"""A small LLaVA that reads drawn screens: how it is built, and what it is trained on.

A SigLIP-shaped tower sees one cell of a screen a patch, and a Llama-shaped language model has one token a word of the
questions and a character of labels and values. Both are small, and nothing here is pretrained. Screens are
`data/drawn_screens.py`'s subject, questions `data/screen_questions.py`'s, the training itself `train_reader.py`'s.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from fvlm_lib.data.drawn_screens import (
    BLANK,
    CELL,
    GRID,
    LABELS,
    OFF,
    ON,
    SIZE,
    VALUE_CHARACTERS,
    Screen,
    contents,
    draw,
)
from fvlm_lib.data.question_trees import QuestionTree, batch_trees
from fvlm_lib.data.screen_questions import KINDS, Question, all_questions, right_answer

IMAGE, USER, ASSISTANT, END, BLANK_CELL = "<image>", "<user>", "<assistant>", "<end>", "<blank>"
SPECIAL = ("<pad>", "<unk>", END, USER, ASSISTANT, IMAGE, BLANK_CELL)
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WIDTH = 128
CELL_TOKENS = {BLANK: BLANK_CELL, ON: "on", OFF: "off"}
"""The tokens that a cell's image token is to be like, where it is no character. A box is then read as a value is."""

SORTS = (*KINDS, "seen", "rest")
"""Of targets: the result of each kind of question, the values that a comparison names before it, and all else."""

MOST_COMPARED = 4  # questions of a screen in training; there is one for each two numbers


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word in small letters, and one any other character; spaces are none."""
    kinds = [Question("read", ("A",)), Question("state", ("A",)), Question("compare", ("A", "C")), Question("count")]
    words = [word for question in kinds for word in re.findall(r"[a-z]+|[?,:]", question.text)]
    vocabulary = dict.fromkeys([*SPECIAL, *words, "on", "off", ":", *LABELS, *VALUE_CHARACTERS])
    tokens = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, "<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+|[^\sa-z]"), "removed", invert=True)
    tokens.decoder = decoders.Sequence([decoders.Replace(",", ", "), decoders.Replace(":", ": "), decoders.Fuse()])
    tokens.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token=END,
        extra_special_tokens=[IMAGE],
        model_input_names=["input_ids", "attention_mask"],
    )


def make_reader(tokenizer: PreTrainedTokenizerFast) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Untrained, with its processor. Positions of patches start as 2-D sinusoids, embeddings of tokens at unit size:
    where what layers add outweighs them, values are guessed for long."""
    vision = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE[0],
        patch_size=CELL,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.08,  # about 1 / sqrt(width)
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    image_token_id: Any = tokenizer.convert_tokens_to_ids(IMAGE)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        image_seq_length=GRID[0] * GRID[1],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    language_model: Any = model.model.language_model
    with torch.no_grad():
        language_model.embed_tokens.weight.normal_()
        for layer in language_model.layers:
            layer.self_attn.o_proj.weight /= (2 * len(language_model.layers)) ** 0.5
            layer.mlp.down_proj.weight /= (2 * len(language_model.layers)) ** 0.5
        positions: Any = model.model.vision_tower.embeddings.position_embedding
        positions.weight.copy_(sinusoids())
        for linear in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
    images = CLIPImageProcessor(
        size={"height": SIZE[0], "width": SIZE[1]},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=CELL,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor


def sinusoids() -> Tensor:
    """(patches, WIDTH): sines and cosines of the row in one half of the width, of the column in the other."""
    rates = 2 * torch.pi / 2 ** torch.linspace(1, 6, WIDTH // 4)  # wavelengths from 2 to 64 cells
    rows, columns = torch.meshgrid(torch.arange(GRID[0]), torch.arange(GRID[1]), indexing="ij")
    angles = [at.flatten()[:, None] * rates for at in (rows, columns)]
    return 0.5 * torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def pixel_values(frames: list[np.ndarray]) -> Tensor:
    """Frames of `draw`, (B, 3, height, width) as the reader's processor gives them."""
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 127.5 - 1


@dataclass(frozen=True)
class ReaderBatch:
    """Screens with questions, as tensors. pixel_values: (B, 3, height, width). cells: (B, patches), the token that each
    image token is to be like; both None where the characters stand in the trees themselves. trees: of `batch_trees`.
    asked: each question, with its screen's place in the batch and where in its sequence the answer's tokens are to be
    said."""

    pixel_values: Tensor | None
    cells: Tensor | None
    trees: dict[str, Tensor]
    asked: list[tuple[Question, int, list[int]]]


def draw_batch(
    screens: list[Screen],
    tokenizer: PreTrainedTokenizerFast,
    rng: np.random.Generator,
    spelled: bool = False,
    blanks: bool = True,
) -> ReaderBatch:
    """Every question about each screen, but of comparisons at most `MOST_COMPARED`.

    spelled: in place of the image's tokens, those of the cells' characters. blanks: among these also blank cells;
    without them, sequences are shorter, and to look up in them is easier to learn.
    """
    ids = tokenizer.get_vocab()
    trees, cells, asked = [], [], []
    for number, screen in enumerate(screens):
        seen = [ids[CELL_TOKENS.get(content, content)] for content in itertools.chain(*contents(screen))]
        places = [i for i, token in enumerate(seen) if blanks or not spelled or token != ids[BLANK_CELL]]
        image = [seen[i] if spelled else ids[IMAGE] for i in places]
        tree = QuestionTree([ids[USER], *image], [0, *(i + 1 for i in places)], 1 + len(seen))
        for question in _asked_of(screen, rng):
            answer = right_answer(question, screen)
            assert answer is not None
            words, said = tokenizer([question.text, answer])["input_ids"]
            before = ["seen" if question.kind == "compare" else question.kind] * (len(said) - 1)
            where = tree.add(
                [*words, ids[ASSISTANT], *said, ids[END]],
                [""] * (len(words) + 1) + [*before, question.kind, "rest"],
            )
            asked.append((question, number, where))
        trees.append(tree)
        cells.append(seen)
    frames = None if spelled else pixel_values([draw(screen) for screen in screens])
    return ReaderBatch(frames, None if spelled else torch.tensor(cells), batch_trees(trees, SORTS), asked)


def _asked_of(screen: Screen, rng: np.random.Generator) -> list[Question]:
    questions = all_questions(screen)
    compared = [question for question in questions if question.kind == "compare"]
    chosen = [compared[i] for i in rng.permutation(len(compared))[:MOST_COMPARED]]
    return [*(question for question in questions if question.kind != "compare"), *chosen]


def image_tokens(model: LlavaForConditionalGeneration, frames: Tensor) -> tuple[Tensor, Tensor]:
    """What the language model gets of frames (B, 3, height, width): (B, patches, D); and as logits which of its own
    tokens each is like, (B, patches, tokens)."""
    seen = model.model.vision_tower(frames, output_hidden_states=True).hidden_states[-1]
    image: Any = model.model.multi_modal_projector(seen)
    table: Any = model.model.language_model.embed_tokens.weight
    return image, image @ table.detach().T * WIDTH**-0.5  # the tower learns the tokens, not they the tower


def next_tokens(model: LlavaForConditionalGeneration, image: Tensor | None, trees: dict[str, Tensor]) -> Tensor:
    """What is said next behind every token of the trees, as logits (B, T, tokens)."""
    language_model: Any = model.model.language_model
    embedded = language_model.embed_tokens(trees["input_ids"])
    if image is not None:
        embedded = torch.cat([embedded[:, :1], image, embedded[:, 1 + image.shape[1] :]], dim=1)  # (B, T, D)
    hidden = language_model(
        inputs_embeds=embedded,
        position_ids=trees["position_ids"],
        attention_mask=trees["attention_mask"],
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden)


def losses(
    model: LlavaForConditionalGeneration, batch: ReaderBatch, cells_alone: bool = False
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """(loss in nats a token, share of right tokens) by sort of target; of what the image tokens are like as "cells",
    which can be had alone: with the squared distance to the embedding, so that the language model gets what it
    knows."""
    image, found, right = None, {}, {}
    if batch.pixel_values is not None and batch.cells is not None:
        image, looks_like = image_tokens(model, batch.pixel_values)
        table: Any = model.model.language_model.embed_tokens.weight
        found["cells"] = F.cross_entropy(looks_like.flatten(0, 1), batch.cells.flatten())
        found["cells"] = found["cells"] + 4 * F.mse_loss(image, table.detach()[batch.cells])
        right["cells"] = float((looks_like.argmax(-1) == batch.cells).float().mean())
    if cells_alone:
        return found, right
    at = batch.trees["sort"] >= 0
    sort, target, logits = (
        batch.trees["sort"][at],
        batch.trees["target"][at],
        next_tokens(model, image, batch.trees)[at],
    )
    each, hits = F.cross_entropy(logits, target, reduction="none"), (logits.argmax(-1) == target).float()
    for number, name in enumerate(SORTS):
        if (these := sort == number).any():
            found[name], right[name] = each[these].mean(), float(hits[these].mean())
    return found, right


@torch.no_grad()
def answered_right(model: LlavaForConditionalGeneration, batch: ReaderBatch) -> list[tuple[Question, bool]]:
    """Each question with whether the model's greedy answer is the right one, word for word."""
    image = None if batch.pixel_values is None else image_tokens(model, batch.pixel_values)[0]
    logits = next_tokens(model, image, batch.trees)
    hits = logits.argmax(-1) == batch.trees["target"]  # greedy words are the right ones up to the first that is not
    return [(question, bool(hits[row, where].all())) for question, row, where in batch.asked]
