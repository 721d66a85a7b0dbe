"""Builds gan_kernels/_C, the extension in csrc/. All else about the package is in pyproject.toml.

CPU kernels always; CUDA kernels where PyTorch has CUDA and its toolkit is found (USE_CUDA=0 leaves them out). Whatever
cannot be built is left out with one line that says why, which `python -m gan_kernels` repeats; the scripts run without.
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
except ImportError:  # pip builds in an environment of its own: look into the one that it installs for
    sys.path.append(sysconfig.get_path("purelib"))
    try:
        import torch
    except ImportError:
        torch = None

if torch is None:  # pip asks what the build needs, installs it and comes again
    setup(setup_requires=["torch>=2.10"])
    sys.exit()

from torch.utils.cpp_extension import BuildExtension, CppExtension


def find_cuda() -> tuple[Path | None, str]:
    """The folder of a CUDA toolkit that fits this PyTorch and its version, or None and the reason."""
    if os.environ.get("USE_CUDA") == "0":
        return None, "USE_CUDA=0 was set"
    if sys.platform == "win32":
        return None, "they are built on Linux only"
    if torch.version.cuda is None:
        return None, f"PyTorch {torch.__version__} is a build without CUDA"
    tried = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), shutil.which("nvcc"), "/usr/local/cuda"]
    tried = [Path(path).resolve().parents[1] if Path(path).stem == "nvcc" else Path(path) for path in tried if path]
    for home in tried:
        if (home / "include" / "cuda_runtime.h").exists() and shutil.which(home / "bin" / "nvcc"):
            break
    else:
        return None, f"no CUDA toolkit in {', '.join(map(str, dict.fromkeys(tried)))}; CUDA_HOME can name its folder"
    output = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"release ([\d.]+)", output)[1]
    if version.split(".")[0] != torch.version.cuda.split(".")[0]:
        return None, f"the toolkit in {home} is CUDA {version}, PyTorch's is {torch.version.cuda}"
    return home, version


def compile_cuda(home: Path, target: Path) -> None:
    """Compiles csrc/cuda.cu for each generation of GPUs from Volta on that this nvcc knows, and for later ones."""
    nvcc = home / "bin" / "nvcc"
    output = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    archs = sorted({int(arch) for arch in re.findall(r"compute_(\d+)", output)} & {75, *range(70, 1000, 10)})
    flags = ["-std=c++17"]  # not the default where the compiler behind nvcc is g++ 9 or 10
    flags += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    flags += [f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [nvcc, "-c", "-O3", "--threads=0", "-Xcompiler=-fPIC", *flags, "csrc/cuda.cu", "-o", target], check=True
    )


class Build(BuildExtension):
    def build_extension(self, extension: CppExtension) -> None:
        info = {"torch": torch.__version__, "cuda": None, "error": None}
        home, reason = find_cuda()
        if home:
            try:
                target = Path(self.build_temp, "cuda.o")
                compile_cuda(home, target)
                info["cuda"] = reason
                extension.extra_objects.append(str(target))
                extension.define_macros.append(("GAN_CUDA", None))
                # CUDA's runtime is linked in, so that the library also loads where there is none
                extension.extra_link_args += [f"-L{home / 'lib64'}", f"-L{home / 'lib'}", "-lcudart_static"]
                extension.extra_link_args += ["-ldl", "-lrt", "-lpthread"]
            except subprocess.CalledProcessError as error:
                reason = f"nvcc failed with exit code {error.returncode} (pip install -v shows its messages)"
        if not info["cuda"]:
            info["no_cuda"] = reason
            print(f"gan_kernels: no CUDA kernels: {reason}", file=sys.stderr)
        path = Path(self.get_ext_fullpath(extension.name))
        try:
            super().build_extension(extension)
        except Exception as error:  # no compiler, most often
            path.unlink(missing_ok=True)
            info["error"] = f"the C++ compiler failed (pip install -v shows its messages): {error}".partition("\n")[0]
            print(f"gan_kernels: not built: {info['error']}", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name("_build.json").write_text(json.dumps(info))

    def copy_extensions_to_source(self) -> None:  # pip install -e
        for path in Path("gan_kernels").glob("_C*"):
            path.unlink()
        super().copy_extensions_to_source()
        shutil.copy(Path(self.build_lib, "gan_kernels", "_build.json"), "gan_kernels")


linux = sys.platform == "linux"
extension = CppExtension(
    "gan_kernels._C",
    ["csrc/binding.cpp", "csrc/cpu.cpp"],
    depends=["csrc/arithmetic.h", "csrc/kernels.h", "csrc/cuda.cu"],
    py_limited_api=True,
    optional=True,  # see Build
    define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000")],  # PyTorch 2.10's stable ABI, and so all later ones
    # Loops with sqrt become vector code only if sqrt need not set errno, nor divisions raise floating-point signals
    extra_compile_args=[] if sys.platform == "win32" else ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math"],
    # libtorch.so brings in libtorch_cuda.so, where there is one, but no symbol of its own that would keep it
    extra_link_args=["-Wl,--no-as-needed"] if linux else [],
)
setup(
    ext_modules=[extension],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
