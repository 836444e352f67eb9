"""CUDA C++ where Triton does not reach, compiled while the program runs by NVRTC: no nvcc, no headers.

Comes out: ``usable`` (whether kernels can be compiled for, and run on, a tensor's device), ``build`` (source → machine
code, which needs no GPU) and ``kernel`` (a loaded kernel, compiled once a process and device: about a second).

NVRTC is a part of every CUDA build of torch, as a package of its own (``nvidia-cuda-nvrtc``); the driver comes with the
GPU. Both are called through their C interfaces: https://docs.nvidia.com/cuda/nvrtc and
https://docs.nvidia.com/cuda/cuda-driver-api. Nothing is kept on disk.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator, Mapping
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

Defines = tuple[tuple[str, str], ...]
"""Macros and their values."""
OLDEST = (8, 0)
"""Compute capability: copies that do not wait, and bf16 on the tensor cores."""
MAX_DYNAMIC_SHARED = 8
"""CUfunction_attribute: bytes of shared memory that a launch may ask for."""


def usable(x: Tensor) -> bool:
    """Whether ``kernel`` will work where ``x`` lies."""
    return x.is_cuda and torch.version.hip is None and _device_usable(x.device.index)


@cache
def _device_usable(index: int) -> bool:
    capability = torch.cuda.get_device_capability(index)
    library, driver = _nvrtc(), _driver()
    return (
        library is not None and driver is not None and capability >= OLDEST and _number(capability) in _archs(library)
    )


def build(source: str, defines: Mapping[str, str], capability: tuple[int, int]) -> bytes:
    """Machine code (a cubin) of ``source``, whose kernels are ``extern "C"``. Raises RuntimeError with the compiler's
    words if it refuses, and if there is no compiler."""
    library = _nvrtc()
    if library is None:
        raise RuntimeError("NVRTC is not installed (pip install nvidia-cuda-nvrtc)")
    options = [f"--gpu-architecture=sm_{_number(capability)}", "--std=c++17"]
    options += [f"-D{name}={value}" for name, value in defines.items()]
    program = c_void_p()
    _must(library, library.nvrtcCreateProgram(byref(program), source.encode(), b"kernel.cu", 0, None, None))
    try:
        given = (c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(program, len(options), given):
            raise RuntimeError(f"CUDA source does not compile:\n{_taken(library, 'ProgramLog', program).decode()}")
        return _taken(library, "CUBIN", program)
    finally:
        library.nvrtcDestroyProgram(byref(program))


class Kernel:
    """A kernel that is loaded on one device."""

    def __init__(self, code: bytes, name: str, index: int, shared: int) -> None:
        driver = _driver()
        assert driver is not None
        self._driver, self._index, self._shared = driver, index, shared
        self._context, self._function = c_void_p(), c_void_p()
        module = c_void_p()
        with torch.cuda.device(index):
            device = c_int()
            self._check(driver.cuDeviceGet(byref(device), index))
            self._check(driver.cuDevicePrimaryCtxRetain(byref(self._context), device))
            self._enter()
            self._check(driver.cuModuleLoadData(byref(module), code))
            self._check(driver.cuModuleGetFunction(byref(self._function), module, name.encode()))
            self._check(driver.cuFuncSetAttribute(self._function, MAX_DYNAMIC_SHARED, shared))

    def __call__(self, blocks: int, threads: int, *arguments: Tensor | int | ctypes._SimpleCData[int]) -> None:
        """Launch on torch's current stream; a tensor is its address, an int a C int, and a ctypes value is itself."""
        values = [_value(argument) for argument in arguments]
        places = (c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        with torch.cuda.device(self._index):
            self._enter()
            stream = c_void_p(torch.cuda.current_stream(self._index).cuda_stream)
            self._check(
                self._driver.cuLaunchKernel(
                    self._function, blocks, 1, 1, threads, 1, 1, self._shared, stream, places, None
                )
            )

    def _enter(self) -> None:
        # A thread that has not yet used the GPU has no context, and torch need not make one for it.
        current = c_void_p()
        self._check(self._driver.cuCtxGetCurrent(byref(current)))
        if current.value != self._context.value:
            self._check(self._driver.cuCtxSetCurrent(self._context))

    def _check(self, status: int) -> None:
        if status:
            words = c_char_p()
            self._driver.cuGetErrorString(status, byref(words))
            raise RuntimeError(f"CUDA driver: {(words.value or b'unknown error').decode()} ({status})")


@cache
def kernel(name: str, source: str, defines: Defines, index: int, shared: int) -> Kernel:
    """Kernel ``name`` of ``source`` on GPU ``index``, with ``shared`` bytes of dynamic shared memory a launch.

    The first call loads a module, which a CUDA graph cannot capture: warm up before.
    """
    return Kernel(build(source, dict(defines), torch.cuda.get_device_capability(index)), name, index, shared)


def _value(argument: Tensor | int | ctypes._SimpleCData[int]) -> ctypes._SimpleCData[int] | c_void_p:
    if isinstance(argument, Tensor):
        return c_void_p(argument.data_ptr())
    return c_int(argument) if isinstance(argument, int) else argument


def _number(capability: tuple[int, int]) -> int:
    return capability[0] * 10 + capability[1]


def _archs(library: ctypes.CDLL) -> list[int]:
    """Compute capabilities that this NVRTC knows, 90 for 9.0."""
    count = c_int()
    _must(library, library.nvrtcGetNumSupportedArchs(byref(count)))
    numbers = (c_int * count.value)()
    _must(library, library.nvrtcGetSupportedArchs(numbers))
    return list(numbers)


def _taken(library: ctypes.CDLL, what: str, program: c_void_p) -> bytes:
    size = c_size_t()
    _must(library, getattr(library, f"nvrtcGet{what}Size")(program, byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _must(library, getattr(library, f"nvrtcGet{what}")(program, text))
    return text.raw


def _must(library: ctypes.CDLL, status: int) -> None:
    if status:
        raise RuntimeError(f"NVRTC: {library.nvrtcGetErrorString(status).decode()}")


@cache
def _nvrtc() -> ctypes.CDLL | None:
    """The compiler of torch's CUDA version; a torch without CUDA takes any."""
    for path in _nvrtc_paths():
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = c_char_p
        return library
    return None


def _nvrtc_paths() -> Iterator[str]:
    major = (torch.version.cuda or "").split(".")[0]
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(str(path) for path in Path(root).glob(f"*/lib/libnvrtc.so.{major or '*'}"))
    if major:  # the system's
        yield f"libnvrtc.so.{major}"


@cache
def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
