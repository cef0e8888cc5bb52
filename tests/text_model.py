"""Trains checkpoints/text-screens: a tiny language model that answers about screens of `name: value` lines.

    .venv/bin/python tests/text_model.py --out checkpoints/text-screens

A Llama of 4 layers and 0.66 million parameters with one token a word, trained on the screens of
`fvlm_lib.data.text_screens`. A chat goes through the tokenizer's template, as a real chat model's does:

    tokenizer.apply_chat_template(chat_of(lines, question), continue_final_message=True)

which is `<user>`, the screen, an empty line, the question, `<assistant>`, the lead of the answer. Spaces are no tokens,
`name:` is one. From the user's message alone the model says the lead as well.

A training screen is asked many questions at once: what they have in common is read once, each goes on from there at its
own positions and sees nothing of the others (a mask of ancestors in a tree of tokens), so the loss is that of separate
prompts. Screens start with 3 lines and grow while values are found in 9 of 10; counts and comparisons are asked from 16
lines on. Embeddings start at unit size: where the other layers' outputs outweigh them, values are guessed for long.
Held-out screens are those of seed 0, which benchmarks use; training draws its own.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fvlm_lib.data.question_trees import QuestionTree, batch_trees
from fvlm_lib.data.text_screens import (
    KINDS,
    NAMES,
    WORDS,
    Question,
    ask_count,
    ask_larger,
    ask_value,
    chat_of,
    draw_values,
    lines_of,
    plant_count,
    text_screen,
)

TRAIN_SEED = 1_000_000
MIN_TRAINED_LINES, ALL_SORTS_LINES, MAX_TRAINED_LINES = 3, 16, 44
TOKENS_A_STEP, TOKENS_A_LATE_STEP = 1000, 3000  # until screens have the most lines, and then
QUESTIONS = {"value": 20, "count": 6, "compare": 8}  # of a screen, at most
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, number, line end or mark; `name:` is one, so a line is three."""
    asked = (ask_value(NAMES[0]), ask_count(WORDS[0]), ask_larger(NAMES[0], NAMES[1]))
    pattern = r"\n|[?.,]|[^\s?.,]+"
    said = [word for question in asked for word in re.findall(pattern, f"{question.text} {question.lead}")]
    numbers = [str(number) for number in range(100)]
    special = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>"]
    vocabulary = dict.fromkeys([*special, "\n", *said, *NAMES, *(f"{name}:" for name in NAMES), *WORDS, *numbers])
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    words.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Untrained; what a layer adds starts smaller than the embeddings that it is added to."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            initializer_range=0.08,  # about 1 / sqrt(width)
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_()
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight /= (2 * len(model.model.layers)) ** 0.5
            layer.mlp.down_proj.weight /= (2 * len(model.model.layers)) ** 0.5
    return model


def draw_questions(rng: np.random.Generator, lines: int) -> tuple[list[str], list[tuple[str, Question, str]]]:
    """A screen, and questions about it: (sort, question, answer)."""
    values = draw_values(rng, lines)
    planted = plant_count(rng, values) if rng.random() < 0.5 else WORDS[int(rng.integers(len(WORDS)))]
    names = list(values)
    found = [("value", ask_value(n), values[n]) for n in rng.permutation(names)[: QUESTIONS["value"]].tolist()]
    words = [planted, *rng.permutation([word for word in WORDS if word != planted]).tolist()][: QUESTIONS["count"]]
    found += [("count", ask_count(word), str([*values.values()].count(word))) for word in words]
    having = [name for name in names if values[name].isdigit()]
    for _ in range(QUESTIONS["compare"] if len(having) > 1 else 0):
        one, other = rng.permutation(having)[:2].tolist()
        if one[0] != other[0] and values[one] != values[other]:
            larger = one if int(values[one]) > int(values[other]) else other
            found.append(("compare", ask_larger(one, other), larger))
    return list(lines_of(values)), found


SORTS = ("value", "count", "compare", "rest")


def draw_batch(
    rng: np.random.Generator, tokenizer: PreTrainedTokenizerFast, lines: int, sorts: Sequence[str], tokens: int
) -> dict[str, Tensor]:
    """Trees of screens of `lines` lines, as tensors (B, T), at most `tokens` of them if B > 1; `sort` is -1 where there
    is no target."""
    trees: list[QuestionTree] = []
    while not trees or (len(trees) + 1) * max(len(tree.ids) for tree in trees) <= tokens:
        screen, questions = draw_questions(rng, lines)
        questions = [question for question in questions if question[0] in sorts]
        trunk = tokenizer("<user>" + "\n".join(screen) + "\n\n")["input_ids"]
        texts = [part for _, q, value in questions for part in (q.text, f"<assistant>{q.lead}", f"{value}<end>")]
        parts = tokenizer(texts)["input_ids"]
        tree = QuestionTree(trunk)
        for i, (sort, _, _) in enumerate(questions):
            asked, lead, answer = parts[3 * i : 3 * i + 3]
            targets = [""] * (len(asked) + 1) + ["rest"] * (len(lead) - 1) + [sort, "rest"]
            tree.add([*asked, *lead, *answer], targets)
        trees.append(tree)
    return batch_trees(trees, SORTS)


def losses(model: LlamaForCausalLM, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """(loss, share of right answers by sort): the mean over each sort of target, values first."""
    sort, target = batch["sort"], batch["target"]
    at = sort >= 0
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask")}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[at]
    logits = model.lm_head(hidden)
    each = functional.cross_entropy(logits, target[at], reduction="none")
    right = (logits.argmax(-1) == target[at]).float()
    total, shares = torch.zeros(()), {}
    for number, (name, weight) in enumerate(zip(SORTS, (1.0, 0.5, 0.5, 0.2), strict=True)):
        these = sort[at] == number
        if these.any():
            total = total + weight * each[these].mean()
            shares[name] = float(right[these].mean())
    return total, shares


@torch.no_grad()
def accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, lines: int, count: int, seed: int = 0
) -> dict[str, Any]:
    """Share of right answers by kind on the screens before and after, each a prompt of its own."""
    model.eval()
    found = {}
    for kind in KINDS:
        right = 0
        for i in range(count):
            pair = text_screen(kind, i, lines=lines, seed=seed)
            for screen, answer in ((pair.before, pair.old), (pair.after, pair.new)):
                ids = tokenizer.apply_chat_template(
                    chat_of(screen, pair.question), continue_final_message=True, return_tensors="pt", return_dict=True
                )["input_ids"]
                right += tokenizer.decode(model(ids).logits[0, -1].argmax()) == answer
        found[kind] = right / (2 * count)
    model.train()
    return {"lines": lines, "seed": seed, "prompts_a_kind": 2 * count, "right": found}


def batch_of(rng: np.random.Generator, tokenizer: PreTrainedTokenizerFast, most: int) -> dict[str, Tensor]:
    """A batch when screens have at most `most` lines, which half of the batches have."""
    lines = most if rng.random() < 0.5 else int(rng.integers(MIN_TRAINED_LINES, most + 1))
    sorts = SORTS if most >= ALL_SORTS_LINES else SORTS[:1]
    return draw_batch(rng, tokenizer, lines, sorts, TOKENS_A_STEP if most < MAX_TRAINED_LINES else TOKENS_A_LATE_STEP)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/text_model.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20, help="of training; the rate falls to 0 over them")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, betas=(0.9, 0.98), weight_decay=0.01)
    rng = np.random.default_rng([TRAIN_SEED, options.seed])
    start, step, seen, most = time.monotonic(), 0, 0, float(MIN_TRAINED_LINES)
    mean: dict[str, float] = {}
    while (done := (time.monotonic() - start) / (60 * options.minutes)) < 1:
        batch = batch_of(rng, tokenizer, int(most))
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min(1, (step + 1) / 50) * min(1, 2.5 * (1 - done))
        loss, shares = losses(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, seen = step + 1, seen + batch["input_ids"].numel()
        mean |= {name: mean.get(name, 0.0) * 0.9 + 0.1 * share for name, share in shares.items()}
        if mean["value"] > 0.9:
            most = min(MAX_TRAINED_LINES, max(most + 1, most * 1.1))
        if step % 20 == 0:
            words = " ".join(f"{name} {share:.3f}" for name, share in mean.items())
            print(
                f"{step} {time.monotonic() - start:.0f} s lines {int(most)} loss {loss:.3f} {words}",
                flush=True,
            )
        if step % 400 == 0:
            save(options, model, tokenizer, step, seen, time.monotonic() - start, [accuracy(model, tokenizer, 24, 20)])
    seconds = time.monotonic() - start
    held_out = [accuracy(model, tokenizer, lines, 200) for lines in (24, 40)]
    save(options, model, tokenizer, step, seen, seconds, held_out)


def save(
    options: argparse.Namespace, model: Any, tokenizer: Any, step: int, seen: int, seconds: float, held_out: Any
) -> None:
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    settings = f"--minutes {options.minutes:g} --rate {options.rate:g} --seed {options.seed}"
    about = {
        "command": f"python tests/text_model.py {settings}",
        "seed": options.seed,
        "steps": step,
        "tokens": seen,
        "seconds": round(seconds),
        "num_parameters": model.num_parameters(),
        "held_out": held_out,
        "torch": torch.__version__,
    }
    (options.out / "training.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(held_out), flush=True)


if __name__ == "__main__":
    main()
