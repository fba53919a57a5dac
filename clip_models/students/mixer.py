"""The image towers of teensy-tiny-clip, under names that timm's `create_model` knows."""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from timm.models.mlp_mixer import MlpMixer
from torch import nn

_PATCHES, _WIDTH = (224 // 16) ** 2, 512


def _mixer(blocks: int, **given: Any) -> MlpMixer:
    """MLP-Mixer (Tolstikhin et al., 2021, arXiv 2105.01601) on 224 pixels in patches of 16, as the reference sizes it.

    Hidden units: 4 x patches in the MLP over tokens, half the width in the one over channels; norms come first, the
    tokens' mean goes out. Norms have torch's eps, 1e-5, where timm's mixer says 1e-6. The reference does not publish
    width and depth; these have its numbers of parameters.
    """
    # timm's factory hands on what concerns pretrained weights, of which there are none.
    options = {name: given[name] for name in given if not name.startswith("pretrained") and name != "cache_dir"}
    # timm counts both hidden widths in units of the width.
    ratios = (4 * _PATCHES / _WIDTH, 0.5)
    options = {"norm_layer": nn.LayerNorm, **options}
    mixer: Any = MlpMixer(patch_size=16, num_blocks=blocks, embed_dim=_WIDTH, mlp_ratio=ratios, **options)
    mixer.default_cfg = {}
    whole: MlpMixer = mixer
    return whole


@register_model
def clip_mixer_4m(**given: Any) -> MlpMixer:
    """4.03 M parameters with its projection to 384."""
    return _mixer(6, **given)


@register_model
def clip_mixer_5m(**given: Any) -> MlpMixer:
    """5.18 M parameters with its projection to 384."""
    return _mixer(8, **given)
