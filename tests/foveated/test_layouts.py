"""State dicts in the released and the legacy layout: loaded strictly, and computing what they should.

The reference is a computation of its own: plain loops over samples, frames, positions and heads, in float64,
on the state dict's tensors by their names, without caches, batches or any module of the library or transformers.
"""

from __future__ import annotations

import logging
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import Dinov2Config, GPT2Config, LlamaConfig

from fvlm_lib.errors import CheckpointError
from fvlm_lib.foveated.checkpoints import load_checkpoint
from fvlm_lib.foveated.layouts import DINOV2, SMOLLM2, read_config
from fvlm_lib.foveated.stream import FoveatedStream
from fvlm_lib.gap.evaluation import float64_copy

WIDTH, LAYERS, HEADS, PATCH, MLP = 12, 2, 2, 4, 24  # of the vision tower
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS, TEXT_KV_HEADS, TEXT_MLP, VOCABULARY = 16, 2, 4, 2, 20, 11
QUERY, SIZE, THETA = 10, 16, 100.0
SCALE = 0.14
EXACT = 1e-9
MODE_TOKENS = ("coarse_token", "fine_token", "no_text_token", "video_end_token")
WAY_OUT = ("encoder.output_proj", "encoder.query_output_proj")  # released code's name, legacy code's


def state_dict(legacy: bool = False, tied: bool = False, grid: int = 4, mask_token: bool = True) -> dict[str, Tensor]:
    """Random weights under the layouts' names; transformers 4's for the vision tower."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}

    def add(name, *shape, std=None, mean=0.0):
        std = shape[-1] ** -0.5 if std is None else std
        weights[name] = mean + std * torch.randn(*shape, generator=generator)

    def linear(name, outputs, inputs, bias=True):
        add(f"{name}.weight", outputs, inputs)
        if bias:
            add(f"{name}.bias", outputs, std=0.1)

    def norm(name, width, bias=True):
        add(f"{name}.weight", width, std=0.2, mean=1.0)
        if bias:
            add(f"{name}.bias", width, std=0.1)

    dino = "encoder.dino"
    add(f"{dino}.embeddings.cls_token", 1, 1, WIDTH, std=1.0)
    if mask_token:
        add(f"{dino}.embeddings.mask_token", 1, WIDTH)
    add(f"{dino}.embeddings.position_embeddings", 1, 1 + grid * grid, WIDTH, std=1.0)
    add(f"{dino}.embeddings.patch_embeddings.projection.weight", WIDTH, 3, PATCH, PATCH, std=0.1)
    add(f"{dino}.embeddings.patch_embeddings.projection.bias", WIDTH, std=0.1)
    for i in range(LAYERS):
        layer = f"{dino}.encoder.layer.{i}"
        for name in ("query", "key", "value"):
            linear(f"{layer}.attention.attention.{name}", WIDTH, WIDTH)
        linear(f"{layer}.attention.output.dense", WIDTH, WIDTH)
        linear(f"{layer}.mlp.fc1", MLP, WIDTH)
        linear(f"{layer}.mlp.fc2", WIDTH, MLP)
        norm(f"{layer}.norm1", WIDTH)
        norm(f"{layer}.norm2", WIDTH)
        add(f"{layer}.layer_scale1.lambda1", WIDTH, std=0.2, mean=1.0)
        add(f"{layer}.layer_scale2.lambda1", WIDTH, std=0.2, mean=1.0)
    norm(f"{dino}.layernorm", WIDTH)
    linear("encoder.query_input_proj", WIDTH, QUERY, bias=False)
    linear(WAY_OUT[legacy], WIDTH, WIDTH)
    linear("dino_to_llm", TEXT_WIDTH, WIDTH)
    linear("llm_to_query", QUERY, TEXT_WIDTH)
    add("q_static", 1, QUERY, std=1.0)
    add("q_init", 1, QUERY, std=1.0)
    add("llm.model.embed_tokens.weight", VOCABULARY, TEXT_WIDTH, std=1.0)
    key_value = TEXT_WIDTH // TEXT_HEADS * TEXT_KV_HEADS
    for i in range(TEXT_LAYERS):
        layer = f"llm.model.layers.{i}"
        linear(f"{layer}.self_attn.q_proj", TEXT_WIDTH, TEXT_WIDTH, bias=False)
        linear(f"{layer}.self_attn.k_proj", key_value, TEXT_WIDTH, bias=False)
        linear(f"{layer}.self_attn.v_proj", key_value, TEXT_WIDTH, bias=False)
        linear(f"{layer}.self_attn.o_proj", TEXT_WIDTH, TEXT_WIDTH, bias=False)
        linear(f"{layer}.mlp.gate_proj", TEXT_MLP, TEXT_WIDTH, bias=False)
        linear(f"{layer}.mlp.up_proj", TEXT_MLP, TEXT_WIDTH, bias=False)
        linear(f"{layer}.mlp.down_proj", TEXT_WIDTH, TEXT_MLP, bias=False)
        norm(f"{layer}.input_layernorm", TEXT_WIDTH, bias=False)
        norm(f"{layer}.post_attention_layernorm", TEXT_WIDTH, bias=False)
    norm("llm.model.norm", TEXT_WIDTH, bias=False)
    if not tied:
        add("llm.lm_head.weight", VOCABULARY, TEXT_WIDTH, std=1.0)
    if legacy:
        for name in MODE_TOKENS:
            add(name, 1, 1, TEXT_WIDTH, std=0.3)
        add("z_vae_init", 1, 4, 8, 8)
        linear("pred_head.0", 8, TEXT_WIDTH)
        add("encoder._dummy", 1)
    return weights


def configs(grid: int = 4, tied: bool = False) -> dict:
    return {
        "vision_config": Dinov2Config(
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            mlp_ratio=MLP // WIDTH,
            patch_size=PATCH,
            image_size=grid * PATCH,
        ),
        "text_config": LlamaConfig(
            hidden_size=TEXT_WIDTH,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=TEXT_HEADS,
            num_key_value_heads=TEXT_KV_HEADS,
            intermediate_size=TEXT_MLP,
            vocab_size=VOCABULARY,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": THETA},
            tie_word_embeddings=tied,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        ),
    }


# ---- the plain computation ---------------------------------------------------------------------------


class Plain:
    """The layouts' computation, one number after the other."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.w = {name: value.double() for name, value in weights.items()}
        self.legacy = "fine_token" in weights
        self.head = self.w.get("llm.lm_head.weight", self.w["llm.model.embed_tokens.weight"])

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = self.w[f"{name}.weight"] @ x
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean()
        return centred / (centred.pow(2).mean() + 1e-6).sqrt() * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def rms_norm(self, name: str, x: Tensor) -> Tensor:
        return x / (x.pow(2).mean() + 1e-5).sqrt() * self.w[f"{name}.weight"]

    @staticmethod
    def attend(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        """One head: query (d), keys and values of the positions it sees."""
        scores = [math.exp((query @ key).item() / math.sqrt(len(query))) for key in keys]
        return sum(score * value for score, value in zip(scores, values, strict=True)) / sum(scores)

    def vit_block(self, i: int, x: Tensor, seen: list[Tensor]) -> Tensor:
        """What layer i makes of token x (D), which attends to the layer's inputs `seen`."""
        layer = f"encoder.dino.encoder.layer.{i}"
        attention = f"{layer}.attention.attention"
        normed = [self.layer_norm(f"{layer}.norm1", other) for other in seen]
        query = self.linear(f"{attention}.query", self.layer_norm(f"{layer}.norm1", x))
        keys = [self.linear(f"{attention}.key", other) for other in normed]
        values = [self.linear(f"{attention}.value", other) for other in normed]
        d = WIDTH // HEADS
        heads = [slice(h * d, (h + 1) * d) for h in range(HEADS)]
        attended = torch.cat([self.attend(query[h], [k[h] for k in keys], [v[h] for v in values]) for h in heads])
        x = x + self.w[f"{layer}.layer_scale1.lambda1"] * self.linear(f"{layer}.attention.output.dense", attended)
        inner = self.linear(f"{layer}.mlp.fc1", self.layer_norm(f"{layer}.norm2", x))
        inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        return x + self.w[f"{layer}.layer_scale2.lambda1"] * self.linear(f"{layer}.mlp.fc2", inner)

    def frame(self, pixels: Tensor) -> list[list[Tensor]]:
        """Each layer's inputs: CLS, then the patches row by row."""
        embeddings = "encoder.dino.embeddings"
        positions = self.w[f"{embeddings}.position_embeddings"][0]
        grid, side = round((len(positions) - 1) ** 0.5), SIZE // PATCH
        patches = positions[1:]
        if grid != side:  # DINOv2's own rule: bicubic, in float32 whatever the model's precision
            square = patches.reshape(1, grid, grid, WIDTH).permute(0, 3, 1, 2).float()
            square = interpolate(square, size=(side, side), mode="bicubic", align_corners=False)
            patches = square[0].permute(1, 2, 0).reshape(-1, WIDTH).double()
        tokens = [self.w[f"{embeddings}.cls_token"][0, 0] + positions[0]]
        kernel = self.w[f"{embeddings}.patch_embeddings.projection.weight"].reshape(WIDTH, -1)
        bias = self.w[f"{embeddings}.patch_embeddings.projection.bias"]
        for row in range(side):
            for column in range(side):
                patch = pixels[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
                tokens.append(kernel @ patch.reshape(-1) + bias + patches[row * side + column])
        inputs = []
        for i in range(LAYERS):
            inputs.append(tokens)
            tokens = [self.vit_block(i, token, inputs[i]) for token in tokens]
        return inputs

    def look(self, frame: list[list[Tensor]], query: Tensor) -> Tensor:
        """What a query (query width) takes from a frame, in the language model's width, before any scaling."""
        x = self.linear("encoder.query_input_proj", query)
        for i in range(LAYERS):
            x = self.vit_block(i, x, frame[i])
        return self.linear(
            "dino_to_llm", self.linear(WAY_OUT[self.legacy], self.layer_norm("encoder.dino.layernorm", x))
        )

    def scaled(self, z: list[list[Tensor]]) -> list[list[Tensor]]:
        """Visual tokens, of each sample a list; in the legacy layout over the std of all their numbers."""
        numbers = torch.cat([token for tokens in z for token in tokens])
        variance = (numbers - numbers.mean()).pow(2).sum() / (len(numbers) - 1)
        divisor = variance.sqrt() + 1e-6 if self.legacy else 1.0
        return [[token / divisor * SCALE for token in tokens] for tokens in z]

    def llm(self, sequence: list[Tensor]) -> list[Tensor]:
        """Last hidden states of a sequence of embeddings."""
        d = TEXT_WIDTH // TEXT_HEADS
        # the angles are of float32 in every precision of the language model
        frequencies = 1.0 / THETA ** (torch.arange(0, d, 2).float() / d)
        angles = [torch.cat([n * frequencies, n * frequencies]) for n in torch.arange(len(sequence)).float()]

        def turned(x: Tensor, n: int) -> Tensor:
            other = torch.cat([-x[d // 2 :], x[: d // 2]])
            return x * angles[n].cos().double() + other * angles[n].sin().double()

        x = list(sequence)
        for i in range(TEXT_LAYERS):
            layer = f"llm.model.layers.{i}"
            normed = [self.rms_norm(f"{layer}.input_layernorm", token) for token in x]
            queries, keys, values = (
                [self.linear(f"{layer}.self_attn.{name}", token) for token in normed]
                for name in ("q_proj", "k_proj", "v_proj")
            )
            for n in range(len(x)):
                heads = []
                for h in range(TEXT_HEADS):
                    g = h * TEXT_KV_HEADS // TEXT_HEADS
                    own, shared = slice(h * d, (h + 1) * d), slice(g * d, (g + 1) * d)
                    seen = [turned(keys[m][shared], m) for m in range(n + 1)]
                    heads.append(self.attend(turned(queries[n][own], n), seen, [v[shared] for v in values[: n + 1]]))
                x[n] = x[n] + self.linear(f"{layer}.self_attn.o_proj", torch.cat(heads))
            for n in range(len(x)):
                inner = self.rms_norm(f"{layer}.post_attention_layernorm", x[n])
                gate = self.linear(f"{layer}.mlp.gate_proj", inner)
                gate = gate / (1 + (-gate).exp()) * self.linear(f"{layer}.mlp.up_proj", inner)
                x[n] = x[n] + self.linear(f"{layer}.mlp.down_proj", gate)
        return [self.rms_norm("llm.model.norm", token) for token in x]

    def token(self, name: str) -> list[Tensor]:
        return [self.w[f"{name}_token"][0, 0]] if self.legacy else []

    def caption_nll(self, mode: str, z: list[Tensor], caption: list[int]) -> float:
        before = [*self.token(mode), *z, *self.token("video_end")]
        embedding = self.w["llm.model.embed_tokens.weight"]
        hidden = self.llm([*before, *(embedding[word] for word in caption)])
        total = 0.0
        for n, word in enumerate(caption):
            logits = self.head @ hidden[len(before) + n - 1]
            total += (logits.exp().sum().log() - logits[word]).item()
        return total

    def next_queries(self, mode: str, z: list[Tensor]) -> list[Tensor]:
        before = [*self.token("no_text"), *self.token(mode)]
        hidden = self.llm([*before, *z])[len(before) :]
        return [self.w["q_init"][0], *(self.linear("llm_to_query", h) for h in hidden[:-1])]

    def losses(self, videos: list[Tensor], captions: list[list[int]], num_fine: int) -> dict[str, list[float]]:
        """NLL of each sample's caption by mode; videos (T, 3, height, width), of any length each."""
        frames = [[self.frame(pixels) for pixels in video.double()] for video in videos]
        samples = range(len(videos))
        found = {}
        mode, queries = "coarse", [[self.w["q_static"][0]] * len(video) for video in videos]
        for number in range(num_fine + 1):
            z = self.scaled([[self.look(f, q) for f, q in zip(frames[b], queries[b], strict=True)] for b in samples])
            name = f"fine_{number}" if number else "coarse"
            found[name] = [self.caption_nll(mode, z[b], captions[b]) for b in samples]
            queries = [self.next_queries(mode, z[b]) for b in samples]
            mode = "fine"
        watched: list[list[Tensor]] = [[] for _ in samples]
        query = [self.w["q_init"][0] for _ in samples]
        for t in range(max(map(len, videos))):
            present = [b for b in samples if t < len(videos[b])]
            for b, tokens in zip(
                present, self.scaled([[self.look(frames[b][t], query[b])] for b in present]), strict=True
            ):
                watched[b] += tokens
                query[b] = self.linear("llm_to_query", self.llm([*self.token("fine"), *watched[b]])[-1])
        found["autoregressive"] = [self.caption_nll("fine", watched[b], captions[b]) for b in samples]
        return found


def inputs(lengths: tuple[int, ...] = (3, 3)) -> tuple[list[Tensor], list[list[int]], dict]:
    """Videos and captions one by one, and as a padded batch for the model."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(len(lengths), max(lengths), 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    ids = torch.randint(VOCABULARY, (len(lengths), 4), generator=generator)
    frame_mask = torch.tensor([[t < length for t in range(max(lengths))] for length in lengths])
    videos = [video[:length] for video, length in zip(pixels, lengths, strict=True)]
    return videos, ids.tolist(), {"pixel_values": pixels, "input_ids": ids, "frame_mask": frame_mask}


def model_losses(model, batch: dict, num_fine: int) -> dict[str, list[float]]:
    with torch.no_grad():
        coarse, *fine = model.forward_passes(**batch, num_fine=num_fine)
        found = {"coarse": coarse, **{f"fine_{k}": output for k, output in enumerate(fine, 1)}}
        found["autoregressive"] = model.forward_autoregressive(**batch)
        # the way a single mode is asked for must not matter
        torch.testing.assert_close(model(**batch).nll, found["fine_1"].nll, rtol=0, atol=EXACT)
        for output, other in zip(found.values(), model.forward_modes(**batch, num_fine=num_fine), strict=True):
            torch.testing.assert_close(output.nll, other.nll, rtol=0, atol=EXACT)
    return {mode: output.nll.tolist() for mode, output in found.items()}


@pytest.mark.parametrize(
    ("layout", "lengths"),
    [
        ({}, (3, 3)),
        ({"tied": True, "grid": 5, "mask_token": False}, (3, 2)),
        ({"legacy": True}, (3, 3)),
        ({"legacy": True, "tied": True, "grid": 5}, (3, 2)),
    ],
)
def test_losses_are_those_of_the_plain_computation(tmp_path, layout, lengths):
    weights = state_dict(**layout)
    file = tmp_path / "checkpoint.safetensors"
    save_file(weights, file)
    given = configs(layout.get("grid", 4), layout.get("tied", False))
    model = float64_copy(load_checkpoint(file, **given, dtype=torch.float64))
    videos, captions, batch = inputs(lengths)
    wanted = Plain(weights).losses(videos, captions, num_fine=2)
    found = model_losses(model, batch, num_fine=2)
    assert list(found) == list(wanted)
    for mode, nll in wanted.items():
        assert found[mode] == pytest.approx(nll, rel=0, abs=1e-8), mode
    assert abs(wanted["fine_1"][0] - wanted["coarse"][0]) > 1e-3, "the modes should differ, else this shows little"
    assert abs(wanted["fine_1"][0] - wanted["autoregressive"][0]) > 1e-5


# ---- one layout, many files --------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_every_way_of_keeping_a_state_dict_loads_alike(tmp_path, legacy):
    weights = state_dict(legacy)
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "b.pt")
    compiled = {name.replace("encoder.dino", "encoder._orig_mod.dino"): value for name, value in weights.items()}
    compiled = {f"_orig_mod.{name}": value for name, value in compiled.items()}
    torch.save({"model_state_dict": compiled, "step": 3, "optimizer": {"lr": 0.1}}, tmp_path / "c.pt")
    (tmp_path / "folder").mkdir()
    torch.save({"model_state_dict": weights}, tmp_path / "folder" / "best.pt")
    renamed = {name.replace("attention.attention.query", "attention.q_proj"): value for name, value in weights.items()}
    torch.save(renamed, tmp_path / "d.pth")  # transformers 5's name

    def load(name):
        return load_checkpoint(tmp_path / name, **configs()).state_dict()

    wanted = load("a.safetensors")
    assert torch.equal(wanted["q_init"], weights["q_init"])
    query = "encoder.dino.encoder.layer.1.attention"
    assert torch.equal(wanted[f"{query}.q_proj.bias"], weights[f"{query}.attention.query.bias"])
    for name in ("b.pt", "c.pt", "folder", "d.pth"):
        found = load(name)
        assert list(found) == list(wanted)
        assert all(torch.equal(found[key], value) for key, value in wanted.items()), name


@pytest.mark.parametrize("legacy", [False, True])
def test_the_encoders_way_out_has_either_name_in_either_layout(tmp_path, legacy):
    weights = state_dict(legacy)
    own, other = WAY_OUT[legacy], WAY_OUT[not legacy]
    for name in (own, other):
        torch.save({key.replace(own, name): value for key, value in weights.items()}, tmp_path / "weights.pt")
        found = load_checkpoint(tmp_path / "weights.pt", **configs()).state_dict()
        assert torch.equal(found["encoder.output_proj.weight"], weights[f"{own}.weight"])
        assert torch.equal(found["encoder.output_proj.bias"], weights[f"{own}.bias"])
    torch.save(weights | {f"{other}.bias": weights[f"{own}.bias"]}, tmp_path / "weights.pt")
    with pytest.raises(
        CheckpointError,
        match=r"has both encoder\.output_proj\.\* and encoder\.query_output_proj\.\*, two names of one layer; keep one",
    ):
        load_checkpoint(tmp_path / "weights.pt", **configs())


def test_what_is_renamed_or_left_out_is_logged(tmp_path, caplog):
    weights = state_dict(legacy=True)
    torch.save({f"_orig_mod.{name}": value for name, value in weights.items()}, tmp_path / "weights.pt")
    with caplog.at_level(logging.INFO, logger="fvlm_lib.foveated.layouts"):
        model = load_checkpoint(tmp_path / "weights.pt", **configs())
    said = [record.getMessage() for record in caplog.records]
    assert any("'_orig_mod.'" in text and f"{len(weights)} keys" in text for text in said)
    unused = "encoder._dummy, pred_head.0.bias, pred_head.0.weight, z_vae_init"
    assert any(f"not loaded: {unused}" in text for text in said)
    assert any("encoder.query_output_proj.* is read as encoder.output_proj.*" in text for text in said)
    assert model.config.visual_norm == "legacy"


def test_an_lm_head_equal_to_the_embedding_is_the_tied_one(tmp_path):
    weights = state_dict(tied=True)
    weights["llm.lm_head.weight"] = weights["llm.model.embed_tokens.weight"].clone()
    torch.save(weights, tmp_path / "weights.pt")
    model = load_checkpoint(tmp_path / "weights.pt", **configs(tied=True))
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    weights["llm.lm_head.weight"] += 1
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="differs from the embedding"):
        load_checkpoint(tmp_path / "weights.pt", **configs(tied=True))


def test_the_frames_and_the_scale_that_the_layouts_mean(tmp_path):
    torch.save(state_dict(), tmp_path / "weights.pt")
    config = load_checkpoint(tmp_path / "weights.pt", **configs()).config
    assert (config.visual_norm, config.visual_scale, config.mode_tokens, config.deep_query) == (
        "scale",
        0.14,
        False,
        True,
    )
    assert config.image_size == 224
    assert tuple(config.image_mean) == (0.485, 0.456, 0.406)
    assert tuple(config.image_std) == (0.229, 0.224, 0.225)
    assert load_checkpoint(tmp_path / "weights.pt", **configs(), visual_scale=0.5).config.visual_scale == 0.5


def test_several_precisions_become_the_one_that_holds_all(tmp_path):
    weights = state_dict()
    half = {name: value.bfloat16() if name.startswith("llm.") else value for name, value in weights.items()}
    torch.save(half, tmp_path / "weights.pt")
    assert {p.dtype for p in load_checkpoint(tmp_path / "weights.pt", **configs()).parameters()} == {torch.float32}
    torch.save({name: value.bfloat16() for name, value in weights.items()}, tmp_path / "weights.pt")
    assert load_checkpoint(tmp_path / "weights.pt", **configs()).dtype == torch.bfloat16


@pytest.mark.parametrize("legacy", [False, True])
def test_such_a_model_saved_is_one_of_the_projects_own(tmp_path, legacy):
    torch.save(state_dict(legacy), tmp_path / "weights.pt")
    model = load_checkpoint(tmp_path / "weights.pt", **configs())
    model.save_pretrained(tmp_path / "own")
    again = load_checkpoint(tmp_path / "own")
    assert again.config.visual_norm == model.config.visual_norm
    batch = inputs()[2] | {"pixel_values": inputs()[2]["pixel_values"].float()}
    for mode in ("captioning", "autoregressive"):
        torch.testing.assert_close(again(**batch, mode=mode).nll, model(**batch, mode=mode).nll)


# ---- strictness --------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_every_missing_key_is_an_error_that_names_it(tmp_path, legacy):
    weights = state_dict(legacy)
    optional = {"z_vae_init", "encoder._dummy", "encoder.dino.embeddings.mask_token"}
    names = [n for n in weights if ".1." not in n and n not in optional and not n.startswith("pred_head.")]
    for name in names:
        torch.save({key: value for key, value in weights.items() if key != name}, tmp_path / "weights.pt")
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(tmp_path / "weights.pt", **configs())
        assert any(f"{before}{name}" in str(caught.value) for before in (": ", "lacks ", "(or "))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.query_input_proj.bias": torch.zeros(WIDTH)}, r"unexpected: encoder\.query_input_proj\.bias"),
        ({"q_init": torch.zeros(1, QUERY + 1)}, r"mismatched: q_init is \[1, 11\], not \[1, 10\]"),
        ({"dino_to_llm.weight": torch.zeros(TEXT_WIDTH, WIDTH + 1)}, "mismatched: dino_to_llm"),
        ({"coarse_token": torch.zeros(1, 1, TEXT_WIDTH)}, "missing: fine_token, no_text_token, video_end_token"),
        ({"_orig_mod.q_init": torch.zeros(1, QUERY)}, "q_init with and without the prefix"),
        ({"step": 3}, "step are no tensors"),
    ],
)
def test_keys_that_do_not_fit_are_listed(tmp_path, change, message):
    torch.save(state_dict() | change, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "weights.pt", **configs())


def test_a_layer_of_another_name_is_among_what_the_file_has(tmp_path):
    weights = {key.replace("encoder.output_proj", "encoder.exit"): value for key, value in state_dict().items()}
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "weights.pt", **configs())
    assert "it lacks encoder.output_proj.weight (or encoder.query_output_proj.weight), encoder.output_proj.bias" in str(
        caught.value
    )
    assert "encoder.dino.*, encoder.exit.*, encoder.query_input_proj.*" in str(caught.value)


def test_a_state_dict_of_another_family(tmp_path):
    save_file({"features.0.weight": torch.zeros(2, 2), "classifier.bias": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(
        CheckpointError, match=r"is no foveated VLM.*lacks q_static.*classifier\.bias, features\.0\.\*$"
    ):
        load_checkpoint(tmp_path / "a.safetensors")
    torch.save([torch.zeros(2)], tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_checkpoint(tmp_path / "b.pt")


def test_towers_of_unknown_family_need_their_configs(tmp_path):
    weights = state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    given = configs()
    with pytest.raises(
        CheckpointError, match=r"vision tower's sizes \(hidden_size 12.*dinov2-small.*give vision_config"
    ):
        load_checkpoint(tmp_path / "weights.pt", text_config=given["text_config"])
    with pytest.raises(CheckpointError, match=r"language model's sizes \(hidden_size 16.*SmolLM2-360M.*text_config"):
        load_checkpoint(tmp_path / "weights.pt", vision_config=given["vision_config"])
    other = {name.replace("llm.model.", "llm.transformer."): value for name, value in weights.items()}
    torch.save(other, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"llm\.transformer.*are not those of SmolLM2; give text_config"):
        load_checkpoint(tmp_path / "weights.pt", vision_config=given["vision_config"])
    gpt2 = GPT2Config(n_embd=TEXT_WIDTH, n_layer=1, n_head=2, vocab_size=VOCABULARY)
    with pytest.raises(CheckpointError, match="do not fit the config"):
        load_checkpoint(tmp_path / "weights.pt", vision_config=given["vision_config"], text_config=gpt2)


@pytest.mark.parametrize("name", list(SMOLLM2))
def test_the_known_families_are_recognised_by_their_sizes(name):
    """The shapes of real checkpoints, without their gigabytes."""
    text, vision = SMOLLM2[name], DINOV2["dinov2-small"]
    width, llm, dino = text["hidden_size"], "llm.model.layers", "encoder.dino.encoder.layer"

    def empty(*shape):
        return torch.empty(*shape, device="meta")

    weights = {
        "q_static": empty(1, 384),
        "q_init": empty(1, 384),
        "encoder.query_input_proj.weight": empty(384, 384),
        "encoder.output_proj.weight": empty(384, 384),
        "encoder.output_proj.bias": empty(384),
        "dino_to_llm.weight": empty(width, 384),
        "llm_to_query.weight": empty(384, width),
        "encoder.dino.embeddings.mask_token": empty(1, 384),
        "encoder.dino.embeddings.position_embeddings": empty(1, 1 + 37 * 37, 384),
        "encoder.dino.embeddings.patch_embeddings.projection.weight": empty(384, 3, 14, 14),
        "llm.model.embed_tokens.weight": empty(49154, width),  # two tokens added
        f"{llm}.0.mlp.gate_proj.weight": empty(text["intermediate_size"], width),
        **{f"{llm}.{i}.input_layernorm.weight": empty(width) for i in range(text["num_hidden_layers"])},
        **{f"{dino}.{i}.norm1.weight": empty(384) for i in range(12)},
    }
    config = read_config(weights, "weights.pt")
    assert config.vision_config.num_attention_heads == 6
    assert config.vision_config.image_size == 518
    assert config.vision_config.use_mask_token
    found = config.text_config
    heads = {"SmolLM2-135M": (9, 3), "SmolLM2-360M": (15, 5), "SmolLM2-1.7B": (32, 32)}
    assert (found.num_attention_heads, found.num_key_value_heads) == heads[name]
    assert found.head_dim == 64
    assert found.vocab_size == 49154
    assert found.rope_parameters["rope_theta"] == (130000 if name == "SmolLM2-1.7B" else 100000)
    assert vision["hidden_size"] == config.query_dim
    weights.pop(f"{dino}.11.norm1.weight")
    with pytest.raises(CheckpointError, match="num_hidden_layers 11"):
        read_config(weights, "weights.pt")


# ---- what the legacy layout means for the modes ------------------------------------------------------


@pytest.fixture(scope="module")
def legacy(tmp_path_factory):
    file = tmp_path_factory.mktemp("legacy") / "weights.pt"
    torch.save(state_dict(legacy=True), file)
    return float64_copy(load_checkpoint(file, **configs(), dtype=torch.float64))


def test_the_legacy_norm_mixes_samples_and_the_others_do_not(legacy):
    _, _, batch = inputs()
    alone = {key: value[:1] for key, value in batch.items()}
    for mode in ("captioning", "autoregressive"):
        assert abs(legacy(**batch, mode=mode).nll[0] - legacy(**alone, mode=mode).nll[0]) > 1e-6, mode
    legacy.config.visual_norm = "token"
    try:
        for mode in ("captioning", "autoregressive"):
            assert abs(legacy(**batch, mode=mode).nll[0] - legacy(**alone, mode=mode).nll[0]) < EXACT, mode
    finally:
        legacy.config.visual_norm = "legacy"


def test_frames_that_no_sample_has_change_nothing(legacy):
    _, _, batch = inputs((3, 2))
    longer = {
        **batch,
        "pixel_values": torch.nn.functional.pad(batch["pixel_values"], (0,) * 7 + (2,), value=float("nan")),
    }
    longer["frame_mask"] = torch.nn.functional.pad(batch["frame_mask"], (0, 2))
    for mode in ("captioning", "autoregressive"):
        found, wanted = legacy(**longer, mode=mode), legacy(**batch, mode=mode)
        torch.testing.assert_close(found.nll, wanted.nll, rtol=0, atol=EXACT)


def test_a_legacy_stream_captions_like_the_whole_video(legacy):
    _, _, batch = inputs((3,))
    pixels, prompt = batch["pixel_values"], batch["input_ids"][:, :2]
    options = {"max_new_tokens": 5, "do_sample": False}
    stream = FoveatedStream(legacy)
    for t in range(3):
        token = stream.push(pixels[0, t])
        assert token.std().item() == pytest.approx(SCALE, rel=1e-4)
        for words in (None, prompt):
            whole = legacy.generate(pixels[:, : t + 1], words, **options)
            assert torch.equal(stream.caption(words, **options), whole)
    logits = legacy.forward_autoregressive(pixels, whole).logits
    assert torch.equal(stream.caption(**options), legacy.generate(pixels, **options))
    first = legacy.generate(pixels, max_new_tokens=1, do_sample=False)
    assert torch.equal(first, logits.argmax(-1)[:, :1])
