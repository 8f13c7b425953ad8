"""Vision-language models: open_clip networks, whose head is made from the names of the classes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from benchmark.models.checksums import check_checksums
from benchmark.models.entries import OPEN_CLIP, ModelEntry, ModelError
from benchmark.models.model import Model
from benchmark.models.towers import Matrix, Tower
from detectors import Head

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class ZeroShotClassifier(Model):
    """A network that embeds images and texts. The text of a class is the prompt with the class's word in it.

    Features are image embeddings of length 1. Logits are their cosines with the embeddings of the classes, times the
    network's scale, exp(logit_scale), which is 100 in OpenAI's networks (A. Radford et al., "Learning Transferable
    Visual Models From Natural Language Supervision", ICML 2021). So the head is linear. It has no bias, unless the
    network has one bias for all classes (SigLIP). `vision_tower` describes the patches.

    tokenizer: gives tokens (n, L) of n texts.
    class_names: a word for each of the C classes.
    prompt: a text with `{}` in the place of the word.

    Where no weight requires a gradient, the embeddings of the classes are computed once. So a changed network needs a
    new model (`dataclasses.replace`). Where a weight requires a gradient, they are computed at every call.
    """

    tokenizer: Callable[[list[str]], Tensor]
    class_names: tuple[str, ...]
    prompt: str

    def __post_init__(self) -> None:
        if self.prompt.count("{}") != 1:
            raise ModelError(
                f"model {self.id}: prompt (in {self.entry.file}) must hold {{}} once, where the class name goes, "
                f"got {self.prompt!r}"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W), on the device of the images; torch can differentiate it."""
        return linear(self._embed_images(images), *self.linear_head).to(images.device)

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Features (N, D), logits (N, C) and, where the vision tower is a `vision_tower`, patches (N, P, D)."""
        images = images.to(self.device, non_blocking=True)
        if _vision_obstacle(self.network):
            features = self._embed_images(images)
            return {"features": features, "logits": linear(features, *self.linear_head)}
        features, patches = self.vision_tower()(images)
        assert patches is not None
        return {"features": features, "logits": linear(features, *self.linear_head), "patches": patches}

    def features(self, images: Tensor) -> Tensor:
        """Image embeddings (N, D) of length 1 of images (N, 3, H, W), on their device; torch can differentiate them."""
        return self._embed_images(images).to(images.device)

    def text_features(self, words: Sequence[str]) -> Tensor:
        """Text embeddings (n, D) of length 1, on the model's device; torch can differentiate them.

        words: n words, each of which is put into the prompt.
        Raises ModelError where a reduced vocabulary lacks a word; the message names the word.
        """
        tokens = self.tokenizer([self.prompt.replace("{}", word) for word in words])
        return normalize(self.network.encode_text(tokens.to(self.device)), dim=-1)  # type: ignore[operator]

    def layers(self, images: Tensor) -> list[Tensor]:
        """The outputs of the vision tower's stages or blocks, first to last, averaged over patches: each (N, C_l)."""
        tower: Any = self.network.visual
        maps = tower.forward_intermediates(images.to(self.device), intermediates_only=True)["image_intermediates"]
        return [layer.flatten(2).mean(dim=2).to(images.device) for layer in maps]

    def feature_map(self, images: Tensor) -> Tensor:
        """All tokens (N, 1 + P, width) that leave the last block, [cls] first.

        Raises ModelError as the function `vision_tower` does.
        """
        tower = self.vision_tower()
        hidden = tower.start(images.to(self.device))
        for index in range(tower.depth):
            hidden = tower.block(index, hidden)
        return hidden.to(images.device)

    def logits_of_map(self, feature_map: Tensor) -> Tensor:
        """Logits (N, C) of a feature map (N, 1 + P, width)."""
        features = _project(self.network.visual, feature_map[:, 0].to(self.device))
        return linear(features, *self.linear_head).to(feature_map.device)

    def vision_tower(self) -> Tower:
        """The vision tower in pieces; raises ModelError as the function `vision_tower` does."""
        return self._make_tower(vision_tower)

    def text_tower(self) -> Tower:
        """The text tower in pieces; raises ModelError as the function `text_tower` does."""
        return self._make_tower(text_tower)

    @property
    def head(self) -> Head:
        weight, bias = self.linear_head
        return Head(weight.detach().cpu(), bias.detach().cpu())

    @property
    def architecture(self) -> str:
        return f"{type(self.network).__name__} {type(self.network.visual).__name__}"

    def _embed_images(self, images: Tensor) -> Tensor:
        return normalize(self.network.encode_image(images.to(self.device)), dim=-1)  # type: ignore[operator]

    def _make_tower(self, make: Callable[[nn.Module], Tower]) -> Tower:
        """A tower of the network. Raises ModelError with the name of the model."""
        try:
            return make(self.network)
        except ModelError as error:
            raise ModelError(f"model {self.id}: {error}") from None

    @property
    def linear_head(self) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) on the model's device; computed at every call where a weight needs a gradient."""
        trained = any(parameter.requires_grad for parameter in self.network.parameters())
        return self._make_head() if trained else self._fixed_head

    @cached_property
    def _fixed_head(self) -> tuple[Tensor, Tensor]:
        # Not in inference mode: torch could not differentiate later what uses such a tensor.
        with torch.inference_mode(False), torch.no_grad():
            return self._make_head()

    def _make_head(self) -> tuple[Tensor, Tensor]:
        return self.head_of(self.text_features(self.class_names))

    def head_of(self, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) of a head.

        text_features: the text embeddings of the classes, (C, D), of length 1.
        """
        network: Any = self.network
        weight = network.logit_scale.exp() * text_features
        bias = weight.new_zeros(len(weight))
        return weight, bias if network.logit_bias is None else bias + network.logit_bias


def vision_tower(network: Any) -> Tower:
    """The vision tower of an open_clip network in pieces. Its features are image embeddings of length 1.

    Local features (N, P, D), of length 1, come from a second path through the last block. For the block's input u:

        v = u + out_proj(v_proj(LN1(u)));  p = v + MLP(LN2(v));  local = projection(ln_post(p)), without [cls]

    Source: the code of GL-MCM, as SeTAR uses it (spec setar.md 1.1, read from the authors' code; the papers say
    "projected outputs of the other patches"). Where the block scales its branches (LayerScale), this path does it, too;
    that is our reading.

    network: the open_clip network.
    Raises ModelError where the tower is no VisionTransformer of open_clip that takes [cls] as the image's embedding.
    """
    obstacle = _vision_obstacle(network)
    if obstacle:
        raise ModelError(f"{obstacle}, so it has no local features and no blocks to search")
    visual, blocks = network.visual, network.visual.transformer.resblocks

    def block(index: int, hidden: Tensor) -> Tensor:
        return blocks[index](hidden)

    def finish(images: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        features = _project(visual, blocks[-1](hidden)[:, 0])
        return features, _project(visual, _value_path(blocks[-1], hidden[:, 1:]))

    matrices = _matrices("visual.transformer.resblocks", blocks)
    return Tower("vision", len(blocks), visual._embeds, block, finish, matrices)


def text_tower(network: Any) -> Tower:
    """The text tower of an open_clip network in pieces. Its features are text embeddings (N, D) of length 1.

    network: the open_clip network.
    Raises ModelError where the tower is not open_clip's causal TextTransformer, which takes one token as the text's
    embedding.
    """
    obstacle = _text_obstacle(network)
    if obstacle:
        raise ModelError(f"{obstacle}, so it has no blocks to search")
    from open_clip.transformer import text_global_pool

    # The parts of the text tower are attributes of CLIP itself, but attributes of `text` in CustomTextCLIP.
    prefix, text = ("text.", network.text) if hasattr(network, "text") else ("", network)
    pool, eos = (text.pool_type, text.eos_id) if prefix else (text.text_pool_type, text.text_eos_id)
    blocks = text.transformer.resblocks

    def start(tokens: Tensor) -> Tensor:
        return text.token_embedding(tokens) + text.positional_embedding[: tokens.shape[1]]

    def block(index: int, hidden: Tensor) -> Tensor:
        return blocks[index](hidden, attn_mask=text.attn_mask)

    def finish(tokens: Tensor, hidden: Tensor) -> tuple[Tensor, None]:
        pooled = text_global_pool(text.ln_final(block(len(blocks) - 1, hidden)), tokens, pool, eos_token_id=eos)
        projection = text.text_projection
        if projection is not None:
            pooled = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
        return normalize(pooled, dim=-1), None

    return Tower("text", len(blocks), start, block, finish, _matrices(f"{prefix}transformer.resblocks", blocks))


def _vision_obstacle(network: Any) -> str:
    """Why the vision tower has no local features, for a message; empty where it has them."""
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    visual = network.visual
    if not isinstance(visual, VisionTransformer):
        return f"the vision tower is a {type(visual).__name__}, not open_clip's VisionTransformer"
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return "the vision tower pools its patches and does not take [cls] as the image"
    if not all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks):
        return "the vision tower's blocks are not open_clip's ResidualAttentionBlock"
    return ""


def _text_obstacle(network: Any) -> str:
    """Why the text tower cannot be divided into pieces, for a message; empty where it can."""
    from open_clip.model import CLIP
    from open_clip.transformer import TextTransformer

    if isinstance(network, CLIP):
        return ""
    text = network.text
    if not isinstance(text, TextTransformer):
        return f"the text tower is a {type(text).__name__}, not open_clip's TextTransformer"
    if text.cls_emb is not None:
        return "the text tower has an attention mask of its own for each text"
    return ""


def _project(visual: Any, tokens: Tensor) -> Tensor:
    """The embeddings, of length 1, of tokens that leave the last block of the vision tower."""
    return normalize(visual.ln_post(tokens) @ visual.proj, dim=-1)


def _value_path(block: Any, hidden: Tensor) -> Tensor:
    """The output of a block where the attention gives each token only its own value."""
    attention, width = block.attn, hidden.shape[-1]
    value = linear(block.ln_1(hidden), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    hidden = hidden + block.ls_1(attention.out_proj(value))
    return hidden + block.ls_2(block.mlp(block.ln_2(hidden)))


def _matrices(prefix: str, blocks: Any) -> Mapping[str, tuple[Matrix, ...]]:
    """The matrices of all blocks by the type of weight. `prefix`: the name of the blocks in the network."""
    width = blocks[0].attn.out_proj.weight.shape[0]

    def of_every_block(tensor: str, part: int | None = None) -> tuple[Matrix, ...]:
        rows = slice(None) if part is None else slice(part * width, (part + 1) * width)
        return tuple(Matrix(f"{prefix}.{index}.{tensor}", rows) for index in range(len(blocks)))

    return {
        "up": of_every_block("mlp.c_fc.weight"),
        "down": of_every_block("mlp.c_proj.weight"),
        "query": of_every_block("attn.in_proj_weight", 0),
        "key": of_every_block("attn.in_proj_weight", 1),
        "value": of_every_block("attn.in_proj_weight", 2),
        "output": of_every_block("attn.out_proj.weight"),
    }


@dataclass(frozen=True)
class CutTokenizer:
    """A tokenizer for a network that keeps only some rows of the vocabulary. Its tokens are places among these rows.

    whole: the tokenizer of the whole vocabulary.
    kept: the token ids of the whole vocabulary that are kept, ascending. So the end of a text, which has the highest
        id, has the highest place, too.
    model: the id of the model, for messages.
    """

    whole: Any
    kept: tuple[int, ...]
    model: str

    def __call__(self, texts: list[str]) -> Tensor:
        """Tokens (n, L) of n texts. Raises ModelError, with the word, where a word needs a token that is not kept."""
        for word in " ".join(texts).split():
            if not set(self.whole.encode(word)) <= set(self.kept):
                raise ModelError(f"{self.model} knows no {word!r}; its vocabulary was cut to: {', '.join(self.words)}")
        return torch.searchsorted(torch.tensor(self.kept), self.whole(texts))

    @property
    def words(self) -> list[str]:
        """The texts of the kept tokens, without special ones."""
        special = {0, *self.whole.all_special_ids}  # texts are filled up with 0
        return [self.whole.decode([token]).strip() for token in self.kept if token not in special]


def load_zero_shot(
    model_id: str, entry: ModelEntry, device: torch.device, class_names: Sequence[str]
) -> ZeroShotClassifier:
    """The open_clip model of an entry.

    The entry's source, after `open-clip:`, is `hf-hub:OWNER/NAME`, `local-dir:PATH` from the entry's file, or
    `ARCHITECTURE/TAG` with one of open_clip's tags, such as ViT-B-16/openai. A local folder holds
    open_clip_config.json and open_clip_model.safetensors. Where the config has a `vocabulary` (token ids, ascending),
    the network keeps only these rows of open_clip's vocabulary.

    No pickle is run. In a local folder only safetensors are read. From the Hub, open_clip takes safetensors where
    there are some; else torch reads the pickle with `weights_only`, which builds tensors and runs no code. Many
    published checkpoints have no other form.

    model_id: the id of the model, for messages.
    entry: its entry.
    device: where the network runs.
    class_names: a word for each of the C classes.
    Raises ModelError where the checkpoint is missing or damaged, or its vocabulary lacks a word of a prompt.
    """
    try:
        import open_clip  # here, since it is an optional package and slow to import
    except ImportError as error:
        raise ModelError(
            f'model {model_id}: {entry.source} needs open_clip: pip install "ood-benchmark[clip]"'
        ) from error
    try:
        network, tokenizer = _load_checkpoint(model_id, entry)
        config = open_clip.transform.PreprocessCfg(**network.visual.preprocess_cfg)
        transform = open_clip.transform.image_transform_v2(config, is_train=False)
    except Exception as error:  # open_clip, safetensors and the Hub's client raise many kinds of errors
        reason = str(error) or type(error).__name__
        raise ModelError(
            f"model {model_id}: cannot load {entry.source} (named in {entry.file}): {reason}", entry.remedy(model_id)
        ) from error
    if not class_names or len(set(class_names)) < len(class_names):
        raise ModelError(
            f"model {model_id}: its head is made from the class names, which are {', '.join(class_names) or 'none'}; "
            "give the training image set different `class_names`"
        )
    prompts = [entry.prompt.replace("{}", name) for name in class_names]
    model = ZeroShotClassifier(
        model_id,
        entry,
        network.eval().requires_grad_(False).to(device),
        transform,
        {
            **json.loads(json.dumps(asdict(config))),
            "input_size": list(config.input_size),
            "prompts": prompts,  # the head is made from them, as that of other networks from weights
            "transform": " | ".join(map(str, transform.transforms)),
        },
        device,
        tokenizer=tokenizer,
        class_names=tuple(class_names),
        prompt=entry.prompt,
    )
    tokenizer(prompts)
    return model


def _load_checkpoint(model_id: str, entry: ModelEntry) -> tuple[Any, Callable[[list[str]], Tensor]]:
    """The network and the tokenizer that the source of an entry names."""
    import open_clip

    source = entry.source.removeprefix(OPEN_CLIP)
    kind, _, place = source.partition(":")
    if kind == "local-dir":
        return _load_local_checkpoint(model_id, (entry.file.parent / Path(place).expanduser()).resolve())
    # Without require_pretrained, open_clip gives random weights and only logs that a checkpoint cannot be fetched.
    if kind == "hf-hub":
        return open_clip.create_model(source, require_pretrained=True), open_clip.get_tokenizer(source)
    architecture, _, tag = source.rpartition("/")
    architecture = architecture.replace("/", "-")
    published = open_clip.get_pretrained_cfg(architecture, tag)
    if not published:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none, as it is no architecture"
        raise ModelError(f"open_clip has no {tag!r} of {architecture!r}; tags: {tags}")
    network = open_clip.create_model(
        architecture,
        tag,
        force_quick_gelu=published.get("quick_gelu", False),  # OpenAI's weights need it, the architectures have GELU
        require_pretrained=True,
    )
    return network, open_clip.get_tokenizer(architecture)


def _load_local_checkpoint(model_id: str, folder: Path) -> tuple[Any, Callable[[list[str]], Tensor]]:
    """The network and the tokenizer in a folder. Raises FileNotFoundError or ValueError where it is not complete."""
    import open_clip

    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"there is no {WEIGHTS} in {folder}")
    check_checksums(folder)
    network = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    vocabulary = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("vocabulary")
    if vocabulary is None:
        return network, tokenizer
    are_tokens = all(type(token) is int and token >= 0 for token in vocabulary)
    if not are_tokens or len(vocabulary) != network.vocab_size or vocabulary != sorted(set(vocabulary)):
        raise ValueError(f"vocabulary in {CONFIG} must be {network.vocab_size} ascending ids, as vocab_size says")
    return network, CutTokenizer(tokenizer, tuple(vocabulary), model_id)
