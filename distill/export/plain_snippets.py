"""Lines for the model card that need neither torch nor torchvision: Pillow, numpy, tokenizers and onnxruntime."""

from __future__ import annotations

from typing import Any

from open_clip.utils import to_2tuple

from clip_models import LoadedModel
from distill.export.compare import has_text, scale_and_bias
from distill.export.snippets import PICTURE, TEXTS, embedded


def onnx(loaded: LoadedModel) -> list[str]:
    texts = [] if has_text(loaded.model) else ["text_features = numpy.asarray(texts)"]
    return [
        "import onnxruntime",
        *plain_images(loaded),
        *(plain_texts() if has_text(loaded.model) else embedded(loaded)),
        *_run("image_encoder.onnx", "images", "images", "image_features"),
        *(texts or _run("text_encoder.onnx", "tokens", "tokens", "text_features")),
        *probabilities(loaded),
    ]


def transformers_js(loaded: LoadedModel) -> list[str]:
    return [
        "import onnxruntime",
        *plain_images(loaded),
        *plain_texts(),
        *_run("onnx/vision_model.onnx", "pixel_values", "images", "image_features"),
        *_run("onnx/text_model.onnx", "input_ids", "tokens", "text_features"),
        *probabilities(loaded),
    ]


def immich(loaded: LoadedModel) -> list[str]:
    """One text at a time, as Immich runs it."""
    return [
        "import onnxruntime",
        *plain_images(loaded),
        *plain_texts("textual/tokenizer.json", "numpy.int32"),
        'visual = onnxruntime.InferenceSession("visual/model.onnx")',
        '(image_features,) = visual.run(None, {"image": images})',
        'textual = onnxruntime.InferenceSession("textual/model.onnx")',
        'rows = [textual.run(None, {"text": tokens[at : at + 1]})[0] for at in range(len(tokens))]',
        "text_features = numpy.concatenate(rows)",
        *probabilities(loaded),
    ]


def coreml(loaded: LoadedModel) -> list[str]:
    """On a Mac."""
    encoded = [
        'text_encoder = coremltools.models.MLModel("text_encoder.mlpackage")',
        'rows = [text_encoder.predict({"prompt": tokens[at : at + 1]})["embedding"] for at in range(len(tokens))]',
        "text_features = numpy.concatenate(rows)",
    ]
    return [
        "import coremltools",
        *plain_images(loaded),
        *(plain_texts(kind="numpy.int32") if has_text(loaded.model) else embedded(loaded)),
        'image_encoder = coremltools.models.MLModel("image_encoder.mlpackage")',
        'image_features = image_encoder.predict({"image": images})["embedding"]',
        *(encoded if has_text(loaded.model) else ["text_features = numpy.asarray(texts)"]),
        *probabilities(loaded),
    ]


def executorch(loaded: LoadedModel) -> list[str]:
    encoded = [
        'text_encoder = runtime.load_program("text_encoder.pte").load_method("forward")',
        "rows = [text_encoder.execute([row[None]])[0].numpy().copy() for row in torch.from_numpy(tokens)]",
        "text_features = numpy.concatenate(rows)",
    ]
    return [
        "import torch",
        "from executorch.runtime import Runtime",
        *plain_images(loaded),
        *(plain_texts() if has_text(loaded.model) else embedded(loaded)),
        "runtime = Runtime.get()",
        'image_encoder = runtime.load_program("image_encoder.pte").load_method("forward")',
        "image_features = image_encoder.execute([torch.from_numpy(images)])[0].numpy()",
        *(encoded if has_text(loaded.model) else ["text_features = numpy.asarray(texts)"]),
        *probabilities(loaded),
    ]


def _run(file: str, takes: str, given: str, result: str) -> list[str]:
    name = file.rpartition("/")[2].partition(".")[0]
    return [
        f'{name} = onnxruntime.InferenceSession("{file}")',
        f'({result},) = {name}.run(None, {{"{takes}": {given}}})',
    ]


def plain_images(loaded: LoadedModel) -> list[str]:
    """Lines that end with `images` (1, 3, h, w) float32, as `distill.use.pixels.preprocessed` makes them."""
    settings: dict[str, Any] = loaded.config["preprocess_cfg"]
    height, width = to_2tuple(settings["size"])
    mode = settings["resize_mode"]
    by_torchvision = mode == "shortest" and height == width
    kind = "BICUBIC"
    if settings["interpolation"] == "bilinear" and (mode != "shortest" or by_torchvision):
        kind = "BILINEAR"
    resize = f"image = image.resize({{}}, Image.Resampling.{kind})"
    lines = ["import numpy", "from PIL import Image", f'image = Image.open("{PICTURE}")']
    if mode == "squash":
        lines.append(resize.format(f"({width}, {height})"))
    elif by_torchvision:
        sides = f"(int({width} * image.width / shorter), int({width} * image.height / shorter))"
        lines += ["shorter = min(image.size)", resize.format(sides)]
    else:
        chosen = "max" if mode == "longest" else "min"
        lines += [
            f"ratio = {chosen}(image.width / {width}, image.height / {height})",
            resize.format("(round(image.width / ratio), round(image.height / ratio))"),
        ]
    if mode == "longest":
        lines += [
            f"across, down = {width} - image.width, {height} - image.height",
            "border = across // 2, down // 2, (across + 1) // 2, (down + 1) // 2",
            f'image = ImageOps.expand(image.convert("RGB"), border, ({settings.get("fill_color", 0)},) * 3)',
        ]
        lines[1] = "from PIL import Image, ImageOps"
    elif mode != "squash":
        lines += [
            f"left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)",
            f"image = image.crop((left, top, left + {width}, top + {height}))",
        ]
    return [
        *lines,
        'pixels = numpy.asarray(image.convert("RGB"), numpy.float32).transpose(2, 0, 1) / 255',
        f"mean = numpy.array({settings['mean']}, numpy.float32)[:, None, None]",
        f"deviation = numpy.array({settings['std']}, numpy.float32)[:, None, None]",
        "images = ((pixels - mean) / deviation)[None]",
    ]


def plain_texts(file: str = "tokenizer.json", kind: str = "numpy.int64") -> list[str]:
    """Lines that end with `tokens` (2, context_length)."""
    return [
        "from tokenizers import Tokenizer",
        f'tokenizer = Tokenizer.from_file("{file}")',
        f"tokens = numpy.array([text.ids for text in tokenizer.encode_batch({TEXTS})], {kind})",
    ]


def probabilities(loaded: LoadedModel) -> list[str]:
    scale, bias = scale_and_bias(loaded.model)
    added = f" + {bias:.9g}" if bias else ""
    return [
        f"logits = {scale:.9g} * image_features @ text_features.T{added}",
        "likely = numpy.exp(logits - logits.max())",
        "probabilities = likely / likely.sum()",
    ]
