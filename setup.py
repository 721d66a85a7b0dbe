"""Builds gan_kernels/_C, the extension in csrc/. All else about the package is in pyproject.toml.

The CPU kernels are always built; the CUDA kernels too if PyTorch has CUDA and its toolkit is found
(USE_CUDA=0 leaves them out). What cannot be built is left out, with one line that says why;
`python -m gan_kernels` repeats it. The scripts run without.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

try:
    import torch
except ImportError:
    # pip builds in an environment of its own, so we look into the one that it installs for
    sys.path.append(sysconfig.get_path("purelib"))
    try:
        import torch
    except ImportError:
        torch = None

if torch is None:
    # pip is asking what the build requires; it will install that and run this file again
    setup(setup_requires=["torch>=2.10"])
    sys.exit()

from torch.utils.cpp_extension import BuildExtension, CppExtension


class NoCudaError(Exception):
    """Its message is the reason why there are no CUDA kernels."""


def find_toolkit() -> tuple[Path, str]:
    """The folder of a CUDA toolkit that fits this PyTorch, and the version of that toolkit."""
    if os.environ.get("USE_CUDA") == "0":
        raise NoCudaError("USE_CUDA=0 was set")
    if sys.platform == "win32":
        raise NoCudaError("they are built on Linux only")
    if torch.version.cuda is None:
        raise NoCudaError(f"PyTorch {torch.__version__} is a build without CUDA")
    for home in toolkit_folders():
        if (home / "include/cuda_runtime.h").exists() and shutil.which(home / "bin/nvcc"):
            break
    else:
        tried = ", ".join(str(folder) for folder in toolkit_folders())
        raise NoCudaError(f"no CUDA toolkit in {tried}; CUDA_HOME can name its folder")
    version = re.search(r"release ([\d.]+)", run_nvcc(home, "--version"))[1]
    if version.split(".")[0] != torch.version.cuda.split(".")[0]:
        needed = torch.version.cuda
        raise NoCudaError(f"the toolkit in {home} is CUDA {version}, PyTorch's is {needed}")
    return home, version


def toolkit_folders() -> list[Path]:
    """Where a CUDA toolkit may be."""
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    if nvcc:
        folders.append(Path(nvcc).resolve().parents[1])  # nvcc is in the toolkit's folder bin
    folders.append("/usr/local/cuda")
    return [Path(folder) for folder in dict.fromkeys(folders) if folder]


def run_nvcc(home: Path, *arguments: str | Path) -> str:
    """Returns what nvcc prints. NoCudaError if it fails."""
    command = [home / "bin/nvcc", *arguments]
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        hint = "pip install -v shows its messages"
        raise NoCudaError(f"nvcc failed with exit code {error.returncode} ({hint})") from error


def compile_cuda(home: Path, target: Path) -> None:
    """Compiles csrc/cuda.cu for every generation of GPUs that this nvcc knows, from Volta on."""
    known = {int(arch) for arch in re.findall(r"compute_(\d+)", run_nvcc(home, "--list-gpu-arch"))}
    archs = sorted(known & {70, 75, 80, 90, *range(100, 1000, 10)})
    newest = archs[-1]
    # g++ 9 and 10, which may be behind nvcc, have an older C++ as their default
    options = ["-O3", "-std=c++17", "--threads=0", "-Xcompiler=-fPIC"]
    options += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    options += [f"-gencode=arch=compute_{newest},code=compute_{newest}"]  # newer GPUs
    target.parent.mkdir(parents=True, exist_ok=True)
    run_nvcc(home, *options, "-c", "csrc/cuda.cu", "-o", target)


class Build(BuildExtension):
    def build_extension(self, extension: CppExtension) -> None:
        # For gan_kernels/_library.py. The last two are reasons, where there are any.
        info = {"torch": torch.__version__, "cuda": None, "no_cuda": None, "error": None}
        try:
            info["cuda"] = self.add_cuda_kernels(extension)
        except NoCudaError as reason:
            info["no_cuda"] = str(reason)
            print(f"gan_kernels: no CUDA kernels: {reason}", file=sys.stderr)
        library = Path(self.get_ext_fullpath(extension.name))
        try:
            super().build_extension(extension)
        except Exception as error:  # most often there is no compiler
            library.unlink(missing_ok=True)
            reason = f"the C++ compiler failed (pip install -v shows its messages): {error}"
            info["error"] = reason.partition("\n")[0]
            print(f"gan_kernels: not built: {info['error']}", file=sys.stderr)
        library.parent.mkdir(parents=True, exist_ok=True)
        library.with_name("_build.json").write_text(json.dumps(info))

    def add_cuda_kernels(self, extension: CppExtension) -> str:
        """Compiles them and adds them to the extension. Returns the version of CUDA."""
        home, version = find_toolkit()
        target = Path(self.build_temp, "cuda.o")
        compile_cuda(home, target)
        extension.extra_objects.append(str(target))
        extension.define_macros.append(("GAN_CUDA", None))
        # Linked statically, CUDA's runtime need not be where the library is loaded
        extension.extra_link_args += [f"-L{home / 'lib64'}", f"-L{home / 'lib'}"]
        extension.extra_link_args += ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        return version

    def copy_extensions_to_source(self) -> None:  # for pip install -e
        for path in Path("gan_kernels").glob("_C*"):
            path.unlink()
        super().copy_extensions_to_source()
        shutil.copy(Path(self.build_lib, "gan_kernels/_build.json"), "gan_kernels")


compile_args = []
if sys.platform != "win32":
    # Loops become vector code only if sqrt need not set errno and divisions need not raise signals
    compile_args = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math"]
link_args = []
if sys.platform == "linux":
    # Keeps libtorch.so, which no symbol is taken from: it is what brings in libtorch_cuda.so
    link_args = ["-Wl,--no-as-needed"]

extension = CppExtension(
    "gan_kernels._C",
    ["csrc/binding.cpp", "csrc/cpu.cpp"],
    depends=["csrc/arithmetic.h", "csrc/kernels.h", "csrc/cuda.cu"],
    py_limited_api=True,
    optional=True,  # if there is no library, the installation still succeeds
    define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000")],  # PyTorch 2.10 and all later
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)
setup(
    ext_modules=[extension],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
