"""A method of a host with a function around it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import CodeType
from typing import Any

from torch import nn

from learn_rank.errors import InputError

# makes the signature of a wrapped method from its own and from the module that it belongs to
NewSignature = Callable[[inspect.Signature, nn.Module], inspect.Signature]


class Method:
    """Stands for a method of a module and can be called, copied, pickled and inspected like it.

    A call returns around(owner, own, ...), where own is the original method.
    """

    def __init__(
        self, owner: nn.Module, name: str, around: Callable[..., Any], *, signature: NewSignature | None = None
    ) -> None:
        self.owner, self.name = owner, name
        self._around, self._new_signature = around, signature
        self._replaced = owner.__dict__.get(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._around(self.owner, self._own(), *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        # trainers choose the columns of a batch by the parameter names of forward
        signature = inspect.signature(self._own())
        return signature if self._new_signature is None else self._new_signature(signature, self.owner)

    @property
    def __code__(self) -> CodeType:
        # torch.export asks where a forward was written
        around = self._around.func if isinstance(self._around, partial) else self._around
        return around.__code__

    def undo(self) -> None:
        if self.owner.__dict__.get(self.name) is not self:
            raise InputError(
                f"{type(self.owner).__name__}.{self.name} was wrapped by something else after attach; "
                "undo that before detach"
            )
        delattr(self.owner, self.name)
        if self._replaced is not None:
            setattr(self.owner, self.name, self._replaced)

    def _own(self) -> Callable[..., Any]:
        # looked up at each call: a bound method kept here would be pickled as this object
        return partial(getattr(type(self.owner), self.name), self.owner) if self._replaced is None else self._replaced
