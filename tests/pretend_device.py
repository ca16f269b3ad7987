"""A GPU to test with where there is none: tensors that say `cuda` and compute on the CPU.

    with Gpu() as gpu:
        model.to(DEVICE)
        loss = step(model, on_device(batch, DEVICE), optimiser)
    gpu.operations, gpu.uploads, gpu.downloads, gpu.read(loss)

Within it `.device`, `.is_cuda` and `torch.cuda.is_available()` are those of a machine with one GPU,
so that the branches for a GPU run, and autocast as on CUDA; every operation that reaches the device
is noted. What a GPU refuses fails: an operation on tensors of both devices (a CPU scalar beside a
GPU's tensor is none in arithmetic, as in CUDA; a CPU's index is one here, since CUDA sends it and
says nothing). What would make it wait fails too: a number or a list that is asked for, shapes that
depend on values, and a copy to the CPU beyond the `downloads` that are allowed.

What it cannot show: kernels are the CPU's, so cuDNN's recurrent layers are torch's own steps, and
dropout draws from the CPU's generator. C++ sees the meta device (autograd looks for a driver
otherwise), and so its own branches on CUDA do not run. Three are made here: autocast's casts, of
the operations in `LOWER`, `WIDE` and `PROMOTED`, and the fused attention and dropout, one operation
each. A device must be named with its number.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
MEMORY = 80 << 30
# What autocast does on CUDA with the operations that models here use ("CUDA Ops that can autocast"
# in torch's manual).
LOWER = "mm matmul bmm addmm baddbmm linear einsum conv1d conv2d scaled_dot_product_attention"
WIDE = (
    "softmax.int log_softmax.int layer_norm native_layer_norm group_norm sum sum.dim_IntList "
    "cumsum exp log pow.Tensor_Scalar nll_loss nll_loss_nd mse_loss "
    "binary_cross_entropy_with_logits prod logsumexp norm.Scalar"
)
PROMOTED = "cat stack addcmul index_put"
# cuDNN's, which autocast computes in float16 whatever it is told.
IN_HALF = "gru.data lstm.data gru.input lstm.input"
# What floats become before these; None: the widest of theirs.
CASTS = (
    (LOWER, torch.bfloat16),
    (WIDE, torch.float32),
    (PROMOTED, None),
    (IN_HALF, torch.half),
)


def answering(value: Any) -> Callable[..., Any]:
    """A function of `torch.cuda` that always says this."""

    def answer(*_: Any, **__: Any) -> Any:
        return value

    return answer


def cpu_rng_state(*_: Any) -> Tensor:
    """Random numbers come from the CPU's generator."""
    return torch.get_rng_state()


PATCHED = {
    "is_available": answering(True),
    "is_initialized": answering(True),
    "is_bf16_supported": answering(True),
    "device_count": answering(1),
    "current_device": answering(0),
    "set_device": answering(None),
    "mem_get_info": answering((MEMORY, MEMORY)),
    "empty_cache": answering(None),
    "synchronize": answering(None),
    "get_rng_state": cpu_rng_state,
    "set_rng_state": answering(None),
    "manual_seed_all": answering(None),
    "_lazy_init": answering(None),
}


class Pretend(Tensor):
    """A tensor on the pretend device; `inner` holds its values."""

    device = DEVICE
    is_cuda = True
    is_cpu = False
    is_meta = False
    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Pretend":
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return cls(inner)

        shape = torch.empty_strided(inner.shape, inner.stride(), dtype=inner.dtype, device="meta")
        tensor = Tensor._make_subclass(cls, shape, False, device_for_backend_keys=DEVICE)
        tensor.inner = inner
        return tensor

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"{self.inner!r} on {DEVICE}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of the pretend device is used after `with Gpu()`")


def tensors_in(nest: Any) -> list[Tensor]:
    """The tensors of an operation's arguments: `tree_leaves` takes longer than the operation."""
    if isinstance(nest, Tensor):
        return [nest]
    if isinstance(nest, dict):
        nest = nest.values()
    elif not isinstance(nest, tuple | list):
        return []

    tensors = []
    for value in nest:
        tensors += tensors_in(value)
    return tensors


def with_tensors(nest: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same arguments or results with each tensor changed."""
    if isinstance(nest, Tensor):
        return change(nest)
    if isinstance(nest, dict):
        return {name: with_tensors(value, change) for name, value in nest.items()}
    if isinstance(nest, tuple | list):
        return type(nest)([with_tensors(value, change) for value in nest])
    return nest


def inner_of(x: Any) -> Any:
    """What is computed with on the CPU; what is no tensor of the device as it is."""
    return x.inner if isinstance(x, Pretend) else x


@cache
def is_composite(func: Any) -> bool:
    """Whether the operation is made of others, on every device."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _cast(name: str, dtype: torch.dtype | None) -> Any:
    """What stands before an operation under autocast: floats become `dtype`.

    None is the widest of them.
    """
    name, _, overload = name.partition(".")
    op = getattr(getattr(aten, name), overload or "default")
    without = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)

    def cast_and_call(*args: Any, **kwargs: Any) -> Any:
        if dtype is torch.half:
            raise RuntimeError(
                f"{name}: cuDNN computes it in float16 under autocast; leave autocast before"
            )

        dtypes = {leaf.dtype for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
        floats = dtypes & {torch.bfloat16, torch.float}
        widest = torch.float if torch.float in floats else torch.bfloat16

        def convert(leaf: Any) -> Any:
            if isinstance(leaf, Pretend) and leaf.dtype in floats:
                return leaf.to(dtype or widest)
            return leaf

        with torch._C._ExcludeDispatchKeyGuard(without):
            return op(*tree_map(convert, args), **kwargs)

    return cast_and_call


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    *rest: Any,
    **more: Any,
):
    """Fused; as it is computed on the CPU, which has no dropout there."""
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, -torch.inf).to(q.dtype)

    if dropout_p or rest or more or q.dim() != 4:
        is_causal = more.get("is_causal", bool(rest and rest[0]))
        attended, _ = aten._scaled_dot_product_attention_math(
            q, k, v, attn_mask, dropout_p, is_causal, scale=more.get("scale")
        )
        return attended

    attended, _ = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=attn_mask)
    return attended


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    if not train or not p:
        return x
    dropped, _ = aten.native_dropout(x, p, train)
    return dropped


FUSED = (("scaled_dot_product_attention", _attention), ("dropout", _dropout))


class Gpu(TorchDispatchMode):
    """The pretend device, while entered.

    So many `downloads`, copies to the CPU, and `waits` for a number may be.
    """

    def __init__(self, downloads: float = 0, waits: float = 0) -> None:
        super().__init__()
        self._waits = waits
        self._allowed_downloads = downloads
        self._pinned = WeakIdKeyDictionary()
        self.operations = Counter[str]()
        self.uploads = Counter[str]()
        self.downloads = 0

    def __enter__(self) -> "Gpu":
        self._cuda = patch.multiple(torch.cuda, **PATCHED)
        self._cuda.start()
        self._before = (
            torch.__future__.get_overwrite_module_params_on_conversion(),
            torch._C._only_lift_cpu_tensors(),
        )
        # A Parameter's `data` keeps its own class.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        # torch.tensor(…, device=…) is sent as any other.
        torch._C._set_only_lift_cpu_tensors(True)

        self._instead = torch.library.Library("aten", "IMPL")
        for names, dtype in CASTS:
            for name in names.split():
                self._instead.impl(name, _cast(name, dtype), "AutocastCUDA", allow_override=True)
        for name, fused in FUSED:
            self._instead.impl(name, fused, "AutogradCUDA", allow_override=True)
        return super().__enter__()

    def __exit__(self, *fault: Any) -> None:
        super().__exit__(*fault)
        self._instead._destroy()
        torch.__future__.set_overwrite_module_params_on_conversion(self._before[0])
        torch._C._set_only_lift_cpu_tensors(self._before[1])
        self._cuda.stop()

    @staticmethod
    def read(x: Any) -> Any:
        """The values on the CPU of tensors in any nest, for the test alone."""
        return tree_map(inner_of, x)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler, seconds of CPU, to keep it out of this class."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is aten.is_pinned.default:
            return args[0] in self._pinned
        if is_composite(func):
            return self._decompose(func, args, kwargs)

        operation = Operation(func, args, kwargs)
        operation.check_devices()
        if operation.waits:
            self._count_wait(operation)
        if operation.is_copy:
            self._count_copy(operation)

        if operation.changes_nothing:
            return args[0]
        if operation.result_on_gpu and not func.is_view:
            self.operations[str(func)] += 1
        return self._compute(operation)

    def _decompose(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of an operation that is made of others, which come here one by one.

        In inference mode it comes whole.
        """
        super().__enter__()
        try:
            return func.decompose(*args, **kwargs)
        finally:
            super().__exit__(None, None, None)

    def _count_wait(self, operation: "Operation") -> None:
        """Raise if more operations wait for a value from the GPU than may."""
        self._waits -= 1
        if self._waits < 0:
            raise RuntimeError(f"{operation.func}: waits for a value from the GPU")

    def _count_copy(self, operation: "Operation") -> None:
        """Count an upload or a download. Raises if there are more downloads than may be."""
        if operation.on_gpu and not operation.result_on_gpu:
            self.downloads += 1
            if self.downloads > self._allowed_downloads:
                func = operation.func
                raise RuntimeError(f"{func}: waits for the GPU to send values to the CPU")

        if operation.on_cpu and operation.result_on_gpu:
            self.uploads["at once" if operation.is_sent_at_once else "waiting"] += 1

    def _compute(self, operation: "Operation") -> Any:
        """The operation on the CPU, its results on the pretend device if they belong there."""
        func = operation.func
        args = with_tensors(operation.args, inner_of)
        kwargs = with_tensors(operation.kwargs, inner_of)
        if kwargs.get("device"):
            kwargs["device"] = torch.device("cpu")

        # Memory is not pinned, which takes a driver.
        pins = func in (aten._pin_memory.default, aten.pin_memory.default)
        is_pinned = pins or kwargs.get("pin_memory")
        if pins:
            func = aten.clone.default
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False

        wrappers = {id(tensor.inner): tensor for tensor in operation.on_gpu}

        def wrap(result: Tensor) -> Tensor:
            if is_pinned:
                self._pinned[result] = True
            if not operation.result_on_gpu:
                return result
            # An operation in place gives back what it was given.
            if id(result) in wrappers:
                return wrappers[id(result)]
            return Pretend(result)

        return with_tensors(func(*args, **kwargs), wrap)


class Operation:
    """An operation with its arguments, and on which device its tensors and its result are."""

    def __init__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.func = func
        self.args = args
        self.kwargs = kwargs

        self.on_gpu: list[Pretend] = []
        self.on_cpu: list[Tensor] = []
        for tensor in tensors_in((args, kwargs)):
            if isinstance(tensor, Pretend):
                self.on_gpu.append(tensor)
            else:
                self.on_cpu.append(tensor)

        self.is_copy = func in (aten._to_copy.default, aten.copy_.default)
        self.result_on_gpu = self._is_result_on_gpu()

    def _is_result_on_gpu(self) -> bool:
        if self.func is aten.copy_.default:
            return isinstance(self.args[0], Pretend)

        device = self.kwargs.get("device")
        if device is None:
            return bool(self.on_gpu)
        # C++ says meta.
        return torch.device(device).type in ("cuda", "meta")

    def check_devices(self) -> None:
        """Raise for tensors of both devices, but for a copy, and a CPU's number in arithmetic."""
        if self.func is aten.copy_.default or not self.on_gpu:
            return

        is_arithmetic = torch.Tag.pointwise in self.func.tags
        for tensor in self.on_cpu:
            if tensor.ndim or not is_arithmetic:
                raise RuntimeError(f"{self.func}: expected all tensors to be on the same device")

    @property
    def is_sent_at_once(self) -> bool:
        """Whether an upload waits for nobody."""
        return bool(self.kwargs.get("non_blocking")) or self.args[2:] == (True,)

    @property
    def changes_nothing(self) -> bool:
        """Whether it moves to the GPU what is there already, which a real one's `.to` sees."""
        if self.func is not aten._to_copy.default or not self.result_on_gpu or not self.on_gpu:
            return False
        return self.kwargs.get("dtype") in (None, self.on_gpu[0].dtype)

    @property
    def waits(self) -> bool:
        """Whether it waits until the GPU has sent a value or a shape."""
        if not self.on_gpu:
            return False

        name = str(self.func)
        puts = "index_put" in name
        if torch.Tag.dynamic_output_shape not in self.func.tags and not puts:
            return torch.Tag.data_dependent_output in self.func.tags

        indices = tree_leaves(self.args[1:2])
        masks = (torch.bool, torch.uint8)
        by_mask = any(getattr(index, "dtype", None) in masks for index in indices)
        # CUDA fills one value in by the mask itself.
        fills_in = puts and self.args[2].numel() == 1
        if by_mask and not fills_in:
            return True

        has_known_shape = "index" in name or self.kwargs.get("output_size") is not None
        return not has_known_shape
