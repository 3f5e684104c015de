"""Chat templates by name: ours, and those that come with TRL. Imports nothing heavy."""

from importlib.util import find_spec
from pathlib import Path

from sft_experiments.errors import ConfigError, nearest

OWN = Path(__file__).parent / "templates"


def shipped_names() -> list[str]:
    """Ours first (chatml, plain), then TRL's family names; ``<family>_training`` has generation markers."""
    return [file.stem for folder in _folders() for file in sorted(folder.glob("*.jinja"))]


def shipped_template(name: str) -> str:
    """The text of a shipped template. Raises ``ConfigError`` naming the choices."""
    for folder in _folders():
        file = folder / f"{name}.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
    names = shipped_names()
    raise ConfigError(
        f"model.chat_template={name} is neither a .jinja file nor a shipped template{nearest(name, names)}; "
        f"shipped: {', '.join(names)}"
    )


def training_name(template: str | None) -> str | None:
    """The name of a shipped template with this text, or None."""
    for folder in _folders():
        for file in folder.glob("*_training.jinja"):
            if template is not None and file.read_text(encoding="utf-8") == template:
                return file.stem
    return None


def _folders() -> list[Path]:
    spec = find_spec("trl")  # finds the package without importing it
    return [OWN] + ([Path(spec.origin).parent / "chat_templates"] if spec and spec.origin else [])
