"""The subcommands ``eval``, ``chat`` and ``export``: their arguments, and what they call. Heavy imports wait."""

import argparse
import json
from pathlib import Path

from sft_experiments.commands import Command
from sft_experiments.runs.folder import RunFolder


def _add_eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Evaluate a run's saved model with the code of its objective: on its own validation data, or on other data, "
        "e.g. sft eval RUN_DIR dataset=messages dataset.validation_files=[other.jsonl]"
    )
    _add_run(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes, mostly dataset=...")
    parser.add_argument("--json", action="store_true", help="metrics as JSON")


def _run_eval(args: argparse.Namespace) -> int:
    from sft_experiments.model_use.evaluate import evaluate_run  # slow: torch, transformers, 5 s
    from sft_experiments.model_use.saved import quiet  # slow: torch, transformers, 5 s

    quiet()
    metrics, samples = evaluate_run(args.run, args.overrides)
    if args.json:
        print(json.dumps(metrics, indent=2))
        return 0
    for name, value in metrics.items():
        print(f"{name:<32}{value:.6g}")
    for sample in samples:
        print(f"\n{sample.prompt[-1]['content']}\n  -> {sample.answer}\n     {sample.reference or ''}")
    return 0


def _add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Talk to a run's trained model in the terminal."
    _add_run(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system turn at the start")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (the default): always the likeliest token")


def _run_chat(args: argparse.Namespace) -> int:
    from sft_experiments.model_use.chat import chat  # slow: torch, transformers, 5 s
    from sft_experiments.model_use.saved import load_trained, quiet  # slow: torch, transformers, 5 s

    quiet()
    chat(load_trained(RunFolder(args.run)), args.system, args.max_new_tokens, args.temperature)
    return 0


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Copy a run's model, merged if it is an adapter, with its tokenizer and a model card."
    _add_run(parser)
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that does not exist yet, or is empty")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: the base model's")


def _run_export(args: argparse.Namespace) -> int:
    from sft_experiments.model_use.export import export_run  # slow: torch, transformers, 5 s
    from sft_experiments.model_use.saved import quiet  # slow: torch, transformers, 5 s

    quiet()
    print(export_run(RunFolder(args.run), args.out, args.dtype))
    return 0


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN_DIR", type=Path, help="a run's folder, e.g. from `sft best DIR --path`")


COMMANDS = {
    "eval": Command(_run_eval, _add_eval_arguments),
    "chat": Command(_run_chat, _add_chat_arguments),
    "export": Command(_run_export, _add_export_arguments),
}
