"""Turn a GGUF file of a causal LM into a folder that transformers reads: any architecture that it reads from GGUF.

transformers loads such a file whole in float32 and does not save it again. Its configuration, names and layouts are
used here too, a tensor at a time. The library ``gguf`` dequantises it. Then it is checked, rounded to the dtype and
written to a shard. The result equals transformers' own, tensor by tensor, in a fraction of the memory.

An output layer that equals the embedding after dequantisation is tied to it; another one is kept apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from jaxtyping import Float, Shaped
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig
from transformers.integrations.gguf import is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)

from medfed.core.diagnosis import installing
from medfed.core.errors import StudyError
from medfed.core.files import PUBLIC
from medfed.core.progress import Advance
from medfed.llm.checkpoints import INDEX
from medfed.llm.obtain.gguf_tokenizers import Vocabulary, end_tokens, read_vocabulary, write_tokenizer
from medfed.llm.obtain.known import Dtype

_VALUES_AT_ONCE = 300_000
"""Values that are dequantised together: few enough for a core's cache, where it is four times as fast."""

_SHARD_BYTES = 600 * 2**20
_SMALL = 500_000_000
"""Up to so many parameters the weights are written in float32, which rounds nothing."""

_OUTPUT, _EMBEDDING = "output.weight", "token_embd.weight"
_ARCHITECTURE, _LICENCE = "general.architecture", "general.license"
_AGAIN = "fetch the file again"


class StoredTensor(NamedTuple):
    """A tensor as the file stores it: where its blocks are.

    Attributes:
        name: llama.cpp's.
        kind: of its blocks.
        offset: bytes from the start of the file.
        stored: shape of the array of blocks, in ``dtype``.
        dtype: of that array.
        num_values: after dequantisation.
    """

    name: str
    kind: GGMLQuantizationType
    offset: int
    stored: tuple[int, ...]
    dtype: np.dtype[Any]
    num_values: int


class Header(NamedTuple):
    """The facts in a GGUF file.

    Attributes:
        architecture: by llama.cpp's name.
        licence: as its writers state it.
        tensors: by llama.cpp's name, in the order of the file.
        vocabulary: of its tokenizer.
    """

    architecture: str
    licence: str | None
    tensors: dict[str, StoredTensor]
    vocabulary: Vocabulary


class Converted(NamedTuple):
    """The result of a conversion.

    Attributes:
        num_parameters: of the LLM, a tied output layer counted once.
        dtype: of the weights.
        tied: the output layer is the embedding.
        licence: as the file states it.
    """

    num_parameters: int
    dtype: str
    tied: bool
    licence: str | None


@dataclass
class _Shards:
    """Weights on their way to safetensors files, which together have an index.

    Attributes:
        folder: the files go here.
        places: tensor → number of its file.
        num_bytes: written.
    """

    folder: Path
    places: dict[str, int] = field(default_factory=dict)
    num_bytes: int = 0
    _waiting: dict[str, Tensor] = field(default_factory=dict)
    _count: int = 0

    def add(self, name: str, value: Tensor) -> None:
        if sum(waiting.nbytes for waiting in self._waiting.values()) + value.nbytes > _SHARD_BYTES:
            self._write()
        self._waiting[name] = value

    def close(self) -> None:
        """Write the rest, number the files, and write their index; one file alone needs none."""
        self._write()
        if self._count == 1:
            (self.folder / "1").rename(self.folder / "model.safetensors")
            return
        names = {number: f"model-{number:05d}-of-{self._count:05d}.safetensors" for number in range(1, self._count + 1)}
        for number, name in names.items():
            (self.folder / str(number)).rename(self.folder / name)
        places = {name: names[number] for name, number in sorted(self.places.items())}
        index = {"metadata": {"total_size": self.num_bytes}, "weight_map": places}
        (self.folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")

    def _write(self) -> None:
        if not self._waiting:
            return
        self._count += 1
        path = self.folder / str(self._count)
        save_file(self._waiting, path, metadata={"format": "pt"})
        path.chmod(PUBLIC)
        self.places |= dict.fromkeys(self._waiting, self._count)
        self.num_bytes += sum(value.nbytes for value in self._waiting.values())
        self._waiting = {}


def convert_gguf(source: Path, folder: Path, dtype: Dtype | None, advance: Advance) -> Converted:
    """Write the LLM in the GGUF file ``source`` to the empty folder ``folder``: weights, configuration and tokenizer.

    Args:
        source: the file.
        folder: it should vanish if this fails.
        dtype: of the weights; by default float32 for a small LLM, else bfloat16.
        advance: called with the millions of parameters that are converted, and all.

    Raises:
        StudyError: it is no whole GGUF file; its architecture or tokenizer cannot be used; or a tensor is missing,
            unknown, of another shape, or not finite.
    """
    header = read_header(source)
    tensors, architecture = dict(header.tensors), header.architecture
    config, parsed = _config(source, architecture)
    whole = sum(tensor.num_values for tensor in tensors.values())
    chosen = dtype or ("float32" if whole <= _SMALL else "bfloat16")
    if not config.tie_word_embeddings and _same(source, tensors.get(_OUTPUT), tensors.get(_EMBEDDING)):
        config.tie_word_embeddings = True
        del tensors[_OUTPUT]
    tokenizer = write_tokenizer(source, header.vocabulary, folder)
    shards = _Shards(folder)
    model = _without_weights(config, source)
    expected, written = _expected(model), set[str]()
    if is_gguf_arch_supported(architecture):
        weights = _loaded_whole(source)
    else:
        processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=parsed)
        weights = _streamed(source, tensors, model, processor, advance)
    for name, value in weights:
        if name not in expected:
            continue  # an output layer that the architecture ties to the embedding
        _require_shape(name, value, expected[name], source)
        shards.add(name, value.to(getattr(torch, chosen)).contiguous())
        written.add(name)
    if missing := sorted(expected.keys() - written):
        raise StudyError(f"is missing ({len(missing)} such)", where=f"{source}: tensor {missing[0]!r}", hint=_AGAIN)
    shards.close()
    _write_config(model, chosen, end_tokens(tokenizer), folder)
    number = sum(shape.numel() for shape in expected.values())
    return Converted(number, chosen, bool(config.tie_word_embeddings), header.licence)


def read_header(source: Path) -> Header:
    """Return what a GGUF file says of itself and where its tensors are.

    Raises:
        StudyError: it is no GGUF file, or its end is missing.
    """
    try:
        reader = GGUFReader(source)
        architecture = reader.fields[_ARCHITECTURE].contents()
        tensors = {
            tensor.name: StoredTensor(
                tensor.name,
                tensor.tensor_type,
                tensor.data_offset,
                tensor.data.shape,
                tensor.data.dtype,
                int(tensor.n_elements),
            )
            for tensor in reader.tensors
        }
        return Header(architecture, _text(reader, _LICENCE), tensors, read_vocabulary(reader))
    except (ValueError, KeyError, IndexError, OSError) as error:
        what = f"not a whole GGUF file: {str(error).strip() or type(error).__name__}"
        raise StudyError(what, where=source, hint=_AGAIN) from error


def _text(reader: GGUFReader, key: str) -> str | None:
    return str(reader.fields[key].contents()) if key in reader.fields else None


def _config(source: Path, architecture: str) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """Return the configuration, and the fields that transformers' tensor processors read."""
    if is_gguf_arch_supported(architecture):
        config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
        return config, config.to_dict()
    try:
        parsed = load_gguf_checkpoint(str(source), return_tensors=False)["config"]
        return AutoConfig.for_model(**parsed), parsed
    except (KeyError, TypeError, ValueError) as error:
        what = f"transformers does not read a GGUF file of the architecture {architecture!r}: {error}"
        raise StudyError(what, where=source, hint="use the LLM's safetensors") from error


def _without_weights(config: PreTrainedConfig, source: Path) -> nn.Module:
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise StudyError(f"no causal LM: {config.model_type}", where=source, hint="use a causal LM") from error
    return model


def _expected(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shape of every tensor that a checkpoint of ``model`` holds, by name."""
    tied = getattr(model, "_tied_weights_keys", None) or {}
    left_out = set(tied) if model.config.tie_word_embeddings else set()  # type: ignore[union-attr]
    return {name: value.shape for name, value in model.state_dict().items() if name not in left_out}


def _streamed(
    source: Path,
    tensors: Mapping[str, StoredTensor],
    model: nn.Module,
    processor: TensorProcessor,
    advance: Advance,
) -> Iterator[tuple[str, Float[Tensor, "..."]]]:
    """Yield transformers' name and the weights of every tensor, as its own loader lays them out."""
    names = get_gguf_hf_weights_map(model, processor)
    gathered: dict[str, dict[str, Tensor]] = {"tensors": {}}
    total, done = sum(tensor.num_values for tensor in tensors.values()), 0
    for tensor in tensors.values():
        made = processor.process(
            weights=dequantised(source, tensor),
            name=tensor.name,
            tensor_key_mapping=names,
            parsed_parameters=gathered,
        )
        done += tensor.num_values
        advance(done // 10**6, total // 10**6)
        if made.name is None or made.name in gathered["tensors"]:
            continue  # it is yielded at the end: experts of a layer, which several tensors of the file make up
        if made.name not in names:
            raise StudyError(
                "it is none of those that transformers reads",
                where=f"{source}: tensor {made.name!r}",
                hint="its values would be lost; use the LLM's safetensors",
            )
        yield names[made.name], torch.from_numpy(np.ascontiguousarray(made.weights))
    yield from gathered["tensors"].items()


def _loaded_whole(source: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights as transformers loads them, all at once: its way for a few architectures."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except ImportError as error:
        first = str(error).strip().split("\n")[0]
        raise StudyError(first, where=source, hint=installing("quantised")) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            what = f"is among its {kind.replace('_', ' ')} ({len(report[kind])} such)"
            raise StudyError(what, where=f"{source}: tensor {min(report[kind])!r}", hint=_AGAIN)
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise StudyError("not all of it is finite", where=f"{source}: tensor {name!r}", hint=_AGAIN)
        yield name, value


def _rows_of(tensor: StoredTensor) -> int:
    """Return how many rows of blocks a tensor has; of a vector, its values."""
    return math.prod(tensor.stored[:-1]) if len(tensor.stored) > 1 else tensor.stored[0]


def _blocks(source: Path, tensor: StoredTensor) -> Iterator[tuple[slice, Float[np.ndarray, "..."]]]:
    """Yield the rows of a tensor and their values in float32, a few rows at a time."""
    rows = _rows_of(tensor)
    stored = np.memmap(source, tensor.dtype, "r", tensor.offset, tensor.stored)
    flat = stored.reshape(rows, tensor.stored[-1]) if len(tensor.stored) > 1 else stored
    step = max(1, _VALUES_AT_ONCE * rows // tensor.num_values)
    for start in range(0, rows, step):
        some = slice(start, min(start + step, rows))
        values = dequantize(np.array(flat[some]), tensor.kind)
        if not np.isfinite(values).all():
            raise StudyError("not all of it is finite", where=f"{source}: tensor {tensor.name!r}", hint=_AGAIN)
        yield some, values


def dequantised(source: Path, tensor: StoredTensor) -> Float[np.ndarray, "..."]:
    """Return the values of a tensor in float32.

    Raises:
        StudyError: one is not finite.
    """
    rows = _rows_of(tensor)
    values = np.empty((rows, tensor.num_values // rows), np.float32)
    for some, part in _blocks(source, tensor):
        values[some] = part.reshape(len(part), -1)
    return values.reshape(*tensor.stored[:-1], -1) if len(tensor.stored) > 1 else values.reshape(-1)


def _same(source: Path, one: StoredTensor | None, other: StoredTensor | None) -> bool:
    """Whether two tensors are equal after dequantisation."""
    if one is None or other is None or one.num_values != other.num_values:
        return False
    pairs = zip(_blocks(source, one), _blocks(source, other), strict=False)
    return all(left.shape == right.shape and bool((left == right).all()) for (_, left), (_, right) in pairs)


def _require_shape(name: str, value: Shaped[Tensor, "..."], expected: torch.Size, source: Path) -> None:
    if value.shape != expected:
        what = f"its shape is {tuple(value.shape)}, and the configuration says {tuple(expected)}"
        raise StudyError(what, where=f"{source}: tensor {name!r}", hint=_AGAIN)


def _write_config(model: nn.Module, dtype: str, ends: list[int], folder: Path) -> None:
    """Write configuration and generation defaults; all tokens that end a turn or a text end an answer."""
    config: Any = model.config
    config.dtype, config.architectures = dtype, [type(model).__name__]
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(folder)
    ids = {"bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id}
    GenerationConfig(**ids, eos_token_id=ends).save_pretrained(folder)
