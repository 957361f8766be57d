"""A second device on a machine that has none: tensors that say they are on a GPU, and refuse those that are not.

Values are computed on the CPU, so that a run can be compared with one that never left it. As on a real GPU, an
operation on tensors of both devices is an error, but for numbers (tensors without dimensions) from the CPU. What makes
the processor wait for the device is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import comfy.model_management
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

# Torch lets Python stand in for one kind of device that it was not built with.
backend_registration._setup_privateuseone_for_python_backend("second")
torch.second.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]  # checkpointed blocks ask for it
GPU = torch.device("second", 0)
CPU = torch.device("cpu")
_aten = torch.ops.aten
# These read values on the processor, which has to wait until the GPU has computed them.
_READS = (_aten._local_scalar_dense, _aten.equal, _aten.nonzero, _aten.is_nonzero, _aten.masked_select)


class OnGpu(torch.Tensor):
    """A tensor that says it is on `GPU`; `inner` on the CPU holds its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnGpu:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, layout=inner.layout, device=GPU
        )
        made.inner = inner
        return made

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, other: OnGpu) -> None:
        self.inner = other.inner  # torch's own would put other memory below this object, and leave what it holds

    def tolist(self) -> Any:
        return self.cpu().tolist()  # torch does not read a tensor of another class

    def __repr__(self) -> str:
        return f"OnGpu({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of the second device is used outside of it")


class SecondDevice(TorchDispatchMode):
    """While entered, `GPU` can be computed on.

    Attributes:
        waits: names of the operations that made the processor wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func.overloadpacket is _aten._has_compatible_shallow_copy_type:
            return False  # modules then get another parameter when they move, instead of other data in the same
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
        # There, operations made of others arrive whole.
        if torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in tensors):
            with self:
                made_of_others = func.decompose(*args, **kwargs)
            if made_of_others is not NotImplemented:
                return made_of_others
        here = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
        target = self._target(func, args, kwargs, bool(here))
        if "device" in kwargs:
            kwargs["device"] = CPU
        overload = func.overloadpacket
        moves = overload in (_aten._to_copy, _aten.copy_)
        if here and not moves:
            self._refuse_mixed(func, tensors)
        if overload in _READS and here:
            self.waits.append(str(func))
        if moves and self._crosses(func, args, target):
            self.waits.append(f"{func} to {target}")
        if overload is _aten._fused_sdp_choice:
            return 0  # the plain way: the others have kernels for each device
        inner_args, inner_kwargs = tree_map_only(OnGpu, lambda t: t.inner, (args, kwargs))
        out = func(*inner_args, **inner_kwargs)
        if func._schema.is_mutable and args and isinstance(args[0], torch.Tensor):
            return args[0]
        if target != GPU:
            return out
        # What looks at a tensor that was made outside of inference mode is not of it, either.
        of_inference = torch.is_inference_mode_enabled() and not (func.is_view and not here[0].is_inference())
        with torch.inference_mode(of_inference):
            return tree_map_only(torch.Tensor, OnGpu, out)

    @staticmethod
    def _target(func: Any, args: tuple, kwargs: dict[str, Any], here: bool) -> torch.device:
        """Where the result lies."""
        if func.overloadpacket is _aten.copy_:
            return args[0].device
        return torch.device(kwargs.get("device") or (GPU if here else CPU))

    @staticmethod
    def _refuse_mixed(func: Any, tensors: list[torch.Tensor]) -> None:
        strangers = [t for t in tensors if not isinstance(t, OnGpu) and t.ndim > 0]
        # Indices may come from the CPU; a GPU fetches them, and the processor waits.
        if strangers and func.overloadpacket not in (_aten.index, _aten.index_put_):
            raise RuntimeError(f"{func}: tensors on {GPU} and on the CPU, of shape {tuple(strangers[0].shape)}")

    @staticmethod
    def _crosses(func: Any, args: tuple, target: torch.device) -> bool:
        source = args[1] if func.overloadpacket is _aten.copy_ else args[0]
        return isinstance(source, torch.Tensor) and source.device.type != target.type


@contextmanager
def second_device(free: int = 2**40) -> Iterator[SecondDevice]:
    """A machine with one GPU that has so many bytes free.

    What torch asks a driver for is answered here; the host's own decisions stay the host's, whose models leave at the
    end.
    """
    nothing_used = {"active_bytes.all.current": 0, "reserved_bytes.all.current": 0}
    answers = {
        "_lazy_init": lambda: None,
        "memory_stats": lambda device=None: nothing_used,
        "mem_get_info": lambda device=None: (free, free),
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_properties": lambda device=None: mock.Mock(total_memory=free, major=9, minor=0),
    }
    lifted_alone = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # numbers become a tensor on the CPU, which then moves where it should be
    try:
        with mock.patch.multiple(torch.cuda, **answers), SecondDevice() as device:
            yield device
            comfy.model_management.unload_all_models()
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted_alone)
