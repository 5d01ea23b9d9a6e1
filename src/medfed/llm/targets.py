"""Where experts sit: every linear map of attention and MLP inside the decoder layers of F (FedKIM Eq. 5).

They are found by structure, never by a list of names, so a new architecture needs no line here. A decoder's layers are
its outermost containers of blocks; what lies outside (embeddings, head, a picture tower beside the decoder) is left
alone. Quantised linear maps are subclasses of ``nn.Linear`` and count.

A mixture of experts of the LLM's own keeps its router: a linear map that stands beside a bank of experts decides where
a token goes, and is no projection. A bank held as one tensor has no linear maps and stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from medfed.core.errors import StudyError

Containers = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def projections(model: nn.Module) -> list[str]:
    """Return the names of the linear maps inside the decoder layers: attention and MLP, neither embeddings nor head.

    Raises:
        StudyError: the model has none.
    """
    outside = {id(part) for part in (_embeddings(model, "input"), _embeddings(model, "output")) if part is not None}
    names: list[str] = []
    for name, layers in _layers(model):
        names += [
            f"{name}.{inner}"
            for inner, module in layers.named_modules()
            if isinstance(module, nn.Linear)
            and id(module) not in outside
            and not _beside_experts(layers.get_submodule(inner.rpartition(".")[0]))
        ]
    if not names:
        raise StudyError(f"no linear projections in the layers of {type(model).__name__}", hint="use another LLM")
    return names


def target_modules(model: nn.Module) -> list[str]:
    """Return names by which PEFT finds exactly the :func:`projections`.

    PEFT takes a name for every module whose name ends with it, so a leaf name such as ``up_proj`` serves only if no
    other module of the model has it too, such as one of a picture tower; else the whole names are given.
    """
    wanted = set(projections(model))
    taken = {name.rpartition(".")[2] for name, _ in model.named_modules() if name not in wanted}
    leaves = {name: name.rpartition(".")[2] for name in wanted}
    return sorted({name if leaf in taken else leaf for name, leaf in leaves.items()})


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the decoder's outermost containers of blocks, by name."""
    decoder = _decoder(model)
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    found: list[str] = []
    for inner, module in decoder.named_modules():
        if isinstance(module, Containers) and not any(inner.startswith(f"{outer}.") for outer in found):
            found.append(inner)
            yield ".".join(part for part in (prefix, inner) if part), module


def _decoder(model: nn.Module) -> nn.Module:
    """Return the text decoder of a transformers model, which may have towers of other modalities beside it."""
    get = getattr(model, "get_decoder", None)
    decoder = get() if callable(get) else None
    return decoder if isinstance(decoder, nn.Module) else model


def _embeddings(model: nn.Module, side: str) -> nn.Module | None:
    get = getattr(model, f"get_{side}_embeddings", None)
    module = get() if callable(get) else None
    return module if isinstance(module, nn.Module) else None


def _beside_experts(parent: nn.Module) -> bool:
    """Whether one of the module's children is a bank of experts: one tensor for all, or several of the same shapes."""
    return any(_is_bank(child) for child in parent.children())


def _is_bank(module: nn.Module) -> bool:
    if any(value.dim() == 3 for value in module.parameters(recurse=False)):
        return True
    if not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return False
    members = [[value.shape for value in member.parameters()] for member in module.children()]
    blocks = all(len(list(member.children())) for member in module.children())
    return blocks and len(members) > 1 and all(shapes == members[0] for shapes in members)
