"""The linear maps that carry experts: those of attention and MLP inside the decoder layers of F (FedKIM Eq. 5).

The model's structure gives them, not a list of names, so a new architecture needs no line here. A decoder's layers are
its outermost containers of blocks. Everything outside (embeddings, head, a picture tower next to the decoder) stays
as it is. Quantised linear maps are subclasses of ``nn.Linear`` and count.

The router of an LLM's own mixture of experts is no projection: it is the linear map next to a bank of experts. A bank
held as one tensor has no linear maps and stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from medfed.core.errors import StudyError

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def target_modules(model: nn.Module) -> list[str]:
    """Return names by which PEFT finds exactly the :func:`projections`.

    A name stands for every module whose name ends with it. A leaf name such as ``up_proj`` therefore serves only if no
    other module has it, such as one of a picture tower. Else the full names are given.
    """
    wanted = set(projections(model))
    taken = {name.rpartition(".")[2] for name, _ in model.named_modules() if name not in wanted}
    leaves = {name: name.rpartition(".")[2] for name in wanted}
    return sorted({name if leaf in taken else leaf for name, leaf in leaves.items()})


def projections(model: nn.Module) -> list[str]:
    """Return the names of the decoder layers' linear maps, attention and MLP; raise StudyError if there are none."""
    outside = [_call(model, f"get_{side}_embeddings") for side in ("input", "output")]
    names = [
        f"{name}.{inner}"
        for name, layers in _layers(model)
        for inner, module in layers.named_modules()
        if isinstance(module, nn.Linear)
        and not any(module is part for part in outside)
        and not any(_is_bank(sibling) for sibling in layers.get_submodule(inner.rpartition(".")[0]).children())
    ]
    if not names:
        raise StudyError(f"no linear projections in the layers of {type(model).__name__}", hint="use another LLM")
    return names


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost containers of blocks of the text decoder, by name."""
    decoder = _call(model, "get_decoder") or model
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    outer: list[str] = []
    for inner, module in decoder.named_modules():
        if isinstance(module, _CONTAINERS) and not any(inner.startswith(f"{name}.") for name in outer):
            outer.append(inner)
            yield ".".join(part for part in (prefix, inner) if part), module


def _call(model: nn.Module, getter: str) -> nn.Module | None:
    """Return the part that a transformers model's ``getter`` returns; None without it."""
    get = getattr(model, getter, None)
    part = get() if callable(get) else None
    return part if isinstance(part, nn.Module) else None


def _is_bank(module: nn.Module) -> bool:
    """Return whether a module is a bank of experts: one tensor for all, or several of the same shapes."""
    members = list(module.children()) if isinstance(module, nn.ModuleList | nn.ModuleDict) else []
    blocks = len(members) > 1 and all(list(member.children()) for member in members)
    shapes = [[value.shape for value in member.parameters()] for member in members]
    alike = blocks and all(some == shapes[0] for some in shapes)
    return alike or any(value.dim() == 3 for value in module.parameters(recurse=False))
