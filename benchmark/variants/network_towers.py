"""The towers of a network: a timm transformer block by block, another timm network as one block, and the two towers of
a vision-language model.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from timm.layers import Attention
from timm.models import swin_transformer, swin_transformer_v2
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmark.models.model import Model
from benchmark.models.towers import Matrix, Tower
from benchmark.models.zero_shot import ZeroShotClassifier

PRE_NORM = (Block, SwinTransformerBlock)
POST_NORM = (ResPostBlock, SwinTransformerV2Block)
ATTENTION = (Attention, swin_transformer.WindowAttention, swin_transformer_v2.WindowAttention)
MATRICES = {"up": "mlp.fc1.weight", "down": "mlp.fc2.weight", "output": "attn.proj.weight"}
FUSED = ("query", "key", "value")


def towers_of(model: Model) -> dict[str, Tower]:
    """The towers of a network, by name: "vision", and "text" for a vision-language model.

    Raises ValueError for a vision-language model whose towers cannot be run block by block.
    """
    if isinstance(model, ZeroShotClassifier):
        return {"vision": model.vision_tower(), "text": model.text_tower()}
    return {"vision": vision_tower(model.network)}


def vision_tower(network: nn.Module) -> Tower:
    """The tower of a timm network.

    ViT, Swin, Swin v2 and ConvNeXt are taken block by block, through all stages. Only these exact types are recognised,
    since a subclass may compute something else.

    Any other network is one block, with all of its matrices, from input to output. These are the matrices of its MLPs.
    Where it has no MLPs, they are the kernels of its ungrouped convolutions, as "up", without the first convolution,
    which takes the image. This is our reading of SeTAR's experiment on ResNet-50.

    A transformer has local features where three conditions hold. Its blocks are pre-norm or post-norm; its attention
    has no gate and one fused projection; its features are a token or the mean of tokens. Local features are what the
    value path of the last block gives. Other networks have none.
    """
    if type(network) is VisionTransformer:
        return _vision_transformer_tower(network)
    if type(network) is SwinTransformer or type(network) is SwinTransformerV2:
        return _swin_tower(network)
    if type(network) is ConvNeXt:
        return _convnext_tower(network)
    return _one_block_tower(network)


def _vision_transformer_tower(network: VisionTransformer) -> Tower:
    def start(images: Tensor) -> Tensor:
        return network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(images))))

    def features(last: Tensor) -> Tensor:
        return network.forward_head(network.norm(last), pre_logits=True)

    def local_features(last: Tensor) -> Tensor:
        return network.fc_norm(network.norm(last)[:, network.num_prefix_tokens :])

    names = [f"blocks.{index}" for index in range(len(network.blocks))]
    pooled = network.attn_pool is None and network.global_pool in ("token", "avg")
    return _tower_of_blocks(network, names, start, features, local_features if pooled else None)


def _swin_tower(network: SwinTransformer | SwinTransformerV2) -> Tower:
    def features(last: Tensor) -> Tensor:
        return network.forward_head(network.norm(last), pre_logits=True)

    def local_features(last: Tensor) -> Tensor:
        return network.norm(last).flatten(1, 2)

    names = _blocks_of_stages(network, "layers")
    pooled = network.global_pool == "avg"
    return _tower_of_blocks(network, names, network.patch_embed, features, local_features if pooled else None)


def _convnext_tower(network: ConvNeXt) -> Tower:
    def features(last: Tensor) -> Tensor:
        return network.forward_head(network.norm_pre(last), pre_logits=True)

    return _tower_of_blocks(network, _blocks_of_stages(network, "stages"), network.stem, features, None)


def _one_block_tower(network: nn.Module) -> Tower:
    def finish(images: Tensor, hidden: Tensor) -> tuple[Tensor, None]:
        return network.forward_head(network.forward_features(hidden), pre_logits=True), None  # type: ignore[operator]

    def block(index: int, hidden: Tensor) -> Tensor:
        raise AssertionError("a tower of one block has no block before the last one")

    def matrices_ending_in(name: str) -> tuple[Matrix, ...]:
        return tuple(Matrix(tensor) for tensor, _ in network.named_parameters() if tensor.endswith(f".{name}"))

    matrices = {kind: matrices_ending_in(name) for kind, name in MATRICES.items()}
    if not matrices["up"]:
        convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
        ungrouped = [name for name in convolutions[1:] if network.get_submodule(name).groups == 1]
        matrices = {"up": tuple(Matrix(f"{name}.weight") for name in ungrouped)}
    return Tower("vision", 1, lambda images: images, block, finish, matrices)


def _blocks_of_stages(network: nn.Module, stages: str) -> list[str]:
    modules: Any = network.get_submodule(stages)
    return [f"{stages}.{s}.blocks.{b}" for s, stage in enumerate(modules) for b in range(len(stage.blocks))]


def _tower_of_blocks(
    network: nn.Module,
    names: Sequence[str],
    start: Callable[[Tensor], Tensor],
    features: Callable[[Tensor], Tensor],
    local_features: Callable[[Tensor], Tensor] | None,
) -> Tower:
    """The tower of a network with blocks.

    network: the network.
    names: the names of its blocks, from the input.
    start: a function from images to the input of the first block.
    features: a function from the output of the last block to the features.
    local_features: a function from the output of the value path of the last block to the local features; None where the
        network has none.
    """
    blocks = [network.get_submodule(name) for name in names]

    def block_input(index: int, hidden: Tensor) -> Tensor:
        """The input of a block. Before the first block of a stage, the downsampling is applied."""
        stage, _, position = names[index].rpartition(".blocks.")
        return network.get_submodule(f"{stage}.downsample")(hidden) if stage and position == "0" else hidden

    def block(index: int, hidden: Tensor) -> Tensor:
        return blocks[index](block_input(index, hidden))

    value_path = _value_path(blocks[-1]) if local_features else None

    def finish(images: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        last_input = block_input(len(blocks) - 1, hidden)
        local = local_features(value_path(last_input)) if local_features and value_path else None
        return features(blocks[-1](last_input)), local

    return Tower("vision", len(blocks), start, block, finish, dict(_matrices(network, names)))


def _value_path(block: Any) -> Callable[[Tensor], Tensor] | None:
    """The value path of a block: the block, with each position attending to itself only (GL-MCM's local features).

    None for a block of an unknown type.
    """
    if type(block) not in PRE_NORM + POST_NORM:
        return None
    attention: Any = block.attn
    if type(attention) not in ATTENTION or getattr(attention, "gate", None) is not None:
        return None

    def values(hidden: Tensor) -> Tensor:
        weight, bias = attention.qkv.weight, attention.qkv.bias
        width = len(weight) // 3
        # In Swin v2 the biases are not part of the projection.
        bias = getattr(attention, "v_bias", None) if bias is None else bias[-width:]
        mixed = linear(hidden, weight[-width:], bias)
        return attention.proj(attention.norm(mixed) if hasattr(attention, "norm") else mixed)

    def pre_norm(hidden: Tensor) -> Tensor:
        first, second = (getattr(block, name, nn.Identity()) for name in ("ls1", "ls2"))
        hidden = hidden + first(values(block.norm1(hidden)))
        return hidden + second(block.mlp(block.norm2(hidden)))

    def post_norm(hidden: Tensor) -> Tensor:
        hidden = hidden + block.norm1(values(hidden))
        return hidden + block.norm2(block.mlp(hidden))

    return pre_norm if type(block) in PRE_NORM else post_norm


def _matrices(network: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, tuple[Matrix, ...]]]:
    """The matrices of the blocks, by type. Types that some block lacks are left out."""
    tensors = dict(network.named_parameters())
    for kind, tensor in MATRICES.items():
        if all(f"{name}.{tensor}" in tensors for name in names):
            yield kind, tuple(Matrix(f"{name}.{tensor}") for name in names)
    fused = [f"{name}.attn.qkv.weight" for name in names]
    if all(tensor in tensors for tensor in fused):
        widths = [len(tensors[tensor]) // 3 for tensor in fused]
        for part, kind in enumerate(FUSED):
            slices = [slice(part * width, (part + 1) * width) for width in widths]
            yield kind, tuple(Matrix(*pair) for pair in zip(fused, slices, strict=True))
